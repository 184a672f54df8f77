"""A Ray cluster of one head node for a measurement or a test: own ports, own folder, a token."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["Head", "head_node"]

RAY = (sys.executable, "-m", "ray.scripts.scripts")
_START_S = 180


@dataclass(frozen=True)
class Head:
    """address: of the job server. gcs: host:port for raylets to join.

    environment: for what is to use this cluster, with the token's file. nodes: the processes that
    hold a node each, the head's first. metrics_ports: of each node's exporter.
    """

    address: str
    gcs: str
    folder: Path
    environment: dict[str, str]
    nodes: list[subprocess.Popen[bytes]]
    metrics_ports: list[int]

    def exporters(self) -> list[str]:
        """Where Prometheus reads each node's figures."""
        return [f"http://127.0.0.1:{port}/metrics" for port in self.metrics_ports]

    def add_node(self, cpus: int) -> subprocess.Popen[bytes]:
        """Another raylet, on its way to join."""
        self.metrics_ports.append(_free_port())
        command = [*RAY, "start", "--block", f"--address={self.gcs}", f"--num-cpus={cpus}"]
        command += ["--object-store-memory=100000000", "--disable-usage-stats"]
        command += [f"--metrics-export-port={self.metrics_ports[-1]}"]
        command += [f"--dashboard-agent-listen-port={_free_port()}"]
        with (self.folder / "head.log").open("a", encoding="utf-8") as log:
            node = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        self.nodes.append(node)
        return node

    def processes(self, of: str = "") -> list[psutil.Process]:
        """All that runs on the nodes, or what has these words in its command line."""
        found = []
        for node in self.nodes:
            with suppress(psutil.NoSuchProcess):
                for one in psutil.Process(node.pid).children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        if of in " ".join(one.cmdline()):
                            found.append(one)
        return found

    @staticmethod
    def kill(node: subprocess.Popen[bytes]) -> None:
        """SIGKILL to all processes of a node, as when its machine is switched off."""
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(node.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        node.kill()
        node.wait()


@contextmanager
def head_node(cpus: int = 2, nodes: int = 0, **variables: str) -> Iterator[Head]:
    """A head node of so many cores in a process of its own, which ends with the context.

    nodes: further raylets beside it, with as many cores each. variables: of their environment.
    """
    # A short path: those of Ray's sockets may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="pmg-ray-"))
    token = folder / "token"
    environment = {name: value for name, value in os.environ.items() if "RAY_" not in name}
    environment |= {
        # Jobs say python, which is this one where the environment is activated.
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_TMPDIR": str(folder),  # where a second, unwanted cluster would be seen
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "120",  # of a machine that does other things as well
        "PYTHONPATH": os.pathsep.join(p for p in (os.getcwd(), os.environ.get("PYTHONPATH")) if p),
        **variables,
    }
    subprocess.run([sys.executable, "-m", "launch.access"], env=environment, check=True)
    port, dashboard, metrics = _free_port(), _free_port(), _free_port()
    command = [*RAY, "start", "--head", "--block", "--include-dashboard=true"]
    command += [f"--num-cpus={cpus}", "--node-ip-address=127.0.0.1", f"--port={port}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    command += [f"--ray-client-server-port={_free_port()}", f"--metrics-export-port={metrics}"]
    command += [f"--dashboard-agent-listen-port={_free_port()}", f"--temp-dir={folder}"]
    command += ["--object-store-memory=100000000", "--disable-usage-stats"]
    log = folder / "head.log"
    with log.open("w", encoding="utf-8") as file:
        first = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    head = Head(
        f"http://127.0.0.1:{dashboard}",
        f"127.0.0.1:{port}",
        folder,
        environment,
        [first],
        [metrics],
    )
    try:
        _wait(f"{head.address}/api/version", first, log)
        for _ in range(nodes):
            head.add_node(cpus)
        yield head
    finally:
        for node in head.nodes:
            head.kill(node)
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        number: int = listener.getsockname()[1]
        return number


def _wait(url: str, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        if head.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the head node did not start:\n{log.read_text(encoding='utf-8')}")
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except urllib.error.HTTPError:
            return  # it answers: not without the token
        except OSError:
            time.sleep(0.5)
