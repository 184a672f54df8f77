"""A real PostgreSQL server on loopback, from Debian's packages, in a folder of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def find_binaries() -> Path | None:
    """The folder of initdb and postgres; None where PostgreSQL is not installed."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return places[-1].parent if places else None


@contextmanager
def postgres_server() -> Iterator[str]:
    """Its URL, with an empty database. PostgreSQL refuses to run as root: then as `nobody`."""
    binaries = find_binaries()
    assert binaries is not None
    root = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    user = "nobody" if os.geteuid() == 0 else None
    if user is not None:
        os.chown(root, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    data = root / "data"
    options = {"user": user, "cwd": root, "stdout": subprocess.DEVNULL}
    subprocess.run(
        [binaries / "initdb", "-D", data, "-U", "pmg", "-A", "trust", "--no-sync"],
        check=True,
        stderr=subprocess.DEVNULL,
        **options,
    )
    port = _free_port()
    settings = ("fsync=off", f"unix_socket_directories={root}", "listen_addresses=127.0.0.1")
    arguments = [a for setting in settings for a in ("-c", setting)]
    server = subprocess.Popen(
        [binaries / "postgres", "-D", data, "-p", str(port), *arguments],
        stderr=subprocess.DEVNULL,
        **options,
    )
    try:
        _wait_for(port, server)
        yield f"postgresql://pmg:secret@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)  # SIGTERM would wait for the clients
        server.wait(30)
        shutil.rmtree(root, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    import psycopg  # noqa: PLC0415

    for _ in range(600):
        assert server.poll() is None, "PostgreSQL ended at once"
        try:
            psycopg.connect(host="127.0.0.1", port=port, user="pmg", dbname="postgres").close()
            return
        except psycopg.OperationalError:
            time.sleep(0.1)
    raise TimeoutError("PostgreSQL does not answer")
