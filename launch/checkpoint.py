"""Checkpoints of a run: complete or absent, verified by digest, newest good one found again.

A checkpoint is a folder `step_00000200` with DeepSpeed's shards of both engines, the averaged
weights, `state.json` and, written last, `manifest.json` with the SHA-256 of every file. It is
assembled as `step_00000200.partial` and renamed when all of it is on disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pmg.config import Config

__all__ = [
    "CheckpointError",
    "commit",
    "identity",
    "newest",
    "partial_folder",
    "prune",
    "read_state",
    "refuse_other",
]

_MANIFEST = "manifest.json"
_STATE = "state.json"
_log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """No checkpoint to resume from where there should be: all damaged, or of another run."""


def partial_folder(checkpoints: Path, step: int) -> Path:
    """Where the ranks write before `commit`."""
    return checkpoints / f"step_{step:08d}.partial"


def commit(partial: Path, state: Mapping[str, Any]) -> Path:
    """Seal what all ranks wrote: state, manifest, fsync, rename. One rank calls this."""
    (partial / _STATE).write_text(json.dumps(state, indent=1))
    digests = {str(f.relative_to(partial)): _digest(f) for f in _files(partial)}
    (partial / _MANIFEST).write_text(json.dumps(digests, indent=1))
    for file in _files(partial):
        _sync(file)
    for folder in [partial, *(p for p in partial.rglob("*") if p.is_dir())]:
        _sync(folder)
    final = partial.with_suffix("")
    if final.exists():  # an earlier attempt at the same step, since damaged
        shutil.rmtree(final)
    partial.rename(final)
    _sync(final.parent)
    return final


def newest(checkpoints: Path) -> Path | None:
    """The newest checkpoint whose every file has its digest; damaged ones are named in the log.

    None where there is no checkpoint at all. Raises CheckpointError if there are some and all are
    damaged: a run of days must not begin anew unasked.
    """
    problem = None
    for folder in sorted(checkpoints.glob("step_????????"), reverse=True):
        problem = _problem(folder)
        if problem is None:
            return folder
        _log.warning("checkpoint %s is damaged (%s); trying the one before", folder, problem)
    if problem is not None:
        raise CheckpointError(
            f"checkpoints {checkpoints}: all are damaged, the oldest because {problem}; remove "
            f"them to train from the first step"
        )
    return None


def read_state(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((checkpoint / _STATE).read_text())
    return state


def identity(config: Config, catalogue: str) -> dict[str, Any]:
    """By setting, what a checkpoint must share with the run that resumes from it.

    What shapes the parameters and their shards, and the data; learning rates, weights of losses
    and the number of steps may change. catalogue: the store's digest.
    """
    sections = {"model": config.model, "discriminator": config.discriminator}
    shapes = {
        f"{name}.{field}": value
        for name, section in sections.items()
        for field, value in section.model_dump(mode="json").items()
    }
    return shapes | {
        "launch.workers": config.launch.workers,
        "launch.zero_stage": config.launch.zero_stage,
        "prior.components": config.prior.components,
        "prior.learned": config.prior.learned,
        "optim.ema": config.optim.ema > 0,
        "data.patch": f"{len(config.data.patch)}D",
        "data.store": f"catalogue {catalogue[:12]}",
    }


def refuse_other(checkpoint: Path, run: Mapping[str, Any]) -> None:
    """Raise CheckpointError, naming the settings, if the checkpoint is not of a run like this."""
    saved = read_state(checkpoint)["identity"]
    other = [f"{k} is {v} there and {run[k]} here" for k, v in saved.items() if v != run.get(k, v)]
    if other:
        raise CheckpointError(
            f"checkpoint {checkpoint}: {', '.join(other)}; resume with the same, or train into "
            f"another folder"
        )


def prune(checkpoints: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what died half-written."""
    for folder in sorted(checkpoints.glob("step_????????"))[:-keep]:
        shutil.rmtree(folder)
    for folder in checkpoints.glob("step_????????.partial"):
        shutil.rmtree(folder)


def _problem(folder: Path) -> str | None:
    try:
        digests: dict[str, str] = json.loads((folder / _MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"{_MANIFEST}: {error}"
    for name, digest in digests.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if _digest(file) != digest:
            return f"{name} does not have the digest its manifest states"
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file())


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
