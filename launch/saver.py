"""Saving and resuming a run on all ranks together; files are written beside the training."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from launch import checkpoint
from launch.checkpoint import Checkpoint, CheckpointError
from launch.code import source_digest
from launch.engine import DeepSpeedEngine
from launch.run_folder import RunFolder
from pmg.model import Translator
from pmg.training import Training, build_modules
from pmg.weights import save_translator

__all__ = ["Saver"]

_FILE_BYTES = 512 * 2**20  # so much of a rank's share is in memory once more while it is written
_FAILURES = 3  # in a row: then the run ends, for it could not be resumed near where it is
_log = logging.getLogger(__name__)


class Saver:
    """Checkpoints of this run. All ranks must call alike.

    Every rank copies its share of the tensors to the host and writes it in a thread; when all
    have, rank 0 seals the checkpoint. Until then it does not count.
    """

    def __init__(
        self,
        training: Training,
        translator: DeepSpeedEngine,
        critic: DeepSpeedEngine,
        folder: RunFolder,
        catalogue: str,
        *,
        force: bool = False,
    ) -> None:
        self._training, self._folder, self._force = training, folder, force
        self._translator = translator
        self._parts: dict[str, DeepSpeedEngine | _Plain] = {
            "translator": translator,
            "critic": critic,
        }
        if training.averaged is not None:
            self._parts["averaged"] = _Plain(training.averaged)
        self._identity = checkpoint.identity(training.config, catalogue)
        self._place = checkpoint.place_of(training.config, folder)
        self._pending: _Write | None = None
        self._failures = 0
        self.skipped = 0  # steps, in the run that was resumed
        self.on_sealed: Callable[[int], None] = lambda step: None
        self._exported: Translator | None = None

    def save(self, metrics: Mapping[str, Any]) -> None:
        """Begin a checkpoint at this step; the model goes beside it. Ends the one before first."""
        self.seal(wait=True)
        training, rank, size = self._training, dist.get_rank(), dist.get_world_size()
        share = {
            part: {
                name: value.detach().to("cpu", copy=True)
                for number, (name, value) in enumerate(module.tensors())
                if number % size == rank
            }
            for part, module in self._parts.items()
        }
        self._export()
        state = {
            "step": training.step,
            # Patches, noise and samples are functions of (seed, sample): no other state of theirs.
            "stream": {
                "seed": training.config.train.seed,
                "next_sample": training.step * training.config.train.batch,
            },
            "skipped": metrics["skipped"],
            "metrics": {n: v if _finite(v) else None for n, v in metrics.items()},
            "identity": self._identity,
            "config": training.config.model_dump(mode="json"),
            "written_by": {
                "workers": size,
                "zero_stage": training.config.launch.zero_stage,
                "code": source_digest(),
                **{name: version(name) for name in ("torch", "deepspeed", "ray")},
            },
        }
        self._pending = _Write(state, partial(self._write, training.step, share))

    def seal(self, *, wait: bool) -> None:
        """Seal the checkpoint under way, if all ranks have written their share of it.

        wait: until they have. Raises CheckpointError when three could not be written in a row.
        """
        pending = self._pending
        if pending is None:
            return
        if wait:
            pending.thread.join()
        elif not _all(not pending.thread.is_alive(), self._translator.device):
            return
        self._pending = None
        results: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(results, pending.problem or pending.digests)
        problems = [
            f"rank {r}: {result}" for r, result in enumerate(results) if result == str(result)
        ]
        if not problems:
            problems = self._seal(pending.state, results)
        self._failures = self._failures + 1 if problems else 0
        if not problems:
            self.on_sealed(pending.state["step"])
        else:
            step = pending.state["step"]
            _log.error("checkpoint of step %d was not written: %s", step, "; ".join(problems))
            if dist.get_rank() == 0:
                checkpoint.discard(self._place, step)  # to make room
        if self._failures >= _FAILURES:
            raise CheckpointError(
                f"checkpoints {self._place}: {_FAILURES} in a row were not written, this one "
                f"because {problems[0]}; make room and start again"
            )

    def finish(self) -> None:
        """End the checkpoint under way. Raises CheckpointError if it could not be written."""
        self.seal(wait=True)
        if self._failures:
            raise CheckpointError(
                f"checkpoints {self._place}: the last one was not written; the reason is in "
                f"{self._folder.log(0)}"
            )

    def resume(self) -> None:
        """Go on from the newest good checkpoint, if there is one and it belongs to this run.

        At any number of workers and any ZeRO stage. Raises CheckpointError.
        """
        training = self._training
        found = self._agree_on_newest()
        if found is None:
            return
        for part, module in self._parts.items():
            try:
                missing = module.restore(found.tensors(part))
            except ValueError as error:
                raise CheckpointError(f"checkpoint {found}: {part}: {error}") from error
            if missing:
                raise CheckpointError(f"checkpoint {found}: {part} lacks {min(missing)}")
        training.step, self.skipped = found.step, found.state["skipped"]
        self._export()
        if self._exported is not None:
            save_translator(self._exported, training.config, self._folder.model)
        _log.info("resumed from %s, written by %s", found, found.state["written_by"])

    def _agree_on_newest(self) -> Checkpoint | None:
        """What rank 0 finds; it reads every file to verify it, which is not for all to do."""
        found: list[Checkpoint | None] = [None]
        if dist.get_rank() == 0:
            found = [checkpoint.newest(self._place)]
            if found[0] is not None and not self._force:
                checkpoint.refuse_other(found[0], self._identity)
            checkpoint.discard_after(self._place, found[0].step if found[0] is not None else -1)
        dist.broadcast_object_list(found, src=0)
        return found[0]

    def _write(self, step: int, share: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
        """This rank's files, by name their digests."""
        digests = {}
        for part, tensors in share.items():
            for number, some in enumerate(_by_size(tensors)):
                file = f"{part}-{dist.get_rank():05d}-{number:03d}.safetensors"
                digests[file] = checkpoint.write(self._place, step, file, some)
        if self._exported is not None:
            # Before the seal: should this end in between, the run resumes and writes it again.
            save_translator(self._exported, self._training.config, self._folder.model)
        return digests

    def _seal(self, state: Mapping[str, Any], results: Iterable[Mapping[str, str]]) -> list[str]:
        """Problems, alike on all ranks; none if the checkpoint is sealed."""
        problem: list[str | None] = [None]
        if dist.get_rank() == 0:
            digests = {file: digest for result in results for file, digest in result.items()}
            train = self._training.config.train
            try:
                checkpoint.seal(self._place, state, digests)
                checkpoint.prune(self._place, train.keep, train.keep_best)
            except (OSError, ValueError) as error:
                problem = [f"rank 0: {error}"]
        dist.broadcast_object_list(problem, src=0)
        return [p for p in problem if p is not None]

    def _export(self) -> None:
        """Copy the translating model to the host, on rank 0."""
        with self._translator.whole():
            if dist.get_rank() == 0:
                if self._exported is None:
                    self._exported, _ = build_modules(self._training.config)
                self._exported.load_state_dict(self._training.translating_model.state_dict())


@dataclass
class _Write:
    """A rank's writing under way: its thread, and in the end the digests or what went wrong."""

    state: Mapping[str, Any]
    write: Any
    digests: dict[str, str] = field(default_factory=dict)
    problem: str | None = None

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.digests = self.write()
        except Exception as error:  # told to all ranks, which decide together
            self.problem = str(error) or type(error).__name__


class _Plain:
    """The averaged module, which has no optimiser, as an engine's state."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self._module.named_parameters()

    @torch.no_grad()
    def restore(self, tensors: Iterable[tuple[str, Tensor]]) -> set[str]:
        missing = {name for name, _ in self._module.named_parameters()}
        for name, value in tensors:
            if name not in missing:
                raise ValueError(f"{name}: saved, but these networks have no such parameter")
            parameter = self._module.get_parameter(name)
            if parameter.shape != value.shape:
                raise ValueError(
                    f"{name}: saved as {list(value.shape)}, but {list(parameter.shape)} here"
                )
            parameter.copy_(value)
            missing.discard(name)
        return missing


def _by_size(share: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors in files of at most _FILE_BYTES, or of one tensor; none of no tensors."""
    part: dict[str, Tensor] = {}
    size = 0
    for name, value in share.items():
        if part and size + value.nbytes > _FILE_BYTES:
            yield part
            part, size = {}, 0
        part[name] = value
        size += value.nbytes
    if part:
        yield part


def _finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _all(flag: bool, device: torch.device) -> bool:
    agreed = torch.tensor(float(flag), device=device)
    dist.all_reduce(agreed, dist.ReduceOp.MIN)
    return bool(agreed.item())
