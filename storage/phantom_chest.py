"""The phantom's chest: diaphragm, lungs with vessels, mediastinum, heart, airways, oesophagus."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from .phantom_anatomy import Subject
from .phantom_shapes import (
    Array,
    Box,
    Knots,
    Layer,
    Points,
    Vector,
    ellipsoid,
    shifted,
    spline,
    tube,
    tube_layers,
)
from .phantom_trunk import Trunk

__all__ = ["chest_layers"]

_HEART = (
    ("fat", (14, -72, 160), (66, 54, 50)),
    ("heart_wall", (26, -74, 152), (52, 40, 40)),
    ("heart_left", (31, -70, 152), (40, 27, 27)),
    ("heart_right", (-2, -94, 154), (44, 16, 32)),
    ("heart_right", (-32, -64, 168), (24, 26, 30)),
    ("heart_left", (4, -46, 190), (24, 18, 22)),
)
_TUBES: tuple[tuple[str, Knots], ...] = (
    ("svc", ((-30, -58, 180, 9), (-30, -56, 230, 9), (-30, -52, 290, 8))),
    ("pulmonary_artery", ((10, -86, 200, 13), (14, -68, 228, 13), (26, -42, 244, 11))),
    ("pulmonary_artery", ((14, -62, 236, 11), (-18, -40, 232, 10), (-46, -22, 220, 7))),
    ("pulmonary_artery", ((24, -44, 242, 10), (46, -20, 224, 7))),
    ("airway", ((0, 0, 400, 9), (2, -13, 290, 8.5), (2, -16, 262, 8))),
    ("airway", ((2, -16, 262, 6.5), (30, -14, 232, 6), (46, -8, 215, 4))),
    ("airway", ((2, -16, 262, 6.5), (-30, -14, 236, 6), (-46, -8, 215, 4))),
    ("oesophagus", ((2, -10, 400, 7), (2, -20, 200, 7), (14, -42, 130, 8), (32, -38, 94, 9))),
)


def chest_layers(subject: Subject, points: Points, trunk: Trunk) -> Iterator[Layer]:
    """Everything over the diaphragm; nothing in a slab that lies under it."""
    box = points.box((-250, -250, -40), (250, 250, 500))
    if box is None or float(trunk.above[box].max()) < -5:
        return
    p = points.cut(box)
    cavity, above = trunk.cavity[box], trunk.above[box]
    yield points.layer("muscle", box, np.maximum(cavity, -1.5 - above))  # the diaphragm
    pleura = np.maximum(cavity + 1, 1.5 - above)
    # The mediastinum is widest at the heart.
    aside = np.abs(p.x - 4) - 25 - 11 * np.exp(-(((p.y + 90) / 30) ** 2))
    lung = np.maximum(pleura, -aside)
    yield points.layer("lung", box, lung)
    yield points.layer("fat", box, np.maximum(pleura, aside))
    for path in _lung_vessels(subject.seed):
        yield from _in_lung(points, path, box, lung)
    for tissue, knots in _TUBES:
        yield from tube_layers(points, tissue, spline(knots))
    yield from _heart(subject, points, trunk)


@lru_cache(maxsize=4)  # every slab of a subject asks for them
def _lung_vessels(seed: int) -> tuple[Vector, ...]:
    """Vessels that fork once on their way from the hila to the pleura."""
    rng = np.random.default_rng([seed, 0x6C756E67])
    paths = []
    for side in (-1, 1):
        hilum = np.array([side * 42.0, -18.0, 218.0])
        for _ in range(36):
            end = rng.uniform((35, -115, 10), (138, 58, 330)) * (side, 1, 1)
            fork = hilum + 0.45 * (end - hilum) + rng.normal(0, 10, 3)
            twin = end + rng.normal(0, 28, 3)
            paths.append(spline([(*hilum, 4.5), (*fork, 2.6), (*end, 0.7)], 20.0))
            bend = 0.5 * (fork + twin) + 4
            paths.append(spline([(*fork, 2.2), (*bend, 1.6), (*twin, 0.7)], 20.0))
    return tuple(paths)


def _in_lung(points: Points, path: Vector, box: Box, lung: Array) -> Iterator[Layer]:
    hit = tube(points.cut(box), path)
    if hit is not None:
        inner, distance = hit
        within = np.maximum(distance, lung[inner])
        yield points.layer("lung_vessel", shifted(box, inner), within)


def _heart(subject: Subject, points: Points, trunk: Trunk) -> Iterator[Layer]:
    """Fat, muscle and chambers as ellipsoids along one long axis, resting on the diaphragm."""
    shape = subject.organs["heart"]
    long_axis = np.array([0.68, -0.6, -0.42])
    long_axis /= np.linalg.norm(long_axis)
    second = np.cross(long_axis, [0.0, 0.0, 1.0])
    second /= np.linalg.norm(second)
    axes = np.stack([long_axis, second, np.cross(long_axis, second)])
    for tissue, centre, radii in _HEART:
        middle = np.asarray(centre) + shape.offset_mm
        size = np.asarray(radii) * shape.scale
        box = points.box(middle - size.max(), middle + size.max())
        if box is None:
            continue
        chamber = ellipsoid(points.cut(box), middle, size, axes)
        rest = np.maximum(trunk.cavity[box] + 2, 3 - trunk.above[box])
        yield points.layer(tissue, box, np.maximum(chamber, rest))
