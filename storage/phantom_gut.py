"""The phantom's gut: small bowel, colon, duodenum and stomach, with fluid, faeces and gas."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .phantom_anatomy import Subject
from .phantom_organs import FAT_PLANE_MM, organ_path
from .phantom_shapes import Array, Knots, Layer, Points, Ripple, Vector, spline, tube
from .phantom_trunk import Trunk

__all__ = ["gut_layers"]

_COLON: Knots = (
    (-92, -22, -160, 24), (-104, 4, -110, 22), (-104, 10, -60, 20), (-98, -12, -22, 19),
    (-72, -78, -26, 19), (-20, -104, -44, 19), (40, -104, -34, 19), (90, -72, 4, 19),
    (112, -24, 18, 16), (118, 8, -14, 14), (114, 12, -70, 14), (104, -2, -140, 14),
)  # fmt: skip
_STOMACH: Knots = (
    (56, -6, 98, 20), (60, -22, 84, 32), (62, -52, 56, 30), (46, -82, 28, 25),
    (10, -92, 10, 19), (-20, -82, 10, 13), (-30, -76, 12, 9),
)  # fmt: skip
_DUODENUM: Knots = (
    (-30, -76, 12, 9), (-48, -60, 12, 12), (-52, -38, -6, 12), (-46, -24, -32, 12),
    (-22, -46, -50, 10), (14, -48, -50, 10), (34, -50, -22, 10),
)  # fmt: skip
_BOWEL = ("bowel_wall", "bowel_fluid")
_COLON_TISSUES = ("bowel_wall", "faeces")


def gut_layers(subject: Subject, points: Points, trunk: Trunk) -> Iterator[Layer]:
    """Each piece: a plane of fat, the wall, the contents, and gas over an air-fluid level."""
    rng = np.random.default_rng([subject.seed, 0x67757473])
    clip = trunk.abdomen + 1
    for knots in subject.small_bowel:
        gas = float(rng.choice([-2.0, 6.0, 30.0, 30.0, 60.0]))  # most loops hold none
        wall = 7.0 if gas == 60.0 else float(rng.uniform(2.0, 3.5))  # some are collapsed
        yield from _piece(
            points, spline(knots), clip, wall_mm=wall, tissues=_BOWEL, gas_in_front_mm=gas
        )
    colon = organ_path(subject, "colon", _COLON)
    colon[:, 3] *= 1 + 0.14 * np.sin(np.arange(len(colon)) / 1.4)  # haustra
    ripple = subject.organs["colon"].ripple
    for part, gas in zip(np.array_split(np.arange(len(colon)), 5), (6, 0, -4, 8, 30), strict=True):
        path = colon[max(part[0] - 1, 0) : part[-1] + 1]
        level = gas + float(rng.uniform(-5, 9))
        yield from _piece(
            points, path, clip, wall_mm=2, tissues=_COLON_TISSUES, gas_in_front_mm=level,
            ripple=ripple,
        )  # fmt: skip
    duodenum = organ_path(subject, "pancreas", _DUODENUM)
    yield from _piece(points, duodenum, clip, wall_mm=3, tissues=_BOWEL, gas_in_front_mm=40)
    stomach = organ_path(subject, "stomach", _STOMACH)
    ripple = subject.organs["stomach"].ripple
    yield from _piece(
        points, stomach, clip, wall_mm=4, tissues=("stomach_wall", "stomach_fluid"),
        gas_in_front_mm=float(rng.uniform(0, 25)), ripple=ripple,
    )  # fmt: skip


def _piece(
    points: Points,
    path: Vector,
    clip: Array,
    *,
    wall_mm: float,
    tissues: tuple[str, str],
    gas_in_front_mm: float,
    ripple: Ripple | None = None,
) -> Iterator[Layer]:
    """Gas fills what lies more than gas_in_front_mm in front of the path's mean: he lies supine."""
    hit = tube(points, path, FAT_PLANE_MM + 4)
    if hit is None:
        return
    box, distance = hit
    p = points.cut(box)
    if ripple is not None:
        distance = distance + ripple(p.x, p.y, p.z)
    outer = np.maximum(distance, clip[box])
    yield points.layer("fat", box, np.maximum(distance - FAT_PLANE_MM, clip[box] - 1))
    yield points.layer(tissues[0], box, outer)
    yield points.layer(tissues[1], box, outer + wall_mm)
    level = float(path[:, 1].mean()) - gas_in_front_mm
    yield points.layer("gas", box, np.maximum(outer + wall_mm, p.y - level))
