"""The figures that a run logs of itself."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from launch import worker
from launch.worker import Meter
from pmg.step import Outcome


class Clock:
    """Goes on only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


def outcome(loss: float, *, skipped: int) -> Outcome:
    flag, none = torch.tensor(float(skipped)), torch.tensor([False])
    return Outcome({"loss": torch.tensor(loss)}, flag, flag, none, none, none)


def _rank(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", f"file://{folder / 'rendezvous'}", world_size=2, rank=rank)
    clock = worker.time = Clock()  # type: ignore[assignment]
    waits = ((0.0, 0.5), (1.0, 0.5))[rank]

    def batches():
        for step in itertools.count():
            clock.now += waits[step % 2]
            yield step

    meter, stream = Meter(step=10, batch=8), batches()
    for interval in range(2):
        for _ in range(4):
            meter.timed_next(stream)
            clock.now += 1.0  # the step
            meter.add(outcome(float(rank + interval), skipped=0))
            meter.add(outcome(math.nan, skipped=1))
        record, stop = meter.summary(14 + 4 * interval, stop=rank == 1 and interval == 1)
        clock.now += 60.0  # a checkpoint
        meter.restart(14 + 4 * interval)
        # Rank 0 waits for 1 s of 5 s, rank 1 for 3 s of 7 s.
        assert record["data_wait"] == pytest.approx(3 / 7)
        assert record["steps_per_s"] == pytest.approx(4 / (5, 7)[rank])
        assert record["images_per_s"] == pytest.approx(16 * record["steps_per_s"])
        assert 1e7 < record["memory_bytes"] < 1e11
        assert record["loss"] == pytest.approx(0.5 + interval)
        assert stop == (interval == 1)
    dist.destroy_process_group()


@pytest.mark.slow
def test_data_wait_is_that_of_the_slowest_rank_without_the_time_of_saving(tmp_path: Path) -> None:
    mp.spawn(_rank, (tmp_path,), nprocs=2)
