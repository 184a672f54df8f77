"""A run's figures for Prometheus, through the exporter of the Ray node it runs on.

Ray puts `ray_` before the names, and `_total` behind the counter's. Every figure carries the tag
`run`, `pmg_loss` also `term`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.util.metrics import Counter, Gauge

__all__ = ["GAUGES", "LOSS", "SKIPPED", "Gauges"]

# Name of the gauge: the record's field, and what it is.
GAUGES = {
    "pmg_step": ("step", "steps taken"),
    "pmg_steps_per_second": ("steps_per_s", "steps a second since the last record"),
    "pmg_images_per_second": ("images_per_s", "patches of both domains a second, all workers"),
    "pmg_data_wait_share": (
        "data_wait",
        "share of time spent waiting for the slowest stream",
    ),
    "pmg_effective_components": (
        "prior.effective_components",
        "exp(entropy) of the mean responsibilities",
    ),
    "pmg_memory_bytes": ("memory_bytes", "of the worker that needs most: GPU memory, else RSS"),
    "pmg_checkpoint_unix_seconds": ("checkpoint_unix_s", "when the newest checkpoint was written"),
}
LOSS = "pmg_loss"
SKIPPED = "pmg_skipped_steps"
_NOT_LOSSES = ("prior.", "latent.")


class Gauges:
    """Sets them from the records of one run's metrics. Ray must be initialised."""

    def __init__(self, run: str) -> None:
        self._tags = {"run": run}
        self._gauges = {name: Gauge(name, text, ("run",)) for name, (_, text) in GAUGES.items()}
        self._loss = Gauge(LOSS, "mean of a loss term since the last record", ("run", "term"))
        self._skipped = Counter(SKIPPED, "steps left out since losses were not finite", ("run",))

    def log(self, record: Mapping[str, Any]) -> None:
        for name, gauge in self._gauges.items():
            field, _ = GAUGES[name]
            if field in record:
                gauge.set(record[field], self._tags)
        for term, value in record.items():
            if "." in term and not term.startswith(_NOT_LOSSES):
                self._loss.set(value, self._tags | {"term": term})
        if skipped := record.get("skipped_steps", 0):
            self._skipped.inc(skipped, self._tags)

    def picture(self, step: int, path: Path) -> None:
        """Prometheus has no pictures."""

    def close(self) -> None:
        """Ray drops the figures of a process that has ended."""
