"""Training runs of real Ray and DeepSpeed workers: a whole one, stopped ones, killed ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise

import psutil
import pytest
import torch
from safetensors.torch import load_file
from small_run import make_store, small_config

from launch import checkpoint
from launch.run_folder import RunFolder
from pmg.weights import load_translator

pytestmark = pytest.mark.slow

STEPS = 12


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("train") / "store"
    make_store(path)
    return path


def command(store, run, **train):
    """`python -m launch.train` on the small run, as a user's shell starts it."""
    config = small_config(store, train={"batch": 4, "log_every": 2, "checkpoint_every": 4} | train)
    file = run.with_name(f"{run.name}.yaml")
    file.write_text(config.to_yaml())
    return [sys.executable, "-m", "launch.train", "--config", str(file), "--run", str(run)]


def finish(arguments):
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def start_until(arguments, folder, step):
    """Start a run in its own process group and wait until it has logged `step`."""
    process = subprocess.Popen(arguments, start_new_session=True, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not any(r["step"] >= step for r in folder.read_metrics()):
        assert process.poll() is None, "the run ended early"
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.1)
    return process


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    """An undisturbed run."""
    folder = RunFolder(tmp_path_factory.mktemp("whole") / "run")
    finish(command(store, folder.root, steps=STEPS))
    return folder


def assert_same_weights(one, other):
    a, b = (load_file(f.model / "model.safetensors") for f in (one, other))
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def test_a_run_leaves_terms_by_name_checkpoints_and_a_model(whole):
    records = list(whole.read_metrics())
    assert [r["step"] for r in records] == list(range(2, STEPS + 1, 2))
    for i in (1, 2):
        for term in ("vae{}.kl", "vae{}.reconstruction", "cycle{}.kl", "cycle{}.kl_translated"):
            assert term.format(i) in records[0]
        for term in ("cycle{}.reconstruction", "gan{}.generator", "gan{}.discriminator"):
            assert term.format(i) in records[0]
    newest = checkpoint.newest(whole.checkpoints)
    assert checkpoint.read_state(newest)["step"] == STEPS
    model, config = load_translator(whole.model, torch.device("cpu"))
    assert config.data.spacing_mm == (3.0, 2.0, 2.0)
    assert sum(p.numel() for p in model.parameters()) > 0


def test_ctrl_c_leaves_a_checkpoint_from_which_the_run_ends_as_if_undisturbed(
    store, whole, tmp_path
):
    folder = RunFolder(tmp_path / "run")
    # Long enough that it cannot end by itself first; the learning rate does not depend on it.
    process = start_until(command(store, folder.root, steps=100_000), folder, 6)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "saving a checkpoint" in printed
    stopped = checkpoint.read_state(checkpoint.newest(folder.checkpoints))["step"]
    assert stopped >= 6
    load_translator(folder.model, torch.device("cpu"))

    undisturbed = RunFolder(tmp_path / "undisturbed")
    assert "resuming from" in finish(command(store, folder.root, steps=stopped + 4))
    finish(command(store, undisturbed.root, steps=stopped + 4))
    assert_same_weights(folder, undisturbed)


def test_a_killed_worker_costs_the_steps_since_the_last_checkpoint_only(store, tmp_path):
    folder = RunFolder(tmp_path / "run")
    process = start_until(command(store, folder.root, steps=60), folder, 6)
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "RayTrainWorker" in " ".join(child.cmdline())
    ]
    assert len(workers) == 2
    os.kill(workers[0].pid, signal.SIGKILL)
    process.communicate(timeout=280)
    assert process.returncode == 0
    steps = [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()]
    assert steps[-1] == 60
    back = [a - b for a, b in pairwise(steps) if b <= a]
    assert len(back) <= 1
    assert all(lost < 4 + 2 for lost in back)
