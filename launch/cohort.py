"""A cohort's items over a cluster: Ray Data hands them to actors that each hold a model.

An item that fails is told and left out, and so is one whose process dies again and again; all else
goes on. Every node must see the paths that an item names.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import click
import numpy as np
import ray
import ray.data
import torch
from rich.console import Console

from launch.room import living_nodes, make_room, places

__all__ = ["Outcome", "Share", "over_cluster", "share_options", "show_outcome"]

Item = TypeVar("Item")
Result = TypeVar("Result")
F = TypeVar("F", bound=Callable[..., Any])

# A node that goes takes its actor's item along, which is then done again; an item that ends its
# process so often would end every process.
_RETRIES = 2
_DIED = "its process died three times: killed, out of memory, or crashed in a library"


@dataclass(frozen=True)
class Share:
    """What each actor is given, and how many there may be; None: as many as the cluster holds."""

    workers: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    memory_bytes: int = 4 << 30

    def room(self) -> int:
        """How many actors the cluster holds, grown for `workers` of them if it scales itself.

        Raises ValueError for none.
        """
        amounts = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory_bytes}
        needs = {name: need for name, need in amounts.items() if need}
        make_room(needs, self.workers or 1)
        room = places(living_nodes(), needs)
        if room < 1:
            there = ray.cluster_resources()
            raise ValueError(
                f"the cluster has {there.get('CPU', 0):g} cores, {there.get('GPU', 0):g} GPUs and "
                f"{there.get('memory', 0):.3g} bytes of memory; one worker needs {self.cpus:g}, "
                f"{self.gpus:g} and {self.memory_bytes:.3g} on one node"
            )
        return room if self.workers is None else min(room, self.workers)


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What became of the item at `index`: a result, or why there is none, in one line."""

    index: int
    result: Result | None
    failure: str | None
    seconds: float


def over_cluster(
    start: Callable[[], Callable[[Item], Result]], items: Sequence[Item], share: Share
) -> Iterator[Outcome[Result]]:
    """The items' outcomes as they come. Ray must be running.

    start: picklable; called once in every actor for what does the work, such as a loaded model.
    """
    if not items:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # an item that cannot be done ends no cohort
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # nor is it worth pages of traceback
    rows = [{"index": n, "item": pickle.dumps(item)} for n, item in enumerate(items)]
    outcomes: ray.data.Dataset = ray.data.from_items(
        rows, override_num_blocks=len(rows)
    ).map_batches(
        _Actor,
        fn_constructor_args=(pickle.dumps(start), share.cpus),
        batch_size=1,
        batch_format="numpy",
        # One at a time: what waits at an actor dies with it, as often as the item in work.
        compute=ray.data.ActorPoolStrategy(
            min_size=1, max_size=min(share.room(), len(rows)), max_tasks_in_flight_per_actor=1
        ),
        num_cpus=share.cpus,
        num_gpus=share.gpus,
        memory=share.memory_bytes,
        max_task_retries=_RETRIES,  # Ray 2.60 has no named parameter for it, and 2.64 drops others
    )
    missing = set(range(len(items)))
    for row in outcomes.iter_rows():
        outcome: Outcome[Result] = Outcome(int(row["index"]), *pickle.loads(row["outcome"]))
        missing.discard(outcome.index)
        yield outcome
    for index in sorted(missing):
        yield Outcome(index, None, _DIED, 0.0)


class _Actor:
    """What `start` made, on whichever node Ray starts this."""

    def __init__(self, start: bytes, cpus: float) -> None:
        torch.set_num_threads(max(1, int(cpus)))
        self._work = pickle.loads(start)()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        outcomes = [self._outcome(pickle.loads(item)) for item in batch["item"]]
        return {"index": batch["index"].tolist(), "outcome": outcomes}

    def _outcome(self, item: object) -> bytes:
        started = time.monotonic()
        result, failure = None, None
        try:
            result = self._work(item)
        except Exception as error:  # hostile files raise whatever their libraries raise
            lines = str(error).splitlines() or [""]
            failure = f"{type(error).__name__}: {lines[0]}"
        return pickle.dumps((result, failure, time.monotonic() - started))


def show_outcome(
    console: Console, done: int, total: int, what: str, started: float, failure: str | None
) -> None:
    """One line for an item, with the time that is left at this pace."""
    left = (time.monotonic() - started) / done * (total - done)
    minutes, seconds = divmod(round(left), 60)
    verdict = "done" if failure is None else "failed"
    said = f": {failure}" if failure else ""
    console.print(
        f"[{done}/{total}, {minutes}:{seconds:02} left] {verdict}  {what}{said}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def share_options(command: F) -> F:
    """--address, --workers, --cpus, --gpus and --memory."""
    for option in (
        click.option(
            "--memory", default=4.0, show_default=True, help="GiB that Ray reserves for each"
        ),
        click.option("--gpus", default=0.0, show_default=True, help="of each worker"),
        click.option("--cpus", default=1.0, show_default=True, help="of each worker"),
        click.option(
            "--workers",
            type=click.IntRange(min=1),
            help="at most; by default as many as the cluster holds",
        ),
        click.option("--address", help="of a Ray cluster, such as auto; none: a local one"),
    ):
        command = option(command)
    return command
