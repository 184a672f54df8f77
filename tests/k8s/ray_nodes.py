"""A Ray cluster of several nodes on this machine, started as the operator starts a job's pods."""

from __future__ import annotations

import http.client
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from built import K8S, Manifest

__all__ = ["Cluster", "environment", "free_port", "ray_cluster"]

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
_STORE_BYTES = 90_000_000


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def environment(
    container: Manifest, maps: Mapping[str, Mapping[str, str]], secrets: Mapping[str, str]
) -> dict[str, str]:
    """A container's variables as the kubelet makes them. secrets: by NAME/KEY."""
    made: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        made |= maps[source["configMapRef"]["name"]]
    for variable in container.get("env", ()):
        if "value" in variable:
            made[variable["name"]] = variable["value"]
            continue
        reference = variable["valueFrom"]["secretKeyRef"]
        name = f"{reference['name']}/{reference['key']}"
        if name in secrets:
            made[variable["name"]] = secrets[name]
        else:
            assert reference.get("optional"), f"the pod would not start: no secret {name}"
    return made


@dataclass
class Cluster:
    """A running cluster and how to ask it. variables: of a pod that submits."""

    address: str
    variables: dict[str, str]
    agent_ports: list[int] = field(default_factory=list)
    metrics_ports: list[int] = field(default_factory=list)

    def submit(self, name: str, spec: Manifest, entrypoint: str, limit_s: float = 400) -> str:
        """Run a RayJob's entrypoint by the commands of KubeRay's submitter. Returns its log."""
        server = ["--address", self.address]
        options = ["--entrypoint-num-cpus", f"{spec['entrypointNumCpus']:f}"]
        submit = shlex.join(
            [*RAY, "job", "submit", *server, "--no-wait", "--submission-id", name, *options, "--"]
        )
        # The entrypoint is not quoted: the submitter's shell splits it, and so does this one.
        self._run(["/bin/bash", "-c", f"{submit} {entrypoint}"], limit_s)
        self._run([*RAY, "job", "logs", *server, "--follow", name], limit_s)
        log: str = self._asked(f"/api/jobs/{name}/logs")["logs"]
        return log

    def status(self, name: str) -> str:
        status: str = self._asked(f"/api/jobs/{name}")["status"]
        return status

    def answer(self, port: int, path: str, token: str | None = None) -> int:
        """The HTTP status of a request, by default without a token."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
        try:
            status: int = urllib.request.urlopen(request, timeout=20).status
            return status
        except urllib.error.HTTPError as error:
            return error.code

    def metrics(self) -> str:
        """What Prometheus would scrape of all nodes."""
        text = ""
        for port in self.metrics_ports:
            with suppress(OSError, http.client.HTTPException):
                page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10)
                text += page.read().decode()
        return text

    def _asked(self, path: str) -> Manifest:
        """The job server's answer, without the seconds that Ray's command line takes to start."""
        token = {"Authorization": f"Bearer {self.variables['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(f"{self.address}{path}", headers=token)
        answer: Manifest = json.load(urllib.request.urlopen(request, timeout=60))
        return answer

    def _run(self, command: list[str], limit_s: float) -> str:
        done = subprocess.run(
            command,
            env=self.variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=limit_s,
        )
        return done.stdout + done.stderr


@contextmanager
def ray_cluster(
    spec: Manifest,
    nodes: list[tuple[str, int]],
    maps: Manifest,
    secrets: Mapping[str, str],
    token: str,
    instead: Mapping[str, str],
    autoscaling: Manifest | None = None,
) -> Iterator[Cluster]:
    """Head and nodes of a rayClusterSpec.

    nodes: (group, CPUs) of each worker. instead: variables that are other here than in a cluster.
    autoscaling: what the head's autoscaler is configured by; its provider is told of the cluster.
    """
    # Not pytest's folder: the paths of Ray's sockets may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="pmg-k8s-"))
    port, gcs = free_port(), free_port()
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert spec["authOptions"]["mode"] == "token"
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}  # what the operator adds
    base = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(K8S.parent),
        "OMP_NUM_THREADS": "1",
        "RAY_TMPDIR": str(folder),
        "RAY_raylet_start_wait_time_s": "120",  # of a machine that does other things as well
        **auth,
    }
    cluster = Cluster(f"http://127.0.0.1:{port}", base | {"HOME": str(folder)})
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for number, (name, cpus) in enumerate([("head", 0), *nodes]):
            part = spec["headGroupSpec"] if name == "head" else groups[name]
            container = part["template"]["spec"]["containers"][0]
            given = environment(container, maps, secrets)
            cluster.agent_ports.append(free_port())
            cluster.metrics_ports.append(free_port())
            params = part["rayStartParams"] | {
                "dashboard-agent-listen-port": cluster.agent_ports[-1],
                "metrics-export-port": cluster.metrics_ports[-1],
                "object-store-memory": _STORE_BYTES,
                "memory": 6 << 30,
                "node-ip-address": "127.0.0.1",
            }
            if name == "head":
                params |= {"port": gcs, "dashboard-port": port, "dashboard-host": "127.0.0.1"}
                params |= {"ray-client-server-port": free_port(), "temp-dir": folder}
                if autoscaling is not None:
                    autoscaling["provider"]["gcs_address"] = f"127.0.0.1:{gcs}"
                    params["autoscaling-config"] = folder / "autoscaling.json"
                    params["autoscaling-config"].write_text(json.dumps(autoscaling))
                start = [*RAY, "start", "--head", "--block", "--include-dashboard=true"]
            else:
                params |= {"num-cpus": cpus, "address": f"127.0.0.1:{gcs}"}
                start = [*RAY, "start", "--block"]
            start += [f"--{key}={value}" for key, value in params.items()]
            log = stack.enter_context((folder / f"{number}.log").open("w"))
            variables = base | given | dict(instead) | {"HOME": str(folder)}
            process = subprocess.Popen(start, env=variables, stdout=log, stderr=log)
            stack.callback(_end, process)
            # One after another: nodes of one folder would take one another's sockets.
            _wait(cluster, cluster.agent_ports[-1], folder / f"{number}.log", process)
        yield cluster


def _wait(cluster: Cluster, agent: int, log: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the node's agent answers as the kubelet's probe asks."""
    deadline = time.monotonic() + 180
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        with suppress(OSError, http.client.HTTPException):
            if cluster.answer(agent, "/api/local_raylet_healthz") == 200:
                return
        time.sleep(0.5)


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(psutil.NoSuchProcess):
        started = [*psutil.Process(process.pid).children(recursive=True)]
        for one in [*started, psutil.Process(process.pid)]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()
