"""The trunk of the phantom: skin, fat, muscles, and the surfaces that the organs are clipped by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .phantom_anatomy import Subject
from .phantom_shapes import Array, Layer, Points, plate, spline, superellipse, tube_layers

__all__ = ["Trunk", "muscle_layers", "trunk_layers"]

_SKIN_MM = 2.0


@dataclass(frozen=True)
class Trunk:
    """Fields over all points of a slab, in atlas mm.

    wall: distance to the outer surface of the muscular wall. cavity: to its inner surface. above:
    height over the dome of the diaphragm, across its surface. fat: thickness of the subcutaneous
    fat. angle: round the body in rad, 0 at the spine, pi at the navel.
    """

    wall: Array
    cavity: Array
    above: Array
    fat: Array
    angle: Array

    @property
    def abdomen(self) -> Array:
        """Distance to the abdominal cavity, under the diaphragm."""
        distance: Array = np.maximum(self.cavity, self.above + 1.5)
        return distance

    @classmethod
    def of(cls, subject: Subject, points: Points) -> Trunk:
        x, z = np.abs(points.x), points.z
        half_depth = 101 * subject.girth[1]
        y = points.y - (73 - half_depth)  # the back stays where the spine is
        front = -y / (np.sqrt(x * x + y * y) + 1)
        angle = np.arctan2(x, y)
        chest = np.clip((z - 90) / 210, 0, 1)
        furrow = np.exp(-((x / 15) ** 2)) * (y > 0)
        width = 150 * subject.girth[0] * (1 - 0.22 * chest * chest)
        wall = superellipse(x, np.abs(y), width, half_depth * (1 - 0.16 * chest)) + 6 * furrow
        fat = subject.fat_mm / subject.scale
        fat = fat * (0.75 + 0.4 * front * front + 0.1 * front - 0.2 * furrow)
        cavity = wall + _wall_thickness(x, z, front, angle)
        return cls(wall, cavity, _above_diaphragm(points, front, cavity), fat, angle)


def _wall_thickness(x: Array, z: Array, front: Array, angle: Array) -> Array:
    rectus = np.clip((front - 0.25) / 0.3, 0, 1)
    linea_alba = 6 * np.exp(-((x / 5) ** 2))
    semilunar_line = 4 * np.exp(-(((x - 62) / 9) ** 2))
    # Below the ribs the back is closed by the paraspinal and lumbar muscles themselves.
    lumbar = np.clip((50 - z) / 40, 0, 1) * np.clip((1.15 - angle) / 0.3, 0, 1)
    thickness: Array = 12.5 - rectus * (3 + linea_alba + semilunar_line) - 7.5 * lumbar
    return thickness


def _above_diaphragm(points: Points, front: Array, cavity: Array) -> Array:
    """Two domes that fall off to the wall, most at the back: lung reaches behind the liver."""
    x = points.x
    dome = 112 - 9 * np.tanh(x / 40) - 10 * np.exp(-((x / 28) ** 2))
    drop = (75 - 35 * front) * np.exp(-np.maximum(-cavity, 0) / 16)
    slope = drop / 16
    above: Array = (points.z - dome + drop) / np.sqrt(1 + slope * slope)
    return above


def trunk_layers(points: Points, trunk: Trunk) -> Iterator[Layer]:
    """Skin, subcutaneous fat, muscular wall, and the cavity, full of fat until organs fill it."""
    box = points.everywhere
    yield points.layer("skin", box, trunk.wall - trunk.fat - _SKIN_MM)
    yield points.layer("fat", box, trunk.wall - trunk.fat)
    yield points.layer("muscle", box, trunk.wall)
    flank = points.box((-300, -300, -400), (300, 300, 50))
    if flank is not None:  # fat planes between the three muscles of the flank
        wall, depth = trunk.wall[flank], trunk.cavity[flank] - trunk.wall[flank]
        planes = np.minimum(np.abs(wall + 4.3), np.abs(wall + 8.3)) - 0.3
        yield points.layer("fat", flank, np.maximum(planes, 11.8 - depth))
    yield points.layer("fat", box, trunk.cavity)


def muscle_layers(points: Points) -> Iterator[Layer]:
    """Paraspinal muscles, quadratus lumborum, psoas, and the crura of the diaphragm."""
    box = points.box((-70, 15, -400), (70, 100, 500))
    if box is not None:
        p = points.cut(box)
        x = np.abs(p.x)
        lumbar = np.clip((90 - p.z) / 60, 0, 1)
        u = (x - 29 - 5 * lumbar) / (26 + 5 * lumbar)
        v = (p.y - 54 + 7 * lumbar) / (16 + 7 * lumbar)
        yield points.layer("muscle", box, np.maximum(22 * (np.hypot(u, v) - 1), 1.2 - x))
    box = points.box((-100, 15, -180), (100, 60, 60))
    if box is not None:
        p = points.cut(box)
        quadratus = plate(
            np.abs(p.x), p.y, p.z, ((48, 26), (80, 37)), z_range=(-165, 20), radius_mm=6
        )
        yield points.layer("muscle", box, quadratus)
    for side in (-1, 1):
        psoas = [
            (side * 25, 6, 62, 4), (side * 31, 4, 10, 12), (side * 37, 0, -40, 18),
            (side * 45, -8, -95, 21), (side * 55, -18, -160, 21),
        ]  # fmt: skip
        crus = [
            (side * 12 + 3, -20, 112, 5), (side * 13 + 3, -21, 60, 6),
            (side * 12 + 2, -18, 15, 5), (side * 10, -15, -30, 3),
        ]  # fmt: skip
        yield from tube_layers(points, "muscle", spline(psoas, 8))
        yield from tube_layers(points, "muscle", spline(crus, 8))
