"""Histogram matching, the baseline that knows no anatomy: one monotonous map of HU for a scan.

Of tissue alone: how much lung and gas a scan shows depends on where it begins and ends, and to
match that would turn fat into lung.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pmg.arrays import HU, Mask

__all__ = ["HuHistogram", "match_histogram", "mean_histogram"]


_LOW_HU, _HIGH_HU = -300, 3071  # from tissue, as `storage.body` tells it, to 12 bits


@dataclass(frozen=True)
class HuHistogram:
    """Share of a body's tissue at every HU from -300 to 3071: [3372], sums to 1."""

    share: NDArray[np.float64]

    @classmethod
    def of(cls, hu: HU, body: Mask) -> HuHistogram:
        """Raises ValueError if there is no tissue in the body."""
        values = _bins(hu[_tissue(hu, body)])
        if not len(values):
            raise ValueError(f"no voxel of the body has {_LOW_HU} HU or more; expected tissue")
        counts = np.bincount(values, minlength=_HIGH_HU - _LOW_HU + 1)
        return cls(counts / len(values))


def mean_histogram(histograms: Sequence[HuHistogram]) -> HuHistogram:
    """The histogram of several scans, each of the same weight."""
    return HuHistogram(np.mean([one.share for one in histograms], axis=0))


def match_histogram(hu: HU, body: Mask, target: HuHistogram) -> NDArray[np.float32]:
    """HU mapped so that those of tissue have the target's distribution; the rest stays.

    The value of a quantile becomes the target's value of that quantile, linear between those that
    the target has.
    """
    own = np.cumsum(HuHistogram.of(hu, body).share)
    there = np.flatnonzero(target.share > 0)
    mapped = np.interp(own, np.cumsum(target.share)[there], there + float(_LOW_HU))
    return np.where(_tissue(hu, body), mapped[_bins(hu)], hu).astype(np.float32)


def _tissue(hu: HU, body: Mask) -> Mask:
    return body & (hu >= _LOW_HU)


def _bins(hu: HU) -> NDArray[np.int_]:
    return np.clip(np.rint(hu), _LOW_HU, _HIGH_HU).astype(int) - _LOW_HU
