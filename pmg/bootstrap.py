"""Confidence intervals over subjects."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = ["LEVEL", "RESAMPLES", "difference_interval", "interval"]

LEVEL = 0.95
RESAMPLES = 2000
_SEED = 20


def interval(totals: Sequence[float], counts: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of sum(totals) / sum(counts), one of each for every subject.

    Percentiles over 2000 draws of the subjects with replacement, by a fixed seed, so that all
    things of one subject stay together. None for fewer than two subjects, for values that are not
    finite, and where so many subjects count nothing that a draw may have nothing to divide by.
    """
    return _percentiles(
        [totals, counts],
        lambda total, count, axis: total.sum(axis=axis) / count.sum(axis=axis),
    )


def difference_interval(
    totals: tuple[Sequence[float], Sequence[float]],
    counts: tuple[Sequence[float], Sequence[float]],
) -> tuple[float, float] | None:
    """As `interval`, of the second's sum(totals) / sum(counts) less the first's.

    Both are drawn together, subject by subject: what makes a subject hard for both cancels.
    """
    return _percentiles(
        [*totals, *counts],
        lambda total_1, total_2, count_1, count_2, axis: (
            total_2.sum(axis=axis) / count_2.sum(axis=axis)
            - total_1.sum(axis=axis) / count_1.sum(axis=axis)
        ),
    )


def _percentiles(
    of_subjects: Sequence[Sequence[float]], figure: Callable[..., NDArray[Any]]
) -> tuple[float, float] | None:
    arrays = [np.asarray(values, float) for values in of_subjects]
    if len(arrays[0]) < 2 or not all(np.isfinite(values).all() for values in arrays):
        return None
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        # 0 / 0 in a draw, which leaves no interval
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            arrays,
            figure,
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            confidence_level=LEVEL,
            method="percentile",
            rng=np.random.default_rng(_SEED),
        )
    low, high = map(float, result.confidence_interval)
    return (low, high) if np.isfinite([low, high]).all() else None
