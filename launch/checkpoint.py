"""Checkpoints of a run: complete or absent, verified by digest, newest good one found again.

A checkpoint is a folder `step_00000200` of a place (a disk or an object store) with safetensors
files, in which every trained number has its parameter's name whatever the number of workers and
ZeRO's stage; `state.json`; and, written last, `manifest.json` with the SHA-256 of every file. A
folder without a manifest is none. Nothing in it is a pickle.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from launch.run_folder import RunFolder
from pmg.config import Config
from storage.errors import StoreError
from storage.place import Place

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "adopt",
    "discard",
    "discard_after",
    "folder_of",
    "identity",
    "is_sealed",
    "newest",
    "place_of",
    "prune",
    "refuse_other",
    "seal",
    "write",
]

_MANIFEST = "manifest.json"
_STATE = "state.json"
_log = logging.getLogger(__name__)

# May change from one part of a run to the next: how long it is, where it runs and what it records.
_FREE = {"launch", "translate"}
_FREE_FIELDS = {
    "train.steps",
    "train.accumulate",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep",
    "train.keep_best",
    "train.checkpoints",
    "train.max_skipped",
    "data.store",  # the same cohort may lie elsewhere: its catalogue tells
    "data.spacing_mm",
    "data.memory_bytes",
    "data.threads",
}


class CheckpointError(ValueError):
    """No checkpoint to resume from where there should be: all damaged, or of another run."""


@dataclass(frozen=True)
class Checkpoint:
    """A sealed checkpoint whose files had their digests when it was found."""

    place: Place
    name: str
    state: Mapping[str, Any]
    digests: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.place}/{self.name}"

    @property
    def step(self) -> int:
        return int(self.state["step"])

    def tensors(self, part: str) -> Iterator[tuple[str, Tensor]]:
        """The tensors of a part by name, file after file, each file's digest checked once more.

        Raises CheckpointError for a file that changed since the checkpoint was found.
        """
        for file in sorted(f for f in self.digests if f.startswith(f"{part}-")):
            data = _read(self.place, f"{self.name}/{file}")
            if _digest(data) != self.digests[file]:
                raise CheckpointError(f"checkpoint {self}: {file} changed while it was read")
            try:
                tensors = safetensors.torch.load(data)
            except SafetensorError as error:
                raise CheckpointError(f"checkpoint {self}: {file}: {error}") from error
            yield from sorted(tensors.items())


def place_of(config: Config, folder: RunFolder) -> Place:
    """Where the checkpoints of a run lie."""
    return Place.of(config.train.checkpoints or folder.checkpoints)


def folder_of(step: int) -> str:
    return f"step_{step:08d}"


def write(place: Place, step: int, file: str, tensors: Mapping[str, Tensor]) -> str:
    """One file of a checkpoint, durably; returns its digest. Raises StoreError."""
    data = safetensors.torch.save({n: t.contiguous() for n, t in tensors.items()})
    place.replace(f"{folder_of(step)}/{file}", data)
    return _digest(data)


def seal(place: Place, state: Mapping[str, Any], digests: Mapping[str, str]) -> Checkpoint:
    """Make a checkpoint of what all ranks wrote for state["step"]. One rank calls this."""
    name = folder_of(state["step"])
    text = json.dumps(state, indent=1).encode()
    place.replace(f"{name}/{_STATE}", text)
    manifest = {**digests, _STATE: _digest(text)}
    place.replace(f"{name}/{_MANIFEST}", json.dumps(manifest, indent=1).encode())
    return Checkpoint(place, name, state, manifest)


def newest(where: Place | Path | str) -> Checkpoint | None:
    """The newest checkpoint whose every file has its digest; damaged ones are named in the log.

    None where there is no checkpoint at all. Raises CheckpointError if there are some and all are
    damaged: a run of days must not begin anew unasked.
    """
    place, problem = Place.of(where), None
    for name in sorted(_sealed(place), reverse=True):
        found, problem = _verified(place, name)
        if found is not None:
            return found
        _log.warning(
            "checkpoint %s/%s is damaged (%s); trying the one before", place, name, problem
        )
    if problem is not None:
        raise CheckpointError(
            f"checkpoints {place}: all are damaged, the oldest because {problem}; remove "
            f"them to train from the first step"
        )
    return None


def is_sealed(where: Place | Path | str, step: int) -> bool:
    """Whether there is a checkpoint of this step; its files are not verified."""
    return folder_of(step) in _sealed(Place.of(where))


def adopt(where: Place | Path | str, step: int, place: Place, config: Config) -> Checkpoint:
    """Copy another run's checkpoint to `place`, as that of a run of this configuration.

    Both must have networks of the same shapes and one store. Raises CheckpointError if it is not
    there or damaged.
    """
    source = Place.of(where)
    found, problem = _verified(source, folder_of(step))
    if found is None:
        raise CheckpointError(f"checkpoint {source}/{folder_of(step)}: {problem}")
    digests = {file: digest for file, digest in found.digests.items() if file != _STATE}
    for file in digests:
        place.replace(f"{found.name}/{file}", _read(source, f"{found.name}/{file}"))
    own = identity(config, "") | {"data.store": found.state["identity"]["data.store"]}
    state = {**found.state, "identity": own, "config": config.model_dump(mode="json")}
    return seal(place, state, digests)


def identity(config: Config, catalogue: str) -> dict[str, Any]:
    """By setting, what a checkpoint must share with the run that resumes from it.

    All that has a part in what is trained. The number of steps, of workers and their stage may
    change, and where things lie and what is recorded. catalogue: the store's digest.
    """
    tree = config.model_dump(mode="json")
    settings = {
        f"{section}.{field}": value
        for section, fields in tree.items()
        for field, value in fields.items()
        if section not in _FREE and f"{section}.{field}" not in _FREE_FIELDS
    }
    return settings | {"data.store": f"catalogue {catalogue[:12]}"}


def refuse_other(found: Checkpoint, run: Mapping[str, Any]) -> None:
    """Raise CheckpointError, naming the settings, if the checkpoint is not of a run like this."""
    saved = found.state["identity"]
    other = [f"{k} is {v} there and {run[k]} here" for k, v in saved.items() if v != run.get(k, v)]
    if other:
        raise CheckpointError(
            f"checkpoint {found}: {', '.join(other)}; resume with the same, train into "
            f"another folder, or go on all the same with --force"
        )


def prune(place: Place, keep: int, keep_best: str | None = None) -> None:
    """Remove all but the newest `keep` checkpoints and the best one, and what was never sealed.

    keep_best: the metric whose least value is best.
    """
    sealed = sorted(_sealed(place))
    kept = set(sealed[-keep:])
    if keep_best is not None:
        kept |= {best for best in [_best(place, sealed, keep_best)] if best is not None}
    for name in _folders(place):
        if name not in kept:
            place.remove_tree(name)


def discard(place: Place, step: int) -> None:
    """Remove what was written for a checkpoint that will not be sealed."""
    place.remove_tree(folder_of(step))


def discard_after(place: Place, step: int) -> None:
    """Remove what is newer than `step`: it is damaged, or was never sealed."""
    for name in _folders(place):
        if name > folder_of(step):
            place.remove_tree(name)


def _best(place: Place, names: list[str], metric: str) -> str | None:
    values = {}
    for name in names:
        try:
            value = json.loads(_read(place, f"{name}/{_STATE}"))["metrics"][metric]
        except (StoreError, ValueError, KeyError, TypeError):
            continue  # damaged, or saved before this metric was asked for
        if isinstance(value, int | float) and math.isfinite(value):
            values[name] = value
    return min(values, key=lambda name: (values[name], name), default=None)


def _folders(place: Place) -> list[str]:
    names = [name.rstrip("/") for name in place.list() if name.endswith("/")]
    return [n for n in names if n.startswith("step_") and n[5:].isdigit() and len(n) == 13]


def _sealed(place: Place) -> list[str]:
    return [n for n in _folders(place) if f"{n}/{_MANIFEST}" in set(place.list(n))]


def _verified(place: Place, name: str) -> tuple[Checkpoint | None, str | None]:
    """The checkpoint, or what is wrong with it."""
    try:
        digests = json.loads(_read(place, f"{name}/{_MANIFEST}"))
        if not isinstance(digests, dict) or _STATE not in digests:
            return None, f"{_MANIFEST} is none"
        state: dict[str, Any] = {}
        for file, digest in digests.items():
            data = _read(place, f"{name}/{file}")
            if _digest(data) != digest:
                return None, f"{file} does not have the digest its manifest states"
            if file == _STATE:
                state = json.loads(data)
    except (StoreError, ValueError) as error:
        return None, str(error)
    if state.get("step") != int(name[5:]):
        return None, f"{_STATE} is of step {state.get('step')}"
    return Checkpoint(place, name, state, digests), None


def _read(place: Place, name: str) -> bytes:
    return place.read(name, limit=place.size(name))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
