"""Histogram matching, the baseline that knows no anatomy: one monotonous map of HU for a scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pmg.arrays import HU, Mask

__all__ = ["HuHistogram", "match_histogram", "mean_histogram"]


_LOW_HU, _HIGH_HU = -1024, 3071


@dataclass(frozen=True)
class HuHistogram:
    """Share of the body's voxels at every HU from -1024 to 3071: [4096], sums to 1."""

    share: NDArray[np.float64]

    @classmethod
    def of(cls, hu: HU, body: Mask) -> HuHistogram:
        """Raises ValueError if there is no body."""
        values = np.clip(np.rint(hu[body]), _LOW_HU, _HIGH_HU).astype(int) - _LOW_HU
        if not len(values):
            raise ValueError("no voxel is body; expected some to take a histogram of")
        counts = np.bincount(values, minlength=_HIGH_HU - _LOW_HU + 1)
        return cls(counts / len(values))


def mean_histogram(histograms: Sequence[HuHistogram]) -> HuHistogram:
    """The histogram of several scans, each of the same weight."""
    return HuHistogram(np.mean([one.share for one in histograms], axis=0))


def match_histogram(hu: HU, body: Mask, target: HuHistogram) -> NDArray[np.float32]:
    """HU mapped so that the body's have the target's distribution; the rest stays.

    The value of a quantile becomes the target's value of that quantile, linear between those that
    the target has.
    """
    own = np.cumsum(HuHistogram.of(hu, body).share)
    there = np.flatnonzero(target.share > 0)
    mapped = np.interp(own, np.cumsum(target.share)[there], there + float(_LOW_HU))
    values = np.clip(np.rint(hu), _LOW_HU, _HIGH_HU).astype(int) - _LOW_HU
    return np.where(body, mapped[values], hu).astype(np.float32)
