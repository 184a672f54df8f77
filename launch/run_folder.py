"""The folder of a run: where its configuration, metrics, checkpoints and model lie."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["RunFolder"]


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

    def append_metrics(self, record: dict[str, Any]) -> None:
        with self.metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """The records of one history: after a resume, those it had run past are left out."""
        if not self.metrics.exists():
            return
        kept: list[dict[str, Any]] = []
        for line in self.metrics.read_text().splitlines():
            if not line.endswith("}"):  # the last line may be in the middle of being written
                continue
            record: dict[str, Any] = json.loads(line)
            while kept and kept[-1]["step"] >= record["step"]:
                kept.pop()
            kept.append(record)
        yield from kept
