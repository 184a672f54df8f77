"""The folder of a run: where its configuration, metrics, checkpoints, logs and model lie."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["MetricsTail", "RunBusy", "RunFolder"]

Record = dict[str, Any]


class RunBusy(RuntimeError):
    """Another process trains in this folder."""


@dataclass(frozen=True)
class RunFolder:
    """Paths below one folder, which all workers and the driver must see."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: step, seconds, rates, and every loss term by name."""
        return self.root / "metrics.jsonl"

    @property
    def observations(self) -> Path:
        """One JSON object a line: what an observer found at a checkpoint's step."""
        return self.root / "observations.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        """The averaged translator of the newest checkpoint, for `pmg translate`."""
        return self.root / "model"

    @property
    def stop_request(self) -> Path:
        """While this file exists, workers save and stop at the next logged step."""
        return self.root / "stop"

    @property
    def failure(self) -> Path:
        """Why this run cannot go on: one line for the user, then the traceback."""
        return self.root / "failure.txt"

    @property
    def environment(self) -> Path:
        """A list of the run's starts: step, versions, hardware, commit."""
        return self.root / "environment.json"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def mlflow_run(self) -> Path:
        """The id of the run at MLflow, for a resume to go on with."""
        return self.root / "mlflow_run_id"

    @property
    def guide(self) -> Path:
        """What is what in this folder, for somebody who was not there."""
        return self.root / "README.md"

    @property
    def report(self) -> Path:
        """Loss curves and the last panel, written when the driver ends."""
        return self.root / "report.html"

    def panel(self, step: int) -> Path:
        """Source, translation, cycle and responsibilities of some patches at a step."""
        return self.root / "panels" / f"step_{step:08d}.png"

    def log(self, rank: int) -> Path:
        """What the process of a rank logged, with its warnings and tracebacks."""
        return self.root / "logs" / f"rank_{rank}.log"

    def stacks(self, rank: int) -> Path:
        """Where the threads of a rank were when it had taken no step for too long."""
        return self.root / "logs" / f"rank_{rank}.stacks.txt"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The right to train here, which goes with the process. Raises RunBusy at once."""
        with (self.root / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise RunBusy(
                    f"run {self.root}: process {file.read() or '?'} is training here; wait for "
                    f"its end, or choose another folder"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def add_start(self, start: Record) -> None:
        """Append to `environment`, which is replaced whole."""
        partial = self.environment.with_suffix(".partial")
        partial.write_text(json.dumps([*self.starts(), start], indent=1), encoding="utf-8")
        partial.rename(self.environment)

    def starts(self) -> list[Record]:
        """What `add_start` was given, the first first."""
        if not self.environment.exists():
            return []
        found: list[Record] = json.loads(self.environment.read_text(encoding="utf-8"))
        return found

    def append_metrics(self, record: Record) -> None:
        _append(self.metrics, record)

    def append_observation(self, record: Record) -> None:
        _append(self.observations, record)

    def read_observations(self) -> list[Record]:
        """By step, each step's last: a resume may have come to a step again."""
        if not self.observations.exists():
            return []
        found = {
            one["step"]: one for one in _records(self.observations.read_text(encoding="utf-8"))
        }
        return [found[step] for step in sorted(found)]

    def read_metrics(self) -> Iterator[Record]:
        """The records of one history: after a resume, those it had run past are left out."""
        if not self.metrics.exists():
            return
        kept: list[Record] = []
        for record in _records(self.metrics.read_text(encoding="utf-8")):
            while kept and kept[-1]["step"] >= record["step"]:
                kept.pop()
            kept.append(record)
        yield from kept


class MetricsTail:
    """What is appended to a run's metrics from now on."""

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.metrics
        self._start = self._read = self._size()

    @property
    def empty(self) -> bool:
        """Nothing was appended yet, read or not."""
        return self._size() == self._start

    def _size(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0

    def new(self) -> list[Record]:
        """The records since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            written = file.read()
        whole = written[: written.rfind(b"\n") + 1]  # the last line may be half written
        self._read += len(whole)
        return list(_records(whole.decode()))


def _append(path: Path, record: Record) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def _records(text: str) -> Iterator[Record]:
    """One for each line, save those that a killed process left half written."""
    for line in text.splitlines():
        try:
            record: Record = json.loads(line)
        except ValueError:
            continue
        yield record
