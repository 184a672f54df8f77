"""Gantry tilt: the slices of a sheared stack, moved within their planes until it is upright."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from storage.errors import GeometryError
from storage.grid import AIR_HU, MAX_SHEAR
from storage.volume import Volume

__all__ = ["tilt_degrees", "upright"]

_MAX_VOXELS = 1 << 31


def tilt_degrees(affine: NDArray[np.float64]) -> float:
    """The angle between the slices' normal and the line through their first pixels."""
    stride, column, row = affine[:3, :3].T
    normal = np.cross(row, column)
    along = abs(stride @ normal) / np.linalg.norm(normal)
    across = math.sqrt(max(stride @ stride - along**2, 0.0))
    return math.degrees(math.atan2(across, along))


def upright(hu: NDArray[np.int16], affine: NDArray[np.float64], name: object) -> Volume:
    """The same slices at the same places on a grid at right angles, wide enough for all of them.

    hu: [Z, Y, X]. affine: of the sheared grid, whose axis 0 leads from slice to slice. No slice
    leaves its plane, so nothing is interpolated between slices: each is moved by whole pixels,
    without loss, and by the remaining fraction (at most half a pixel along each axis) with linear
    interpolation, which blurs it by at most what averaging two neighbours does. Outside of the
    slices is air. Raises GeometryError, beginning with `name`, for more than 2^31 voxels.
    """
    count, rows, columns = hu.shape
    stride, column, row = affine[:3, :3].T
    # Where slice 1 lies in the plane of slice 0, in pixels down and to the right.
    step = np.array([stride @ column / (column @ column), stride @ row / (row @ row)])
    shifts = np.arange(count)[:, None] * step
    whole = np.rint(shifts).astype(int)
    low, high = whole.min(axis=0), whole.max(axis=0)
    grown = (count, *(np.array([rows, columns]) + high - low).tolist())
    if math.prod(grown) > _MAX_VOXELS:
        raise GeometryError(
            f"{name}: the tilted stack has shape {grown} when upright; expected at most "
            f"{_MAX_VOXELS} voxels"
        )

    moved = np.full(grown, AIR_HU, np.int16)
    for index, (offset, fraction) in enumerate(zip(whole - low, shifts - whole, strict=True)):
        top, left = offset.tolist()
        moved[index, top : top + rows, left : left + columns] = _shifted(hu[index], fraction)
    result = affine.copy()
    result[:3, 0] = stride - step[0] * column - step[1] * row
    result[:3, 3] += low[0] * column + low[1] * row
    done = {
        "step": "correct gantry tilt",
        "degrees": round(tilt_degrees(affine), 3),
        "rule": "each slice moved within its plane",
        "interpolation": "linear, in the plane",
        "outside_hu": AIR_HU,
    }
    return Volume(moved, result, steps=(done,))


def _shifted(plane: NDArray[np.int16], fraction: NDArray[np.float64]) -> NDArray[np.int16]:
    """The plane moved by a fraction of a pixel, its border repeated."""
    if np.abs(fraction).max() < MAX_SHEAR:
        return plane
    exact = ndimage.shift(
        plane, fraction, output=np.dtype(np.float32), order=1, mode="nearest", prefilter=False
    )
    rounded: NDArray[np.int16] = np.rint(exact).astype(np.int16)
    return rounded
