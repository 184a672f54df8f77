"""The phantom's vessels outside of organs: aorta and its branches, IVC, portal and renal veins."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from .phantom_anatomy import ARTERIAL_WALL_MM, ILIACS, Subject, aorta_path, iliac_path
from .phantom_organs import organ_path
from .phantom_shapes import Knots, Layer, Points, Vector, spline, tube, tube_layers

__all__ = ["vessel_layers"]

# Tissue, the organ whose place and calibre the vessel follows, and its course.
_VEINS: tuple[tuple[str, str, Knots], ...] = (
    ("mesenteric_vein", "portal_vein",
     ((-9, -52, 18, 5.8), (-10, -62, -14, 5.2), (-9, -68, -80, 4))),
    ("portal_vein", "portal_vein", ((-9, -52, 18, 6.5), (-20, -55, 34, 7), (-40, -56, 54, 7))),
    ("portal_vein", "portal_vein",
     ((-9, -52, 18, 5), (20, -50, 30, 4.8), (56, -20, 45, 4.5), (84, 8, 58, 3.5))),
    ("iliac_vein", "ivc", ((-14, -25, -82, 8), (-40, -8, -150, 7))),
    ("iliac_vein", "ivc", ((-14, -25, -82, 8), (10, -20, -102, 7), (38, -8, -150, 7))),
    ("renal_vein", "kidney_left",
     ((44, -2, 6, 4.5), (26, -34, 8, 4.8), (8, -45, 8, 4), (-16, -36, 6, 5))),
    ("renal_vein", "kidney_right", ((-42, 0, -8, 4.5), (-26, -26, -2, 5))),
    ("ivc_infrarenal", "ivc", ((-14, -25, -84, 9), (-19, -28, -40, 9.5), (-22, -30, 2, 10))),
    ("ivc_suprarenal", "ivc",
     ((-22, -30, 2, 10), (-24, -36, 40, 11), (-24, -42, 80, 12), (-20, -50, 112, 13),
      (-24, -58, 145, 13))),
)  # fmt: skip
_ARTERIES: tuple[Knots, ...] = (
    ((9, -38, 58, 4.5), (8, -53, 55, 3.8)),  # coeliac trunk
    ((8, -53, 55, 3.2), (36, -40, 52, 3), (60, -12, 58, 3), (82, 6, 60, 2.4)),  # splenic
    ((8, -53, 55, 2.8), (-14, -64, 44, 2.6), (-38, -62, 54, 2)),  # hepatic
    ((9, -38, 42, 4.2), (8, -52, 28, 4.2), (5, -57, -10, 3.8), (0, -64, -80, 3)),  # mesenteric
    ((10, -31, 8, 3.6), (28, -16, 7, 3.2), (42, 2, 8, 2.6)),  # renal
    ((5, -30, 4, 3.4), (-20, -17, 1, 3.2), (-40, 4, -8, 2.6)),
    ((-10, -54, 288, 6), (-14, -44, 330, 6)),  # brachiocephalic, left carotid, left subclavian
    ((2, -42, 296, 4), (2, -32, 335, 4)),
    ((14, -28, 292, 5), (22, -20, 335, 5)),
)


def vessel_layers(subject: Subject, points: Points) -> Iterator[Layer]:
    """Mesenteric vessels, veins, arteries, and at last the aorta with its wall."""
    for tissue, path in _mesentery(subject.seed):
        yield from tube_layers(points, tissue, path)
    for tissue, organ, knots in _VEINS:
        yield from tube_layers(points, tissue, organ_path(subject, organ, knots))
    for knots in _ARTERIES:
        path = spline(knots)
        path[:, :3] += subject.organs["aorta"].offset_mm
        yield from tube_layers(points, "artery", path)
    for tissue in ILIACS:
        yield from tube_layers(points, tissue, iliac_path(subject, tissue))
    hit = tube(points, aorta_path(subject), 2)
    if hit is not None:
        box, distance = hit
        yield points.layer("fat", box, distance - 1)
        yield points.layer("arterial_wall", box, distance)
        yield points.layer("aorta", box, distance + ARTERIAL_WALL_MM)


@lru_cache(maxsize=4)  # every slab of a subject asks for them
def _mesentery(seed: int) -> tuple[tuple[str, Vector], ...]:
    """Small vessels that fan out from the root of the mesentery: the dots in visceral fat."""
    rng = np.random.default_rng([seed, 0x6D657365])
    vessels = []
    for number in range(28):
        root = np.array([-6.0, -64.0, rng.uniform(-80, -5)])
        end = rng.uniform((-85, -110, -130), (105, -20, 10))
        bend = 0.5 * (root + end) + rng.normal(0, 8, 3)
        tissue = "artery" if number % 3 == 0 else "mesenteric_vein"
        vessels.append((tissue, spline([(*root, 1.8), (*bend, 1.5), (*end, 0.8)], 12.0)))
    return tuple(vessels)
