"""Training runs of real Ray and DeepSpeed workers: undisturbed, stopped, killed, and failing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from small_run import make_store, small_config

from launch import checkpoint
from launch.run_folder import RunFolder
from pmg.weights import load_translator

pytestmark = pytest.mark.slow

# So many that a run is still under way when a signal that follows its step 6 arrives.
STEPS = 80
INTERRUPTED = 130


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("train") / "store"
    make_store(path)
    return path


def command(store, run: Path, **sections) -> list[str]:
    """`python -m launch.train` on the small run, as a user's shell starts it."""
    sections["train"] = {"steps": STEPS, "log_every": 2, "checkpoint_every": 10} | sections.get(
        "train", {}
    )
    file = run.with_name(f"{run.name}.yaml")
    file.write_text(small_config(store, **sections).to_yaml())
    return [sys.executable, "-m", "launch.train", "--config", str(file), "--run", str(run)]


def finish(arguments: list[str], expected: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == expected, done.stdout + done.stderr
    return done


class Started:
    """A run in a process group of its own, as a terminal starts it."""

    def __init__(self, arguments: list[str], folder: RunFolder) -> None:
        self._folder = folder
        self._before = len(self._lines())
        self._process = subprocess.Popen(
            arguments, start_new_session=True, stdout=subprocess.PIPE, text=True
        )
        self._own = psutil.Process(self._process.pid)

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *error: object) -> None:
        """Leave nothing behind of a run that a failed test did not end."""
        if self._own.is_running():
            for process in [*self._own.children(recursive=True), self._own]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.wait()

    def _lines(self) -> list[str]:
        path = self._folder.metrics
        return path.read_text().splitlines() if path.exists() else []

    def wait_for_records(self, count: int) -> None:
        deadline = time.monotonic() + 240
        while len(self._lines()) < self._before + count:
            assert self._process.poll() is None, "the run ended early"
            assert time.monotonic() < deadline, f"{count} records were not written"
            time.sleep(0.05)

    def workers(self) -> list[psutil.Process]:
        children = self._own.children(recursive=True)
        return [c for c in children if "RayTrainWorker" in " ".join(c.cmdline())]

    def interrupt(self) -> None:
        """What a terminal does on Ctrl-C: it tells the whole group."""
        os.killpg(self._process.pid, signal.SIGINT)

    def end(self) -> tuple[int, str]:
        """Wait for it: its exit code and its output. No process of it may stay behind."""
        started = self._own.children(recursive=True)
        printed, _ = self._process.communicate(timeout=280)
        _, left = psutil.wait_procs(started, timeout=20)
        assert [p for p in left if p.status() != psutil.STATUS_ZOMBIE] == []
        return self._process.returncode, printed


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    """An undisturbed run, and what it printed."""
    folder = RunFolder(tmp_path_factory.mktemp("whole") / "run")
    return folder, finish(command(store, folder.root))


def assert_same_weights(one: RunFolder, other: RunFolder) -> None:
    a, b = (load_file(f.model / "model.safetensors") for f in (one, other))
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def newest_step(folder: RunFolder) -> int:
    return checkpoint.newest(folder.checkpoints).step


def test_a_run_leaves_terms_by_name_verified_checkpoints_and_a_model(whole):
    folder, _ = whole
    records = list(folder.read_metrics())
    assert [r["step"] for r in records] == list(range(2, STEPS + 1, 2))
    for i in (1, 2):
        for term in ("vae{}.kl", "vae{}.reconstruction", "cycle{}.kl", "cycle{}.kl_translated"):
            assert term.format(i) in records[0]
        for term in ("cycle{}.reconstruction", "gan{}.generator", "gan{}.discriminator"):
            assert term.format(i) in records[0]
    assert newest_step(folder) == STEPS
    model, config = load_translator(folder.model, torch.device("cpu"))
    assert config.data.spacing_mm == (3.0, 2.0, 2.0)
    assert sum(p.numel() for p in model.parameters()) > 0


def test_a_run_prints_its_progress_and_nothing_else(whole):
    folder, printed = whole
    model, first, how, *lines = printed.stdout.splitlines()
    assert model.startswith("model: 21.3 k parameters ")
    assert first == f"run {folder.root}: starting 2 workers"
    assert how == "gloo between the workers, 1 node"
    assert [line.split()[:2] for line in lines] == [
        ["step", f"{r['step']}/{STEPS}"] for r in folder.read_metrics()
    ]
    assert printed.stderr == ""


def test_ctrl_c_saves_and_the_same_command_goes_on_as_if_undisturbed(store, whole, tmp_path):
    folder = RunFolder(tmp_path / "run")
    with Started(command(store, folder.root, train={"steps": 100_000}), folder) as run:
        run.wait_for_records(3)
        run.interrupt()
        code, printed = run.end()
    assert code == INTERRUPTED
    assert "saving a checkpoint" in printed
    saved = newest_step(folder)
    assert saved == list(folder.read_metrics())[-1]["step"] >= 6
    load_translator(folder.model, torch.device("cpu"))

    with Started(command(store, folder.root), folder) as run:
        run.wait_for_records(1)
        run.interrupt()
        time.sleep(0.2)
        run.interrupt()  # this time twice: it ends without saving
        code, printed = run.end()
    assert code == INTERRUPTED
    assert f"resuming from {folder.checkpoints}" in printed
    assert newest_step(folder) < STEPS

    finish(command(store, folder.root))
    assert newest_step(folder) == STEPS
    assert_same_weights(folder, whole[0])


def test_a_killed_worker_costs_the_steps_since_the_last_checkpoint_only(store, whole, tmp_path):
    folder = RunFolder(tmp_path / "run")
    with Started(command(store, folder.root), folder) as run:
        run.wait_for_records(3)
        workers = run.workers()
        assert len(workers) == 2
        workers[0].kill()
        code, _ = run.end()
    assert code == 0
    steps = [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()]
    repeated = [before - after for before, after in pairwise(steps)]
    assert max(repeated) < 10  # checkpoint_every
    assert_same_weights(folder, whole[0])


def test_an_error_that_would_come_again_ends_the_run_at_once_and_in_one_line(store, tmp_path):
    make_store(tmp_path / "store")
    damaged = tmp_path / "store"
    for shard in (damaged / "volumes").glob("ct-2-1-*/c/*/*/*"):
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    folder = RunFolder(tmp_path / "run")
    printed = finish(command(damaged, folder.root), expected=1)
    error, _, begins, *_, where = printed.stderr.splitlines()
    assert error.startswith("Error: volume ct-2-1: ")
    assert begins.startswith("Traceback")
    assert where == f"the same is in {folder.failure}"
    assert "actor" not in printed.stderr
    assert len(printed.stderr.splitlines()) < 60
    assert "workers restarted" not in printed.stdout
