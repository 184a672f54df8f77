"""What each rank does: open the stream, advance the training, log, save, stop."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import psutil
import ray.train
import torch
import torch.distributed as dist
from torch import Tensor

from launch.engine import DeepSpeedEngine
from launch.environment import describe
from launch.failure import recorded, worker_log
from launch.laps import Laps
from launch.run_folder import RunFolder
from launch.saver import Saver
from launch.skipped import SkippedSteps
from launch.tracking import Tracking, tracking
from launch.watchdog import watchdog
from pmg.config import Config
from pmg.patches import PatchBatch, on_device
from pmg.step import Outcome
from pmg.training import Training, averaged_copy, build_modules, compile_networks
from storage.store import Store
from storage.stream import PatchStream, open_stream

__all__ = ["Meter", "Observer", "train_worker"]

_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Looks at a training before each of its checkpoints; picklable."""

    def __call__(self, training: Training) -> Mapping[str, Any]:
        """What rank 0 writes to the run's observations. All ranks call, between collectives."""
        ...


def train_worker(arguments: dict[str, Any], laps: Laps) -> None:
    """Ray Train's loop on one worker: from the newest good checkpoint to the last step.

    arguments: `config` (a dumped Config with data.store set), `run` (the run folder's path) and
    `observer` (an Observer or None) and `force` (go on from checkpoints that other settings wrote).
    """
    config, force = Config.model_validate(arguments["config"]), arguments["force"]
    folder = RunFolder(Path(arguments["run"]))
    rank = dist.get_rank()
    if not folder.config.is_file():
        raise FileNotFoundError(
            f"run {folder.root}: rank {rank} on {socket.gethostname()} does not see this folder; "
            f"expected one on a file system that all nodes share"
        )
    with worker_log(folder, rank), recorded(folder, rank):
        _log.info("rank %d of %d, %s", rank, dist.get_world_size(), dist.get_backend())
        _train(config, folder, rank, arguments["observer"], laps, force=force)


def _train(
    config: Config,
    folder: RunFolder,
    rank: int,
    observer: Observer | None,
    laps: Laps,
    *,
    force: bool,
) -> None:
    assert config.data.store is not None
    torch.set_num_threads(max(1, int(config.launch.cpus_per_worker)))
    world_size = dist.get_world_size()
    with laps.of("data"):
        store = Store.open(config.data.store)
    with laps.of("engines"):
        modules = build_modules(config)
        averaged = averaged_copy(modules[0], config)
        compile_networks(*modules, config)
        translator, critic = (DeepSpeedEngine(module, config) for module in modules)
    training = Training(
        config,
        translator,
        critic,
        device=translator.device,
        averaged=averaged.to(translator.device) if averaged is not None else None,
    )
    saver = Saver(training, translator, critic, folder, store.digest, force=force)
    with laps.of("resume"):
        saver.resume()
    start = describe(training.step)
    if rank == 0:
        folder.add_start(start)
    with (
        open_stream(
            store,
            config.data,
            seed=config.train.seed,
            rank=rank,
            world_size=world_size,
            global_batch=config.train.batch,
            start_step=training.step,
        ) as stream,
        tracking(config, folder, training.step) as tracker,
    ):
        _log.info(
            "from step %d to %d, %d ranks; the stream takes up to %d MiB; until here %s",
            training.step,
            config.train.steps,
            world_size,
            stream.memory_bound_bytes >> 20,
            ", ".join(f"{name} {seconds:.2f} s" for name, seconds in laps.seconds().items()),
        )
        saver.on_sealed = tracker.saved
        with watchdog(folder.stacks(rank), config.launch.hang_s) as alive:
            _run(training, stream, saver, folder, tracker, alive, observer, laps)


def _run(
    training: Training,
    stream: PatchStream,
    saver: Saver,
    folder: RunFolder,
    tracker: Tracking,
    alive: Callable[[], None],
    observer: Observer | None,
    laps: Laps,
) -> None:
    """Steps until the last, a stop or an error; what is under way of a checkpoint is ended."""
    config = training.config.train
    meter = Meter(training.step, config.batch)
    skipped = SkippedSteps(saver.skipped, config.max_skipped)
    with closing(on_device(stream, training.device)) as batches:
        while training.step < config.steps:
            with laps.of("data"):
                batch = meter.timed_next(batches)
            with laps.of("steps"):
                outcome = training.advance(batch)
                meter.add(outcome)
                skipped.add(training.step, batch, outcome)
            tracker.panel(training, batch)
            alive()
            last = training.step == config.steps
            if training.step % config.log_every and not last:
                continue
            record, stop = meter.summary(training.step, stop=folder.stop_request.exists())
            record |= skipped.report()
            if dist.get_rank() == 0:
                folder.append_metrics(record)
            tracker.log(record)
            due = last or training.step % config.checkpoint_every == 0
            if due and observer is not None:  # first: a checkpoint's step has been observed
                with laps.of("evaluation"), training.translator.whole():
                    found = observer(training)
                if dist.get_rank() == 0:
                    seen = {"step": training.step, "metrics": record, "seconds": laps.seconds()}
                    folder.append_observation(seen | dict(found))
                alive()
            if due or stop:
                with laps.of("checkpoint"):
                    saver.save(record)
                ray.train.report(record)
            else:
                saver.seal(wait=False)
            meter.restart(training.step)
            if stop:
                break
        saver.finish()
    if training.step < config.steps:
        _log.info("stopped as asked after step %d", training.step)


class Meter:
    """Means of the terms since the last start, over steps and ranks; time and its shares.

    The means are over the steps that were not skipped; NaN if all were.

    `data_wait` is the share of the time in which the rank that waited most waited for its stream's
    next batch: the others wait for that rank in their next all-reduce. On a GPU it is an upper
    bound, since kernels that are still queued run on meanwhile. `memory_bytes` is that of the rank
    that needs most: the most its GPU has held, or what its process holds.
    """

    def __init__(self, step: int, batch: int) -> None:
        """batch: patch pairs per step over all ranks."""
        self._batch = batch
        self.restart(step)

    def restart(self, step: int) -> None:
        """Begin anew after a summary, and after what was done with it: saving is no step's time."""
        self._step = step
        self._started = time.monotonic()
        self._waited = 0.0
        self._sums: dict[str, Tensor] = {}
        self._taken: Tensor | float = 0.0

    def timed_next(self, batches: Iterator[PatchBatch]) -> PatchBatch:
        before = time.monotonic()
        batch = next(batches)
        self._waited += time.monotonic() - before
        return batch

    def add(self, outcome: Outcome) -> None:
        """A step that was skipped counts for nothing in the means."""
        counts = 1 - outcome.skipped
        self._taken = self._taken + counts
        for name, value in outcome.terms.items():
            kept = torch.where(counts > 0, value, 0.0)
            self._sums[name] = self._sums[name] + kept if name in self._sums else kept

    def summary(self, step: int, *, stop: bool) -> tuple[dict[str, Any], bool]:
        """Reduce over the ranks; all agree on whether any of them was asked to stop."""
        steps, seconds = step - self._step, time.monotonic() - self._started
        means = torch.stack([v.float() for v in self._sums.values()]) / self._taken
        most = torch.tensor(
            [self._waited / seconds, float(stop), float(_memory_bytes())],
            dtype=torch.float64,
            device=means.device,
        )
        dist.all_reduce(means)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        means /= dist.get_world_size()
        waited, stops, memory_bytes = most.tolist()
        record = {"step": step, "unix_s": time.time(), "steps_per_s": steps / seconds}
        record["images_per_s"] = 2 * self._batch * record["steps_per_s"]
        record |= {"data_wait": waited, "memory_bytes": int(memory_bytes)}
        record |= dict(zip(self._sums, means.tolist(), strict=True))
        return record, stops > 0


def _memory_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    resident: int = psutil.Process().memory_info().rss
    return resident
