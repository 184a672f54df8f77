"""Confidence intervals over subjects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

__all__ = ["LEVEL", "RESAMPLES", "interval"]

LEVEL = 0.95
RESAMPLES = 2000
_SEED = 20


def interval(totals: Sequence[float], counts: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of sum(totals) / sum(counts), one of each for every subject.

    Percentiles over 2000 draws of the subjects with replacement, by a fixed seed, so that all
    things of one subject stay together. None for fewer than two subjects or values that are not
    finite.
    """
    if len(totals) < 2 or not np.isfinite(totals).all():
        return None
    result = stats.bootstrap(
        (np.asarray(totals, float), np.asarray(counts, float)),
        lambda total, count, axis: total.sum(axis=axis) / count.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    )
    low, high = result.confidence_interval
    return float(low), float(high)
