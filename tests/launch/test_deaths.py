"""The death of a node, of the driver and of the head, on a real cluster that others started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import pairwise

import psutil
import pytest
from shell import STEPS, Started, assert_same_weights, command, finish, newest_step

from benchmarks.head import head_node
from launch.run_folder import RunFolder

pytestmark = [pytest.mark.long, pytest.mark.ray]

# A node is believed dead, and a head lost, sooner than by Ray's defaults of 15 and 60 s.
SOONER = {"RAY_health_check_period_ms": "1000", "RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
ATTACHED = {"address": "auto"}
ENDLESS = {"steps": 100_000}
WORKER = "RayTrainWorker"


@pytest.fixture(scope="module")
def cluster():
    """A head and a node with room for one worker each."""
    with head_node(cpus=1, nodes=1, **SOONER) as head:
        yield head


def wait(found, what):
    deadline = time.monotonic() + 120
    while not found():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def alive(processes, timeout_s):
    """Those that have not ended by then."""
    _, left = psutil.wait_procs(processes, timeout=timeout_s)
    return [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def starts(folder):
    return json.loads(folder.environment.read_text())


def test_a_killed_driver_leaves_nothing_behind_and_the_run_goes_on_in_a_cluster_that_is_there(
    cluster, store, whole, tmp_path
):
    folder = RunFolder(tmp_path / "run")
    with Started(command(store, folder.root), folder, os.environ | SOONER) as run:  # its own Ray
        run.wait_for_records(8)
        workers, everything = run.workers(), run.processes()
        assert len(workers) == 2
        run.kill()
        assert alive(workers, 30) == []
    assert newest_step(folder) >= 10
    printed = finish(
        command(store, folder.root, launch=ATTACHED), environment=cluster.environment
    ).stdout
    assert f"resuming from {folder.checkpoints}" in printed
    assert "gloo between the workers, 2 nodes" in printed
    sessions = [p for p in cluster.folder.glob("**/session_2*") if p.is_dir()]
    assert len({p.resolve() for p in sessions}) == 1, "it started a cluster of its own"
    assert cluster.processes(WORKER) == []
    assert newest_step(folder) == STEPS
    assert_same_weights(folder, whole[0])
    # Ray's own agents first try for a while to tell their dead head what they saw.
    assert alive(everything, 90) == []


def test_without_a_killed_node_a_run_goes_on_with_the_workers_that_are_left(
    cluster, store, tmp_path
):
    folder = RunFolder(tmp_path / "run")
    arguments = command(store, folder.root, train=ENDLESS, launch=ATTACHED | {"min_workers": 1})
    with Started(arguments, folder, cluster.environment) as run:
        run.wait_for_records(8)
        assert len(cluster.processes(WORKER)) == 2
        cluster.kill(cluster.nodes[1])
        wait(lambda: len(starts(folder)) == 2, "the workers were not started anew")
        run.wait_for_records(len(folder.metrics.read_text().splitlines()) + 2)
        assert [sum(start["workers"].values()) for start in starts(folder)] == [2, 1]
        run.kill()
        wait(lambda: not cluster.processes(WORKER), "a worker outlived its driver")
    steps = [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()]
    assert 0 <= max(before - after for before, after in pairwise(steps)) < 20  # two intervals


def test_a_killed_head_ends_its_jobs_and_the_run_goes_on_in_another_cluster(
    cluster, store, whole, tmp_path
):
    cluster.add_node(1)
    folder = RunFolder(tmp_path / "run")
    _, _, *arguments = command(store, folder.root, launch=ATTACHED)
    submit = ["-m", "ray.scripts.scripts", "job", "submit", "--no-wait"]
    subprocess.run(
        [sys.executable, *submit, "--address", cluster.address, "--", "python", "-m", *arguments],
        env=cluster.environment,
        check=True,
    )
    wait(lambda: folder.metrics.exists() and len(list(folder.read_metrics())) >= 8, "no steps")
    everything = cluster.processes()
    assert len(cluster.processes(WORKER)) == 2
    cluster.kill(cluster.nodes[0])
    assert alive(everything, 90) == []
    printed = finish(command(store, folder.root)).stdout
    assert f"resuming from {folder.checkpoints}" in printed
    assert_same_weights(folder, whole[0])
