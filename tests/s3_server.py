"""A real S3 server (moto's) in a process of its own on loopback, for tests and benchmarks."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

BUCKET = "cohort"
KEYS = {"AWS_ACCESS_KEY_ID": "AKIAPUBLICNAME", "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-user"}


@contextmanager
def s3_server() -> Iterator[str]:
    """Start it, point this process and its children to it, and yield `s3://bucket`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _make_bucket(port, server)
        endpoint = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_REGION": "us-east-1"}
        with mock.patch.dict(os.environ, endpoint | KEYS):
            yield f"s3://{BUCKET}"
    finally:
        server.terminate()
        server.wait()


def _make_bucket(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("PUT", f"/{BUCKET}")
            assert connection.getresponse().status == 200
            connection.close()
            return
        except ConnectionRefusedError:
            assert server.poll() is None, "moto's server ended; is moto[server] installed?"
            time.sleep(0.05)
    raise AssertionError("moto's server did not answer within 30 s")
