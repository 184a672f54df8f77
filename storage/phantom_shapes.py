"""Solids as distances: ellipsoids, tubes, plates and random ripples on the points of a slab.

Every distance is signed (negative inside), in mm, and exact to first order at the surface, which
is where it becomes the share of a voxel that the solid covers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicSpline

__all__ = [
    "Array",
    "Box",
    "Knots",
    "Layer",
    "Points",
    "Ripple",
    "Vector",
    "ellipsoid",
    "plate",
    "shifted",
    "smooth_min",
    "spline",
    "superellipse",
    "tube",
    "tube_layers",
]

Array = npt.NDArray[np.floating]  # float32 wherever it has one value per voxel
Vector = npt.NDArray[np.float64]
Box = tuple[slice, slice, slice]
Layer = tuple[str, Box, Array]  # tissue, index box in the slab, share of each voxel that it covers
Knots = Sequence[tuple[float, float, float, float]]  # x, y, z and radius along a tube


@dataclass(frozen=True)
class Ripple:
    """A smooth random field of standard deviation amplitude_mm: a sum of plane waves.

    waves: wave vectors (x, y, z) in rad/mm, one phase in rad each.
    """

    amplitude_mm: float
    waves: tuple[tuple[float, float, float], ...]
    phases: tuple[float, ...]

    def __call__(self, x: Array, y: Array, z: Array) -> Array:
        total: Array = np.zeros(np.broadcast_shapes(x.shape, y.shape, z.shape), np.float32)
        for (kx, ky, kz), phase in zip(self.waves, self.phases, strict=True):
            total += np.sin(kx * x + ky * y + kz * z + phase)
        total *= self.amplitude_mm * (2 / len(self.waves)) ** 0.5
        return total


@dataclass(frozen=True)
class Points:
    """Sample points of a slab in atlas mm.

    x, y, z: [S, Y, X], to the patient's left, back and head. softness_mm: the width over which a
    border passes from 0 to 1, that is the in-plane voxel size. extent: for z, y, x the smallest and
    largest coordinate in every slice, row, column, which `box` searches.
    """

    x: Array
    y: Array
    z: Array
    softness_mm: float
    extent: tuple[Array, Array, Array]

    @classmethod
    def of(cls, x: Array, y: Array, z: Array, softness_mm: float) -> Points:
        def range_along(axis: int, values: Array) -> Array:
            others = tuple(other for other in range(3) if other != axis)
            return np.stack([values.min(axis=others), values.max(axis=others)])

        extent = (range_along(0, z), range_along(1, y), range_along(2, x))
        return cls(x, y, z, softness_mm, extent)

    @property
    def everywhere(self) -> Box:
        slices, rows, columns = self.x.shape
        return slice(0, slices), slice(0, rows), slice(0, columns)

    def box(self, low: npt.ArrayLike, high: npt.ArrayLike, margin_mm: float = 0.0) -> Box | None:
        """Index box around the points with low <= (x, y, z) <= high; None if there are none."""
        slices = []
        lows, highs = np.asarray(low, float)[::-1], np.asarray(high, float)[::-1]
        reach = margin_mm + self.softness_mm
        for (smallest, largest), least, most in zip(self.extent, lows, highs, strict=True):
            inside = np.flatnonzero((largest >= least - reach) & (smallest <= most + reach))
            if inside.size == 0:
                return None
            slices.append(slice(int(inside[0]), int(inside[-1]) + 1))
        return slices[0], slices[1], slices[2]

    def cut(self, box: Box) -> Points:
        """The points of one index box."""
        z, y, x = self.extent
        extent = (z[:, box[0]], y[:, box[1]], x[:, box[2]])
        return Points(self.x[box], self.y[box], self.z[box], self.softness_mm, extent)

    def layer(self, tissue: str, box: Box, distance: Array) -> Layer:
        """A tissue over a box: a voxel is covered by half where its centre is on the surface."""
        return tissue, box, np.clip(0.5 - distance / np.float32(self.softness_mm), 0, 1)


def shifted(outer: Box, inner: Box) -> Box:
    """`inner`, counted from the corner of `outer`, counted from where `outer` is."""
    a, b, c = (
        slice(o.start + i.start, o.start + i.stop) for o, i in zip(outer, inner, strict=True)
    )
    return a, b, c


def ellipsoid(
    points: Points, centre: npt.ArrayLike, radii: npt.ArrayLike, axes: Vector | None = None
) -> Array:
    """Distance to an ellipsoid. The rows of axes [3, 3] are the directions of its radii."""
    cx, cy, cz = (float(v) for v in np.asarray(centre, float))
    a, b, c = (float(v) for v in np.asarray(radii, float))
    x, y, z = points.x - cx, points.y - cy, points.z - cz
    if axes is not None:
        u, v, w = axes.astype(np.float32)
        x, y, z = (m[0] * x + m[1] * y + m[2] * z for m in (u, v, w))
    x, y, z = x / a, y / b, z / c
    level = np.sqrt(x * x + y * y + z * z)
    gradient = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
    # Near the centre the quotient has no limit; any value well inside serves.
    distance: Array = np.maximum(level * (level - 1) / np.maximum(gradient, 1e-6), -min(a, b, c))
    return distance


def superellipse(x: Array, y: Array, a: Array, b: Array) -> Array:
    """Distance to (x / a)^2.5 + (y / b)^2.5 = 1 in the first quadrant: the section of a trunk."""
    p, q = x / a, y / b
    p15, q15 = p * np.sqrt(p), q * np.sqrt(q)
    level = np.power(p * p15 + q * q15 + np.float32(1e-9), np.float32(0.4))
    gradient = np.sqrt((p15 / a) ** 2 + (q15 / b) ** 2) / (level * np.sqrt(level))
    distance: Array = (level - 1) / np.maximum(gradient, 1e-6)
    return distance


def plate(
    x: Array,
    y: Array,
    z: Array,
    ends: tuple[tuple[float, float], tuple[float, float]],
    *,
    z_range: tuple[float, float],
    radius_mm: float,
) -> Array:
    """Distance to a rounded upright plate: a segment of the xy plane, extruded over z_range."""
    start, end = ends
    dx, dy = end[0] - start[0], end[1] - start[1]
    px, py = x - start[0], y - start[1]
    along = np.clip((px * dx + py * dy) / (dx * dx + dy * dy), 0, 1)
    beyond = np.maximum(np.maximum(z_range[0] - z, z - z_range[1]), 0)
    gap = np.sqrt((px - along * dx) ** 2 + (py - along * dy) ** 2 + beyond * beyond)
    distance: Array = gap - radius_mm
    return distance


def smooth_min(a: Array, b: Array, radius_mm: float) -> Array:
    """The union of two solids with their crease filled over radius_mm."""
    blend = np.maximum(radius_mm - np.abs(a - b), 0)
    distance: Array = np.minimum(a, b) - blend * blend / (4 * radius_mm)
    return distance


def spline(knots: npt.ArrayLike, step_mm: float = 4.0) -> Vector:
    """[n, D] points about step_mm apart on the natural cubic spline through knots [k, D].

    The first three columns are x, y, z; further ones (a radius) are interpolated along.
    """
    table = np.asarray(knots, float)
    steps = np.linalg.norm(np.diff(table[:, :3], axis=0), axis=1)
    length = np.concatenate([[0.0], np.cumsum(steps)])
    count = max(2, int(np.ceil(length[-1] / step_mm)) + 1)
    curve = CubicSpline(length, table, bc_type="natural")
    sampled: Vector = curve(np.linspace(0.0, length[-1], count))
    return sampled


def tube(points: Points, path: Vector, margin_mm: float = 0.0) -> tuple[Box, Array] | None:
    """Index box and distance of a tube; None where it misses the slab.

    path: [n, 4] x, y, z and radius, as `spline` gives them; each piece is a cone with round ends.
    The distance is right up to margin_mm outside of the tube.
    """
    reach = float(path[:, 3].max()) + margin_mm
    whole = points.box(path[:, :3].min(0), path[:, :3].max(0), reach)
    if whole is None:
        return None
    local = points.cut(whole)
    distance: Array = np.full(local.x.shape, 1e3, np.float32)
    for start, end in zip(path[:-1].tolist(), path[1:].tolist(), strict=True):
        low, high = np.minimum(start, end)[:3], np.maximum(start, end)[:3]
        box = local.box(low, high, max(start[3], end[3]) + margin_mm)
        if box is None:
            continue
        x, y, z = local.x[box] - start[0], local.y[box] - start[1], local.z[box] - start[2]
        dx, dy, dz, growth = (e - s for s, e in zip(start, end, strict=True))
        along = np.clip((x * dx + y * dy + z * dz) / max(dx * dx + dy * dy + dz * dz, 1e-6), 0, 1)
        gap = np.sqrt((x - along * dx) ** 2 + (y - along * dy) ** 2 + (z - along * dz) ** 2)
        np.minimum(distance[box], gap - (start[3] + along * growth), out=distance[box])
    return whole, distance


def tube_layers(points: Points, tissue: str, path: Vector) -> Iterator[Layer]:
    """A tube of one tissue: one layer, or none where it misses the slab."""
    hit = tube(points, path)
    if hit is not None:
        yield points.layer(tissue, *hit)
