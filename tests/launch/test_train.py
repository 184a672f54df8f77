"""Training runs of real Ray and DeepSpeed workers: undisturbed, stopped, killed, and failing."""

from __future__ import annotations

import json
import time
from itertools import pairwise

import pytest
import torch
from shell import INTERRUPTED, STEPS, Started, assert_same_weights, command, finish, newest_step
from small_run import make_store

from launch.run_folder import RunFolder
from pmg.weights import load_translator

pytestmark = [pytest.mark.slow, pytest.mark.ray]


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
    assert len(printed.stderr.splitlines()) < 120
    assert "workers restarted" not in printed.stdout
