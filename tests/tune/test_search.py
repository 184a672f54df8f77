"""Searches of real trainings: undisturbed, with the driver, a worker and a node killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import optuna
import psutil
import pytest
import yaml
from click.testing import CliRunner
from optuna.trial import TrialState
from small_run import make_store, small_config

from launch import checkpoint
from pmg.cli.tune import command as tune_command
from pmg.config import load_config
from tune.study import counted, load_study

optuna.logging.set_verbosity(optuna.logging.WARNING)
pytestmark = pytest.mark.slow

STEPS, EVERY = 40, 20


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("search") / "store"
    make_store(path)
    return path


def written(folder: Path, store: Path, steps: int = STEPS, **changed: object) -> Path:
    """tune.yaml of a small search; of four patients it holds out one of each domain."""
    base = folder / "base.yaml"
    base.write_text(small_config(store, data={"patch": (32, 32)}).to_yaml())
    search = {
        "base": {"config": str(base), "overrides": ["data.validation_fraction=0.5"]},
        "space": {
            "prior.components": {"int": [1, 8], "log": True},
            "prior.min_weight": {"float": [1e-4, 1e-2], "log": True, "if": "prior.components > 1"},
            "loss.lambda_kl": {"float": [1e-3, 1.0], "log": True},
        },
        "points": ["unit"],
        "objectives": ["sliced_wasserstein"],
        "pruner": {"name": "none"},
        "budget": {"trials": 3, "steps": steps, "evaluate_every": EVERY},
        "final": {"points": 0},
    }
    file = folder / "tune.yaml"
    file.write_text(yaml.safe_dump(search | changed))
    return file


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


def saved(out: Path) -> list[Path]:
    """Trials' folders that hold a sealed checkpoint."""
    folders = sorted(out.glob("trials/trial_*"))
    return [f for f in folders if checkpoint.newest(f / "checkpoints") is not None]


def first_steps(trial: Path) -> list[int]:
    """The step at which each life of a trial's workers began."""
    log = (trial / "logs" / "rank_0.log").read_text()
    return [int(line.split("from step ")[1].split()[0]) for line in log.splitlines()
            if "launch.worker: from step" in line]  # fmt: skip


def assert_whole(out: Path, trials: int, steps: int) -> optuna.Study:
    """Every trial is complete, counted once, and has trained to the end."""
    study = load_study(str(out))
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * trials
    assert len(counted(study.trials)) == trials
    for trial in study.trials:
        newest = checkpoint.newest(Path(trial.user_attrs["run"]) / "checkpoints")
        assert newest.step == steps
        assert list(trial.intermediate_values) == list(range(EVERY, steps + 1, EVERY))
    runs = Counter(trial.user_attrs["run"] for trial in study.trials)
    assert set(runs.values()) == {1}
    return study


def test_a_search_ends_with_a_configuration_that_trains_and_a_report(store, tmp_path):
    out = tmp_path / "search"
    file = written(tmp_path, store, final={"points": 1, "seeds": [7]})
    printed = finish(arguments(file, out))
    study = assert_whole(out, 3, STEPS)
    assert study.trials[0].params["prior.components"] == 1  # unit, tried first
    assert "prior.min_weight" not in study.trials[0].params
    assert "trial 0 complete at step 40  sliced_wasserstein " in printed
    (final,) = load_study(str(out), "pmg-final").trials
    assert final.state is TrialState.COMPLETE
    assert load_config(Path(final.user_attrs["run"]) / "config.yaml").train.seed == 7
    assert final.params == study.best_trial.params

    best = load_config(out / "best.yaml")
    assert best.prior.components == study.best_trial.params["prior.components"]
    assert best.loss.lambda_kl == study.best_trial.params["loss.lambda_kl"]
    assert best.train.steps == small_config(store).train.steps  # the base's, not a trial's

    told = finish(arguments(file, out), expected=1)
    assert "add --resume" in told
    shown = CliRunner().invoke(tune_command, ["report", str(out)])
    assert shown.exit_code == 0, shown.output
    page = (out / "report.html").read_text()
    for part in ("History", "Importances", "Slices", "Parallel coordinates", "Timeline",
                 "side by side", "worker hours", "no translation", "Retrained"):  # fmt: skip
        assert part in page, part
    assert "<script src=" not in page  # self-contained


@pytest.mark.long
def test_a_killed_driver_and_a_killed_worker_cost_no_trial(store, tmp_path):
    steps = 1200  # so many that a trial is still under way when it is killed
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


@pytest.mark.long
def test_trials_that_fill_a_cluster_do_not_wait_for_each_other_and_a_dead_node_costs_none(
    store, tmp_path
):
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    os.environ["RAY_AUTH_MODE"] = "disabled"
    steps = 800
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
