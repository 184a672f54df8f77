"""The RayJobs' entrypoints, as they stand in the built manifests, run to SUCCEEDED one by one.

On a head without CPUs and two nodes of the CPU group, with token authentication, the pods' own
variables and Ray's own start parameters, an S3 server and, where it is installed, PostgreSQL. CPUs,
memory, the phantom, the networks and the number of steps are smaller. A volume's mount is a folder
of the test, and ports are free ones.
"""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from built import K8S, NO_KUBECTL, Manifest, build, objects
from ray_nodes import Cluster, ray_cluster
from test_metrics import expressions

from launch.gauges import GAUGES, LOSS, SKIPPED

sys.path += [str(K8S.parent / "tests"), str(K8S.parent / "tests" / "tune")]
import s3_server
from postgres_server import find_binaries, postgres_server

pytestmark = [NO_KUBECTL, pytest.mark.long, pytest.mark.ray]

JOBS = ("ingest", "train", "tune", "translate", "evaluate")
MODULES = {name: "tune.search" if name == "tune" else f"launch.{name}" for name in JOBS}
SMALL_RUN: Manifest = {
    # Of two patients of each domain, these settings hold out one, given the key below.
    "data": {"patch": [32, 32], "threads": 1, "validation_fraction": 0.5, "validation_seed": 5},
    "model": {"width": 4, "blocks": 1, "latent_channels": 4},
    "discriminator": {"width": 4, "layers": 2, "scales": 1},
    "prior": {"components": 3, "fit_step": 3, "reseed_every": 0},
    "train": {"steps": 12, "batch": 4, "log_every": 2, "checkpoint_every": 4},
    "translate": {"tile": [64, 64]},
}
SMALL_SEARCH: Manifest = {
    "budget": {"trials": 1, "steps": 4, "evaluate_every": 2},
    "final": {"points": 0},
    "validation": {"volumes": 1},
}


@dataclass
class Stack:
    """The cluster, the folders that stand for its volumes, and what was scraped meanwhile."""

    cluster: Cluster
    folder: Path
    jobs: dict[str, Manifest]
    mounts: list[str]
    scraped: set[str] = field(default_factory=set)

    def here(self, text: str) -> str:
        """The text with the mounts' paths as they are on this machine."""
        mounts = "|".join(map(re.escape, self.mounts))
        return re.sub(rf"(?<![\w/:])({mounts})(?=/)", rf"{self.folder}\1", text)

    def run(self, name: str) -> str:
        if importlib.util.find_spec(MODULES[name]) is None:
            pytest.skip(f"NOT RUN: this version has no {MODULES[name]}")
        spec = self.jobs[name]
        log = self.cluster.submit(f"pmg-{name}", spec, self.here(spec["entrypoint"]))
        assert self.cluster.status(f"pmg-{name}") == "SUCCEEDED", log
        return log


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("volumes")
    manifests = build("overlays/laptop")
    maps = {one["metadata"]["name"]: one["data"] for one in objects(manifests, "ConfigMap")}
    jobs = {
        one["metadata"]["labels"]["pmg/job"]: one["spec"]
        for one in objects(build("overlays/laptop/jobs"), "RayJob")
    }
    spec = jobs["tune"]["rayClusterSpec"]  # its pods have the most variables
    mounts = {
        mount["mountPath"]
        for job in jobs.values()
        for mount in job["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][
            0
        ]["volumeMounts"]
    }
    made = Stack(None, folder, jobs, sorted(mounts - {"/dev/shm"}))  # type: ignore[arg-type]
    for mount in made.mounts:
        (folder / mount.lstrip("/")).mkdir(parents=True)
    key = folder / "var/run/secrets/pmg/pseudonym/key"
    key.write_bytes(bytes(range(32)))
    key.chmod(0o440)
    token = secrets.token_hex(32)
    with ExitStack() as services:
        services.enter_context(pytest.MonkeyPatch.context()).setattr(s3_server, "BUCKET", "pmg")
        services.enter_context(s3_server.s3_server())
        held = {
            "pmg-object-store/access-key": os.environ["AWS_ACCESS_KEY_ID"],
            "pmg-object-store/secret-key": os.environ["AWS_SECRET_ACCESS_KEY"],
        }
        settings = folder / "etc/pmg"
        run = yaml.safe_load(maps["pmg-settings"]["run.yaml"])
        (settings / "run.yaml").write_text(yaml.safe_dump(merged(run, SMALL_RUN)))
        search = merged(yaml.safe_load(maps["pmg-settings"]["tune.yaml"]), SMALL_SEARCH)
        search["storage"] = services.enter_context(database(held))
        (settings / "tune.yaml").write_text(made.here(yaml.safe_dump(search)))
        instead = {
            "AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"],
            **{
                name: made.here(value)
                for name, value in maps["pmg-environment"].items()
                if value.startswith("/")
            },
        }
        nodes = [("cpu", 2), ("cpu", 2)]
        cluster = ray_cluster(spec, nodes, maps, held, token, instead)
        made.cluster = services.enter_context(cluster)
        watching = threading.Event()
        watch = threading.Thread(target=scrape, args=(made, watching), daemon=True)
        watch.start()
        yield made
        watching.set()
        watch.join()


def merged(tree: Manifest, over: Manifest) -> dict[str, Any]:
    return tree | {
        name: merged(tree.get(name, {}), part) if isinstance(part, dict) else part
        for name, part in over.items()
    }


@contextmanager
def database(held: dict[str, str]) -> Iterator[str | None]:
    """A PostgreSQL server, where one is installed: its URL, the password apart; else a journal."""
    if find_binaries() is None:
        yield None
        return
    with postgres_server() as url:
        held["pmg-postgres/password"] = str(urlsplit(url).password)
        yield url.replace(f":{urlsplit(url).password}@", "@")


def scrape(stack: Stack, ended: threading.Event) -> None:
    while not ended.wait(1):
        stack.scraped |= set(re.findall(r"^(ray_\w+)", stack.cluster.metrics(), re.M))


def test_the_probes_are_answered_without_a_token_and_the_job_server_is_not(stack: Stack) -> None:
    head = int(stack.cluster.address.rpartition(":")[2])
    spec = stack.jobs["train"]["rayClusterSpec"]
    for part in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        container = part["template"]["spec"]["containers"][0]
        for probe in ("readinessProbe", "livenessProbe"):
            asked = container[probe]["httpGet"]
            port = head if asked["port"] == "dashboard" else stack.cluster.agent_ports[0]
            assert stack.cluster.answer(port, asked["path"]) == 200
    assert stack.cluster.answer(head, "/api/jobs/") == 401
    assert stack.cluster.answer(head, "/api/jobs/", token="0" * 64) == 403


def test_the_phantoms_command_writes_what_the_ingest_reads(stack: Stack) -> None:
    job = next(objects(build("overlays/laptop"), "Job"))["spec"]["template"]["spec"]
    command = [stack.here(word) for word in job["containers"][0]["command"]]
    program = Path(sys.executable).parent / command[0]
    command = [*command[1:], "--subjects", "2", "--tests", "1"]
    subprocess.run(
        [program, *command],
        env=os.environ | {"PYTHONPATH": str(K8S.parent)},
        check=True,
        capture_output=True,
    )
    assert (stack.folder / "input/demo/manifest.csv").is_file()


def test_the_ingest_succeeds(stack: Stack) -> None:
    stack.run("ingest")


def test_the_training_succeeds(stack: Stack) -> None:
    log = stack.run("train")
    assert "step 12/12" in log
    assert (stack.folder / "runs/demo/model/model.safetensors").is_file()


def test_what_dashboard_and_alerts_name_of_a_run_was_scraped(stack: Stack) -> None:
    """But the skipped steps, of which there were none, and what only GPUs export."""
    named = set(re.findall(r"ray_\w+", " ".join(expressions())))
    absent = {f"ray_{SKIPPED}_total", "ray_node_gpus_utilization", "ray_node_gram_used"}
    # The autoscaler counts these, and fixed sizes have none.
    absent |= {"ray_cluster_active_nodes", "ray_cluster_pending_nodes"}
    assert {f"ray_{name}" for name in (*GAUGES, LOSS)} <= named
    assert named - stack.scraped - absent == set()


def test_a_second_submission_finds_that_all_is_done(stack: Stack) -> None:
    spec = stack.jobs["train"]
    log = stack.cluster.submit("pmg-train-again", spec, stack.here(spec["entrypoint"]))
    assert stack.cluster.status("pmg-train-again") == "SUCCEEDED"
    assert "12 steps are done" in log


def test_the_search_succeeds(stack: Stack) -> None:
    stack.run("tune")
    assert (stack.folder / "runs/search/best.yaml").is_file()


def test_the_translation_succeeds(stack: Stack) -> None:
    stack.run("translate")
    assert list((stack.folder / "output/translated").rglob("*.dcm"))


def test_the_evaluation_succeeds(stack: Stack) -> None:
    stack.run("evaluate")
    assert (stack.folder / "output/report/report.html").is_file()
