"""Searches whose driver, worker and node are killed, each started as its user does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from optuna.trial import TrialState
from small_search import EVERY, assert_whole, first_steps, saved, written

from tune.study import load_study

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.ray]


def arguments(file: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "tune.search", "--config", str(file), "--out", str(out), *more]


def finish(command: list[str], expected: int = 0) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=540)
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stdout + done.stderr


class Killed:
    """A search in a group of its own, to be killed."""

    def __init__(self, command: list[str], log: Path, **environment: str) -> None:
        self._log = log.open("w")
        self.process = subprocess.Popen(
            command,
            start_new_session=True,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
        )

    def __enter__(self) -> Killed:
        return self

    def __exit__(self, *error: object) -> None:
        own = psutil.Process(self.process.pid) if self.process.poll() is None else None
        for one in [] if own is None else [*own.children(recursive=True), own]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        self.process.wait()
        self._log.close()

    def wait_for(self, condition, what: str) -> None:
        deadline = time.monotonic() + 480
        while not condition():
            assert self.process.poll() is None, Path(self._log.name).read_text()
            assert time.monotonic() < deadline, what
            time.sleep(0.1)

    def descendants(self, word: str) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [one for one in children if word in " ".join(one.cmdline())]


def test_a_killed_driver_and_a_killed_worker_cost_no_trial(store, tmp_path):
    steps = 500  # so many that a trial is still under way when it is killed
    out = tmp_path / "search"
    file = written(tmp_path, store, steps=steps, resources={"most_at_once": 2})
    with Killed(arguments(file, out), tmp_path / "log") as search:
        search.wait_for(lambda: len(saved(out)) == 2, "two trials saved nothing")
        search.process.send_signal(signal.SIGKILL)
        search.process.wait()
    running = [t.number for t in load_study(str(out)).trials if t.state is TrialState.RUNNING]
    assert running == [0, 1]
    time.sleep(3)  # Ray's processes end when their driver is gone

    with Killed(arguments(file, out, "--resume"), tmp_path / "log2") as search:
        search.wait_for(
            lambda: all(len(first_steps(one)) == 2 for one in saved(out)), "not gone on with"
        )
        (worker, *_) = search.descendants("RayTrainWorker")
        worker.kill()
        assert search.process.wait(540) == 0, (tmp_path / "log2").read_text()
    assert_whole(out, 3, steps)
    begun = [first_steps(out / "trials" / f"trial_{number:04d}") for number in (0, 1)]
    for lives in begun:
        assert lives[0] == 0
        assert all(step >= EVERY for step in lives[1:])  # from checkpoints
    assert max(len(lives) for lives in begun) >= 3  # the one whose worker was killed
    before = (out / "study.journal").read_text()
    finish(arguments(file, out, "--resume"))  # nothing is left to do
    assert_whole(out, 3, steps)
    new = (out / "study.journal").read_text()[len(before) :]
    assert all(json.loads(line)["op_code"] not in (4, 6) for line in new.splitlines())


def test_trials_that_fill_a_cluster_do_not_wait_for_each_other_and_a_dead_node_costs_none(
    store, tmp_path
):
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    os.environ["RAY_AUTH_MODE"] = "disabled"
    steps = 400
    out = tmp_path / "search"
    options = {"object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **options})
    try:
        cluster.add_node(num_cpus=3, **options)
        lost = cluster.add_node(num_cpus=1, **options)
        # Two workers a trial on 3 + 1 CPUs: two trials take all of it.
        file = written(tmp_path, store, steps=steps, resources={"workers": 2})
        search = arguments(file, out)
        with Killed(search, tmp_path / "log", RAY_ADDRESS=cluster.address) as one:
            one.wait_for(lambda: len(saved(out)) == 2, "two trials at once saved nothing")
            cluster.remove_node(lost, allow_graceful=False)
            assert one.process.wait(540) == 0, (tmp_path / "log").read_text()
    finally:
        cluster.shutdown()
    assert_whole(out, 3, steps)
