"""Saving and resuming a run on all ranks together."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import torch.distributed as dist

from launch import checkpoint
from launch.engine import DeepSpeedEngine
from launch.run_folder import RunFolder
from pmg.training import Training
from pmg.weights import save_translator

__all__ = ["Saver"]

_AVERAGED = "averaged.pt"
_log = logging.getLogger(__name__)


class Saver:
    """Checkpoints of this run, written by all ranks and sealed by rank 0. All ranks must call."""

    def __init__(
        self,
        training: Training,
        translator: DeepSpeedEngine,
        critic: DeepSpeedEngine,
        folder: RunFolder,
        catalogue: str,
    ) -> None:
        self._training, self._folder = training, folder
        self._engines = {"translator": translator, "critic": critic}
        self._identity = checkpoint.identity(training.config, catalogue)

    def save(self) -> None:
        """A checkpoint at this step, and the model beside it."""
        training, folder = self._training, self._folder
        partial = checkpoint.partial_folder(folder.checkpoints, training.step)
        for name, engine in self._engines.items():
            engine.save(partial / name)
        dist.barrier()
        # The model first: should this end in between, the run resumes and writes it again.
        self._save_model()
        if dist.get_rank() == 0:
            if training.averaged is not None:
                torch.save(training.averaged.state_dict(), partial / _AVERAGED)
            state = {"step": training.step, "identity": self._identity}
            checkpoint.commit(partial, state)
            checkpoint.prune(folder.checkpoints, training.config.train.keep)
        dist.barrier()

    def resume(self) -> None:
        """Go on from the newest good checkpoint, if there is one and it belongs to this run."""
        training = self._training
        found = self._agree_on_newest()
        if found is None:
            return
        for name, engine in self._engines.items():
            engine.load(found / name)
        if training.averaged is not None:
            weights = torch.load(found / _AVERAGED, map_location="cpu", weights_only=True)
            training.averaged.load_state_dict(weights)
        training.step = checkpoint.read_state(found)["step"]
        self._save_model()
        _log.info("resumed from %s", found)

    def _agree_on_newest(self) -> Path | None:
        """What rank 0 finds; it reads every file to verify it, which is not for all to do."""
        found: list[Path | None] = [None]
        if dist.get_rank() == 0:
            found = [checkpoint.newest(self._folder.checkpoints)]
            if found[0] is not None:
                checkpoint.refuse_other(found[0], self._identity)
        dist.broadcast_object_list(found, src=0)
        return found[0]

    def _save_model(self) -> None:
        with self._engines["translator"].whole():
            if dist.get_rank() == 0:
                model = self._training.translating_model
                save_translator(model, self._training.config, self._folder.model)
