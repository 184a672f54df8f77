"""Long runs of real workers that are killed, frozen and preempted, and end as if undisturbed."""

from __future__ import annotations

import json
import random
import time
from itertools import pairwise

import pytest
from shell import TERMINATED, Started, assert_same_weights, command, finish, newest_step

from launch.run_folder import RunFolder

pytestmark = [pytest.mark.long, pytest.mark.ray]

STEPS = 200
TRAIN = {"steps": STEPS, "log_every": 2, "checkpoint_every": 10}
TIMING = {"steps_per_s", "images_per_s", "unix_s", "data_wait", "memory_bytes"}


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("whole") / "run")
    finish(command(store, folder.root, train=TRAIN))
    return folder


def curve(folder: RunFolder):
    return [{n: v for n, v in r.items() if n not in TIMING} for r in folder.read_metrics()]


def repeated(folder: RunFolder) -> list[int]:
    """Steps that were taken again, at each restart."""
    steps = [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()]
    return [before - after for before, after in pairwise(steps) if after <= before]


def test_three_kills_at_random_moments_leave_no_trace_in_weights_and_losses(store, whole, tmp_path):
    chance = random.Random(11)
    folder = RunFolder(tmp_path / "run")
    arguments = command(store, folder.root, train=TRAIN, launch={"max_failures": 3})
    with Started(arguments, folder) as run:
        records = 0
        for _ in range(3):
            records += chance.randint(8, 22)
            run.wait_for_records(records)
            time.sleep(chance.random() / 4)
            chance.choice(run.workers()).kill()
            time.sleep(1)  # for what the others still had in their hands
        code, _ = run.end()
    assert code == 0
    assert len(json.loads(folder.environment.read_text())) == 4  # starts
    # Of a checkpoint under way the one before counts: at most two intervals.
    assert max(repeated(folder), default=0) < 2 * TRAIN["checkpoint_every"]
    assert_same_weights(folder, whole)
    assert curve(folder) == curve(whole)


def test_a_frozen_worker_is_noticed_and_a_preempted_run_goes_on(store, whole, tmp_path):
    folder = RunFolder(tmp_path / "run")
    arguments = command(store, folder.root, train=TRAIN, launch={"hang_s": 15})
    with Started(arguments, folder) as run:
        run.wait_for_records(8)
        run.terminate()
        code, printed = run.end()
    assert code == TERMINATED
    assert "saving a checkpoint" in printed
    saved = newest_step(folder)
    assert saved == list(folder.read_metrics())[-1]["step"]

    with Started(arguments, folder) as run:
        run.wait_for_records(8)
        frozen = run.workers()[0]
        frozen.suspend()
        code, printed = run.end()
    assert code == 0
    assert f"resuming from {folder.checkpoints}" in printed
    stacks = "".join(folder.stacks(rank).read_text() for rank in (0, 1))
    assert "Timeout (0:00:15)!" in stacks
    assert "launch/worker.py" in stacks
    assert "workers restarted" in printed
    assert_same_weights(folder, whole)
    assert curve(folder) == curve(whole)
