"""Steps that were skipped for a loss or a gradient that is not finite: counted, named, limited."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from pmg.patches import PatchBatch
from pmg.step import Outcome

__all__ = ["SkippedSteps"]

_log = logging.getLogger(__name__)


class SkippedSteps:
    """Keeps the outcomes on the device until `report`, the one moment that waits for it."""

    def __init__(self, total: int, limit: int) -> None:
        """total: skipped in this run so far. limit: so many in a row end it."""
        self.total = total
        self._limit = limit
        self._in_a_row = 0
        self._outcomes: list[tuple[int, Outcome, Sequence[int], Sequence[tuple[str, str]]]] = []

    def add(self, step: int, batch: PatchBatch, outcome: Outcome) -> None:
        """What step number `step`, counted from 1, gave."""
        samples = [int(n) for n in batch.samples]
        self._outcomes.append((step, outcome, samples, batch.volume_ids))

    def report(self) -> dict[str, Any]:
        """For the metrics: `skipped`, all so far, `skipped_steps`, those since the last report, and
        `not_finite`, a line for each rank and step of them, if there are any. All ranks must call.

        Raises FloatingPointError when as many in a row were skipped as the limit allows.
        """
        outcomes, self._outcomes = self._outcomes, []
        counted = torch.stack([outcome.counted for _, outcome, _, _ in outcomes]).tolist()
        lines: list[str] = []
        for flag, outcome in zip(counted, outcomes, strict=True):
            self._in_a_row = self._in_a_row + 1 if flag else 0
            if flag:
                self.total += 1
                lines += _gathered(_description(*outcome))
            if self._in_a_row >= self._limit:
                raise FloatingPointError(
                    f"{self._in_a_row} steps in a row were not finite, the last one {lines[-1]}; "
                    f"look at these volumes, lower optim.lr, or resume from an older checkpoint "
                    f"with another train.seed"
                )
        for line in lines:
            _log.warning("skipped %s", line)
        record = {"skipped": self.total, "skipped_steps": int(sum(counted))}
        return record | ({"not_finite": lines} if lines else {})


def _description(
    step: int, outcome: Outcome, samples: Sequence[int], volumes: Sequence[tuple[str, str]]
) -> str | None:
    """None where the cause lies on another rank."""
    terms = [n for n, bad in zip(outcome.terms, outcome.bad_terms.tolist(), strict=True) if bad]
    bad = outcome.bad_samples.tolist()
    if not terms and not any(bad) and not outcome.bad_gradient:
        return None
    # A loss may leave the range of its type though no sample shows it: then they all may have.
    named = [k for k in range(len(samples)) if bad[k] or not any(bad)]
    of = "; ".join(f"sample {samples[k]} of volumes {' and '.join(volumes[k])}" for k in named)
    return f"step {step}: {', '.join(terms) or 'a gradient'} not finite ({of})"


def _gathered(own: str | None) -> list[str]:
    found: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    named = [f"rank {rank}, {line}" for rank, line in enumerate(found) if line is not None]
    return named or ["a gradient of some rank not finite"]
