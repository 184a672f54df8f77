"""`python -m launch.train` as a job of a Ray cluster with token authentication."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest
from small_run import make_store, small_config

from launch import checkpoint
from launch.run_folder import RunFolder

pytestmark = pytest.mark.slow

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def cluster():
    """A head node of its own: (address of its job server, its folder, the environment to use)."""
    # Not pytest's folder: the paths of Ray's sockets may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="pmg-ray-"))
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if "RAY_" not in name}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_TMPDIR": str(folder),  # where a second, unwanted cluster would be seen
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [*RAY, "start", "--head", "--block", "--include-dashboard=true", "--num-cpus=2"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--port=0"]
    command += [f"--dashboard-port={port}", f"--ray-client-server-port={free_port()}"]
    command += [f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={folder}"]
    command += ["--object-store-memory=100000000", "--disable-usage-stats"]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, head, folder / "head.log")
        yield address, folder, environment
    finally:
        started = [*psutil.Process(head.pid).children(recursive=True), head]
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(address: str, head: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert head.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=5)
            return
        except urllib.error.HTTPError:
            return  # it answers: not without the token
        except OSError:
            time.sleep(0.5)


def test_a_job_trains_on_the_cluster_that_it_was_submitted_to(cluster, tmp_path):
    address, folder, environment = cluster
    store, run = tmp_path / "store", RunFolder(tmp_path / "run")
    make_store(store)
    working = tmp_path / "working"
    working.mkdir()
    (working / "run.yaml").write_text(small_config(store, train={"steps": 4}).to_yaml())
    command = [*RAY, "job", "submit", "--address", address, "--working-dir", str(working), "--"]
    command += [sys.executable, "-m", "launch.train"]
    command += ["--config", "run.yaml", "--run", str(run.root)]
    submitted = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "succeeded" in submitted.stdout
    assert checkpoint.newest(run.checkpoints).step == 4
    sessions = [p for p in folder.glob("**/session_*") if p.is_dir() and not p.is_symlink()]
    assert len(sessions) == 1, "the job started a cluster of its own"
