"""Where the patches of one visit lie: a window of places, and patches spread evenly over it.

A visit reads a few chunks and takes several patches from them. Its patches begin in one window of
the body-centred frame. The windows of a pair of volumes tile all places where a patch may begin,
and a visit's window is the one round a place drawn uniformly; its patches are uniform within it,
hence uniform over all places, as if each had been drawn alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from storage.draws import Draws
from storage.layout import CHUNK, Index

__all__ = ["spread", "window_around", "window_for"]

_SLACK = 1.1


def window_for(
    patch_shape: Index, volume_shape: Sequence[int], patches_per_visit: int, amplification: float
) -> Index:
    """Voxels of the windows in a volume of `volume_shape`: of those that decode `amplification`
    voxels or up to a tenth more for each that they deliver, the one in which two patches of a
    visit overlap least.

    Where even the smallest decodes more (single slices of thick chunks), that tenth is counted
    from the least possible. Windows are made of halves of chunks.
    """
    axes = [
        _choices(patch, size, chunk)
        for patch, size, chunk in zip(patch_shape, volume_shape, CHUNK, strict=True)
    ]
    delivered = patches_per_visit * math.prod(patch_shape)
    found = [
        (
            z.decoded * y.decoded * x.decoded / delivered,
            z.overlap * y.overlap * x.overlap,
            (z.window, y.window, x.window),
        )
        for z, y, x in itertools.product(*axes)
    ]
    enough = [choice for choice in found if choice[0] >= amplification] or [max(found)]
    limit = _SLACK * max(amplification, min(enough)[0])
    _, _, window = min((overlap, a, w) for a, overlap, w in enough if a <= limit)
    return window


class _Choice(NamedTuple):
    """Along one axis: voxels of a window, those decoded for a visit, and the share that two of its
    patches have in common, both on average."""

    window: int
    decoded: float
    overlap: float


def _choices(patch: int, size: int, chunk: int) -> list[_Choice]:
    """Windows of half a chunk and more, up to all places of a volume whose middle is the origin."""
    low, high = -(size // 2), size - size // 2 - patch
    choices = []
    for window in itertools.count(chunk // 2, chunk // 2):
        tiles = list(_tiles(low, high, window))
        weights = [last - first + 1 for first, last in tiles]
        decoded = [chunk * ((b + patch - 1) // chunk - a // chunk + 1) for a, b in tiles]
        overlap = [_overlap(n, patch) for n in weights]
        choices.append(_Choice(window, _mean(decoded, weights), _mean(overlap, weights)))
        if len(tiles) == 1:
            break
    return choices


def _tiles(low: int, high: int, window: int) -> Iterator[tuple[int, int]]:
    while low <= high:
        _, (last,) = window_around([low], [low], [high], [window])
        yield low, last
        low = last + 1


def _overlap(window: int, patch: int) -> float:
    """Expected share that two patches have in common that begin anywhere in a window."""
    apart = np.arange(min(window, patch))
    weight = np.where(apart, 2.0, 1.0) * (window - apart) / window**2
    return float((weight * (patch - apart) / patch).sum())


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def window_around(
    place: Sequence[int], low: Sequence[int], high: Sequence[int], window: Sequence[int]
) -> tuple[list[int], list[int]]:
    """(first, last) of the window that holds `place`, of those that tile low to high inclusive.

    Windows have their borders at multiples of their size, where chunks have theirs; what would be
    less than a quarter of a window at either end belongs to its neighbour.
    """
    firsts, lasts = [], []
    for u, a, b, w in zip(place, low, high, window, strict=True):
        border = -(-(a + w // 4) // w) * w
        final = (b + 1 - w // 4) // w * w
        at = u // w * w
        if border > final:
            first, last = a, b
        elif u < border:
            first, last = a, border - 1
        elif at >= final:
            first, last = final, b
        else:
            first, last = at, at + w - 1
        firsts.append(first)
        lasts.append(last)
    return firsts, lasts


def spread(draws: Draws, first: Sequence[int], last: Sequence[int], count: int) -> np.ndarray:
    """[count, 3] places from first to last inclusive, each uniform and all far from each other.

    A Latin hypercube (McKay et al. 1979): along every axis each of `count` equal parts holds one.
    """
    words = draws.fractions(2, count, 3)
    rank = words[0].argsort(axis=0).astype(np.uint64)
    size = np.subtract(last, first).astype(np.uint64) + np.uint64(1)
    share = ((rank << np.uint64(32)) + words[1]) * size // np.uint64(count << 32)
    places: np.ndarray = np.asarray(first, np.int64) + share.astype(np.int64)
    return places
