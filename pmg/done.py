"""Results of long work, one folder each: complete or absent, and found again by the next run."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pmg.weights import WEIGHTS, model_folder

__all__ = ["finishing", "is_done", "made_by"]

_DONE = "done.json"


def made_by(model: Path, **choices: object) -> str:
    """What a result is of: the model's bytes and the choices that went into it, as a digest."""
    folder = model_folder(model)
    weights = hashlib.sha256()
    for name in ("config.yaml", WEIGHTS):
        weights.update(hashlib.sha256((folder / name).read_bytes()).digest())
    weights.update(json.dumps(choices, sort_keys=True).encode())
    return weights.hexdigest()


def is_done(folder: Path, by: str) -> bool:
    """Whether the folder holds a complete result that was made by this."""
    try:
        done = json.loads((folder / _DONE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(done.get("by") == by)


@contextmanager
def finishing(folder: Path, by: str) -> Iterator[Path]:
    """A folder to write a result into, which takes its place at the end, or is removed.

    An older result there, of another model or unfinished, is replaced.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        (partial / _DONE).write_text(json.dumps({"by": by}), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
