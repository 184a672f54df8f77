"""Blood's HU: what the vessels in front of the spine measure, by which contrast agent shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

from storage.grid import canonical, resample
from storage.volume import Volume

__all__ = ["BloodPool", "blood_pool"]

_GRID_MM = (4.0, 2.0, 2.0)
_SLAB = 3  # slices of the grid: 12 mm, along which a vessel stays in its place
_CANAL_MM = 7.0  # the spinal canal's radius, at most; the ring of bone around it is within:
_RING_MM = (10.0, 20.0)
_LEAST_CANAL = 0.15  # bone in the ring over bone in the canal; 0.2 to 0.6 along the trunk
_STRAY_MM = 40.0  # of the canal from its mean place
_VESSEL_MM = 5.0
_REACH_MM = (45.0, 100.0)  # how far vessels are looked for: sideways, forwards from the canal
_VERTEBRA_MM = (26.0, 50.0)  # the same of what a vertebra takes
_RAYS_MM = (10.0, 14.0, 18.0)
_DIRECTIONS = 24
_DARKER_HU = 25.0
_LEAST_ROUND = 0.6
_LEAST_SLABS = 3

Plane = NDArray[np.float32]
Place = tuple[int, int]


@dataclass(frozen=True)
class BloodPool:
    """hu: the median over slabs; low_hu, high_hu: their quartiles; slabs: how many had a vessel."""

    hu: float
    low_hu: float
    high_hu: float
    slabs: int


def blood_pool(volume: Volume) -> BloodPool | None:
    """Blood's HU in a CT of the trunk, None where no spine with vessels before it was found.

    In every slab of 12 mm the spinal canal is found, a hole in a ring of bone, and in front of it,
    beside the vertebra, the brightest place of 10 mm that is homogeneous and from which it gets
    darker in most directions within 18 mm. It is chosen in one slab and measured in the next, so
    that noise cannot choose its own maximum. With contrast agent that is a vessel, without it
    whatever tissue there is brightest: 30 to 70 HU, blood among them.
    """
    hu = resample(canonical(volume), _GRID_MM).hu.astype(np.float32)
    hu = np.clip(hu, -200, 1000)
    measured = np.array(list(_slabs(hu)))
    if len(measured) < _LEAST_SLABS:
        return None
    low, median, high = np.percentile(measured, (25, 50, 75))
    return BloodPool(float(median), float(low), float(high), len(measured))


def _slabs(hu: NDArray[np.float32]) -> Iterator[float]:
    """What the vessel of each slab measures in the slab above it."""
    disc = _disc(_VESSEL_MM)
    for slab, canal in _canals(hu):
        place = _vessel(hu[slab : slab + _SLAB], canal, disc)
        if place is not None:
            above = hu[slab + _SLAB : slab + 2 * _SLAB].mean(axis=0)
            yield float(ndimage.correlate(above, disc, mode="nearest")[place])


def _canals(hu: NDArray[np.float32]) -> Iterator[tuple[int, Place]]:
    """First slice and spinal canal of every slab that has one, and a slab above it."""
    y, x = _offsets(_RING_MM[1])
    distance = np.hypot(y, x)
    ring = (distance >= _RING_MM[0]) & (distance <= _RING_MM[1])
    hole = distance <= _CANAL_MM
    kernel = (ring / ring.sum() - hole / hole.sum())[None].astype(np.float32)
    bone = ndimage.uniform_filter1d(np.clip((hu - 120) / 180, 0, 1), 9, axis=0, mode="nearest")
    score = signal.fftconvolve(bone, kernel, mode="same", axes=(1, 2))
    column = ndimage.gaussian_filter(score.mean(axis=0), 2)
    centre = np.unravel_index(np.argmax(column), column.shape)
    rows, columns = np.ogrid[: column.shape[0], : column.shape[1]]
    stray = np.hypot((rows - centre[0]) * _GRID_MM[1], (columns - centre[1]) * _GRID_MM[2])
    for slab in range(0, len(hu) - 2 * _SLAB + 1, _SLAB):
        near = np.where(stray <= _STRAY_MM, score[slab + _SLAB // 2], 0)
        place = np.unravel_index(np.argmax(near), near.shape)
        if near[place] >= _LEAST_CANAL:
            yield slab, (int(place[0]), int(place[1]))


def _vessel(slab: NDArray[np.float32], canal: Place, disc: Plane) -> Place | None:
    """The brightest round and homogeneous place that the slab has beside and before a vertebra."""
    mean = ndimage.correlate(slab.mean(axis=0), disc, mode="nearest")
    square = ndimage.correlate((slab**2).mean(axis=0), disc, mode="nearest")
    spread = np.sqrt(np.maximum(square - mean**2, 0))

    rows, columns = np.indices(mean.shape)
    forwards = (canal[0] - rows) * _GRID_MM[1]
    sideways = np.abs(columns - canal[1]) * _GRID_MM[2]
    seen = (sideways <= _REACH_MM[0]) & (forwards >= 0) & (forwards <= _REACH_MM[1])
    seen &= (sideways > _VERTEBRA_MM[0]) | (forwards > _VERTEBRA_MM[1])
    seen &= mean > 0
    if not seen.any():
        return None
    # Noise sets a floor; the blur at the border of a bright vessel grows with it.
    limit = np.maximum(np.maximum(25, 0.15 * mean), 1.5 * np.percentile(spread[seen], 10))
    seen &= (spread <= limit) & (_roundness(slab, mean) >= _LEAST_ROUND)
    if not seen.any():
        return None
    row, column = np.unravel_index(np.argmax(np.where(seen, mean, -np.inf)), mean.shape)
    return int(row), int(column)


def _roundness(slab: NDArray[np.float32], mean: Plane) -> Plane:
    """The share of directions in which it gets darker than `mean` within the rays' length."""
    smooth = ndimage.gaussian_filter(slab.mean(axis=0), 1)
    # Nothing is known of what lies outside of the field of view: not darker.
    width = int(_RAYS_MM[-1] / min(_GRID_MM[1:])) + 1
    padded = np.pad(smooth, width, constant_values=np.inf)
    share = np.zeros(mean.shape, np.float32)
    for angle in np.arange(_DIRECTIONS) * (2 * np.pi / _DIRECTIONS):
        darker = np.zeros(mean.shape, bool)
        for length in _RAYS_MM:
            row = width + round(np.sin(angle) * length / _GRID_MM[1])
            column = width + round(np.cos(angle) * length / _GRID_MM[2])
            there = padded[row : row + mean.shape[0], column : column + mean.shape[1]]
            darker |= there < mean - _DARKER_HU
        share += darker
    share /= _DIRECTIONS
    return share


def _offsets(radius_mm: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """y, x in mm of a grid that holds a disc of that radius."""
    half = int(radius_mm / _GRID_MM[1])
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
    return y * _GRID_MM[1], x * _GRID_MM[2]


def _disc(radius_mm: float) -> Plane:
    """Weights that sum to 1."""
    disc = np.hypot(*_offsets(radius_mm)) <= radius_mm
    weights: Plane = (disc / disc.sum()).astype(np.float32)
    return weights
