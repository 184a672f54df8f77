"""What each rank does: open the stream, advance the training, log, save, stop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from torch import Tensor

from launch import checkpoint
from launch.engine import DeepSpeedEngine
from launch.run_folder import RunFolder
from pmg.config import Config
from pmg.training import Training, averaged_copy, build_modules
from pmg.weights import save_translator
from storage.store import Store
from storage.stream import Batch, PatchStream, open_stream

__all__ = ["train_worker"]

_log = logging.getLogger(__name__)


def train_worker(arguments: dict[str, Any]) -> None:
    """Ray Train's loop on one worker: from the newest good checkpoint to the last step.

    arguments: `config` (a dumped Config with data.store set) and `run` (the run folder's path).
    """
    config = Config.model_validate(arguments["config"])
    folder = RunFolder(Path(arguments["run"]))
    assert config.data.store is not None
    torch.set_num_threads(max(1, int(config.launch.cpus_per_worker)))
    rank, world_size = dist.get_rank(), dist.get_world_size()

    store = Store.open(config.data.store)
    modules = build_modules(config)
    averaged = averaged_copy(modules[0], config)
    translator, critic = (DeepSpeedEngine(module, config) for module in modules)
    training = Training(
        config,
        translator,
        critic,
        device=translator.device,
        averaged=averaged.to(translator.device) if averaged is not None else None,
    )
    saver = _Saver(training, translator, critic, folder, store.digest)
    saver.resume()
    with open_stream(
        store,
        config.data,
        seed=config.train.seed,
        rank=rank,
        world_size=world_size,
        global_batch=config.train.batch,
        start_step=training.step,
    ) as stream:
        _run(training, stream, saver, folder)


def _run(training: Training, stream: PatchStream, saver: _Saver, folder: RunFolder) -> None:
    config = training.config.train
    meter = _Meter(training.step)
    while training.step < config.steps:
        terms = training.advance(meter.timed_next(stream))
        meter.add(terms)
        last = training.step == config.steps
        if training.step % config.log_every and not last:
            continue
        record, stop = meter.summary(training.step, stop=folder.stop_request.exists())
        if dist.get_rank() == 0:
            folder.append_metrics(record)
        _refuse_nan(record)
        if last or stop or training.step % config.checkpoint_every == 0:
            saver.save()
            ray.train.report(record)
        if stop:
            _log.info("stopped as asked after step %d", training.step)
            return


class _Meter:
    """Means of the terms since the last summary, over steps and ranks; time and its shares."""

    def __init__(self, step: int) -> None:
        self._reset(step)

    def _reset(self, step: int) -> None:
        self._step = step
        self._started = time.monotonic()
        self._waited = 0.0
        self._sums: dict[str, Tensor] = {}

    def timed_next(self, stream: Iterator[Batch]) -> Batch:
        before = time.monotonic()
        batch = next(stream)
        self._waited += time.monotonic() - before
        return batch

    def add(self, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def summary(self, step: int, *, stop: bool) -> tuple[dict[str, Any], bool]:
        """Reduce over the ranks; all agree on whether any of them was asked to stop."""
        steps, seconds = step - self._step, time.monotonic() - self._started
        own = [self._waited / seconds, float(stop)]
        sums = torch.stack([v.float() for v in self._sums.values()]) / steps
        values = torch.cat([sums, torch.tensor(own, device=sums.device)])
        dist.all_reduce(values)
        *means, waited, stops = (values / dist.get_world_size()).tolist()
        record = {"step": step, "unix_s": time.time(), "steps_per_s": steps / seconds}
        record |= {"data_wait": waited} | dict(zip(self._sums, means, strict=True))
        self._reset(step)
        return record, stops > 0


class _Saver:
    """Checkpoints of this run: written by all ranks, sealed by rank 0."""

    def __init__(
        self,
        training: Training,
        translator: DeepSpeedEngine,
        critic: DeepSpeedEngine,
        folder: RunFolder,
        catalogue_digest: str,
    ) -> None:
        self._training, self._folder = training, folder
        self._engines = {"translator": translator, "critic": critic}
        self._catalogue_digest = catalogue_digest

    def save(self) -> None:
        training, folder = self._training, self._folder
        partial = checkpoint.partial_folder(folder.checkpoints, training.step)
        for name, engine in self._engines.items():
            engine.save(partial / name)
        dist.barrier()
        if dist.get_rank() == 0:
            if training.averaged is not None:
                torch.save(training.averaged.state_dict(), partial / "averaged.pt")
            state = {
                "step": training.step,
                "world_size": dist.get_world_size(),
                "zero_stage": training.config.launch.zero_stage,
                "catalogue": self._catalogue_digest,
            }
            checkpoint.commit(partial, state)
            checkpoint.prune(folder.checkpoints, training.config.train.keep)
            save_translator(training.translating_model, training.config, folder.model)
        dist.barrier()

    def resume(self) -> None:
        """Go on from the newest good checkpoint, if there is one and it belongs to this run."""
        training = self._training
        found = checkpoint.newest(self._folder.checkpoints)
        if found is None:
            return
        state = checkpoint.read_state(found)
        self._refuse_other("world_size", state, dist.get_world_size(), "launch.workers", found)
        stage = training.config.launch.zero_stage
        self._refuse_other("zero_stage", state, stage, "launch.zero_stage", found)
        self._refuse_other("catalogue", state, self._catalogue_digest, "data.store", found)
        for name, engine in self._engines.items():
            engine.load(found / name)
        if training.averaged is not None:
            weights = torch.load(found / "averaged.pt", map_location="cpu", weights_only=True)
            training.averaged.load_state_dict(weights)
        training.step = state["step"]
        if dist.get_rank() == 0:
            _log.info("resumed from %s", found)

    @staticmethod
    def _refuse_other(
        name: str, state: dict[str, Any], now: object, setting: str, found: Path
    ) -> None:
        if state[name] != now:
            raise checkpoint.CheckpointError(
                f"checkpoint {found}: written with {name} {state[name]}, but {setting} gives {now};"
                f" resume with the same, or train into another folder"
            )


def _refuse_nan(record: dict[str, Any]) -> None:
    bad = [name for name, value in record.items() if not math.isfinite(value)]
    if bad:
        raise FloatingPointError(
            f"step {record['step']}: {', '.join(bad)} is not finite; lower optim.lr, or resume "
            f"from the last checkpoint with another train.seed"
        )
