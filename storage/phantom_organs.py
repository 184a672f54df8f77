"""The solid organs of the phantom's abdomen: liver, spleen, pancreas, gallbladder, kidneys.

Later layers cover earlier ones, which keeps organs disjoint. A rim of fat goes before each organ:
it keeps the planes between neighbours by which borders are seen without contrast.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .phantom_anatomy import Subject
from .phantom_shapes import (
    Array,
    Knots,
    Layer,
    Points,
    Vector,
    ellipsoid,
    shifted,
    smooth_min,
    spline,
    tube,
    tube_layers,
)
from .phantom_trunk import Trunk

__all__ = ["FAT_PLANE_MM", "organ_layers", "organ_path"]

FAT_PLANE_MM = 2.2
_TO_WALL_MM = 0.7  # fat between an organ and the wall it lies on

_LIVER = (
    ((-74, -34, 52), (70, 84, 76)),  # right lobe
    ((-100, -18, 6), (36, 56, 60)),  # its lower part
    ((-4, -92, 72), (70, 34, 38)),  # left lobe
    ((-12, -52, 62), (22, 18, 26)),  # caudate lobe
)
_HEPATIC_VEINS: tuple[Knots, ...] = (
    ((-24, -46, 100, 5), (-58, -22, 90, 4.5), (-90, 0, 72, 3.2), (-108, 16, 46, 1.8)),
    ((-24, -48, 100, 5), (-46, -66, 84, 4.4), (-70, -82, 58, 2.8), (-80, -84, 36, 1.6)),
    ((-22, -52, 100, 4.6), (2, -74, 90, 3.8), (26, -92, 84, 2.2)),
)
_PORTAL_BRANCHES: tuple[Knots, ...] = (
    ((-40, -56, 54, 6), (-66, -42, 60, 5), (-88, -16, 58, 3.5), (-110, 8, 50, 2)),
    ((-66, -42, 60, 4), (-92, -56, 66, 3.2), (-114, -62, 62, 1.8)),
    ((-66, -42, 60, 3.6), (-84, -24, 30, 3), (-100, -12, 4, 1.8)),
    ((-40, -56, 54, 5.5), (-28, -78, 68, 5), (-2, -90, 76, 3.5), (26, -94, 76, 2)),
)
_PANCREAS: Knots = (
    (-30, -40, -18, 10), (-31, -46, 0, 13), (-18, -60, 15, 9.5), (8, -66, 24, 9.5),
    (34, -50, 32, 10.5), (58, -26, 42, 10), (80, 0, 52, 8),
)  # fmt: skip
_ADRENALS: tuple[tuple[str, Knots], ...] = (
    ("adrenal_left", ((46, 10, 52, 2.2), (36, 0, 62, 3), (33, -6, 70, 2.2))),
    ("adrenal_left", ((46, -4, 54, 2), (36, 0, 62, 2.6))),
    ("adrenal_right", ((-38, 12, 46, 2), (-29, -4, 58, 2.8), (-27, -10, 66, 2.2))),
)


def organ_layers(subject: Subject, points: Points, trunk: Trunk) -> Iterator[Layer]:
    """Layers of all solid organs, the vessels inside the liver among them."""
    yield from _liver(subject, points, trunk)
    yield from _spleen(subject, points, trunk)
    yield from _pancreas(subject, points)
    yield from _gallbladder(subject, points)
    for tissue, knots in _ADRENALS:
        yield from tube_layers(points, tissue, spline(knots))
    yield from _kidney(subject, points, "right")
    yield from _kidney(subject, points, "left")


def organ_path(subject: Subject, name: str, knots: Knots) -> Vector:
    """The spline through the knots, shifted and thickened as the subject's organ is."""
    shape = subject.organs[name]
    path = spline(knots)
    path[:, :3] += shape.offset_mm
    path[:, 3] *= shape.scale[0]
    return path


def _liver(subject: Subject, points: Points, trunk: Trunk) -> Iterator[Layer]:
    box = points.box((-175, -160, -85), (95, 90, 150))
    if box is None:
        return
    p, shape = points.cut(box), subject.organs["liver"]
    lobes = [
        ellipsoid(p, np.add(centre, shape.offset_mm), np.multiply(radii, shape.scale))
        for centre, radii in _LIVER
    ]
    liver = lobes[0]
    for lobe in lobes[1:]:
        liver = smooth_min(liver, lobe, 14)
    liver = liver + shape.ripple(p.x, p.y, p.z)
    bed = np.maximum(trunk.abdomen[box], 1.5 - _perirenal(subject, p, "right"))
    yield points.layer("fat", box, np.maximum(liver - FAT_PLANE_MM, bed))
    ligament = np.abs(p.x + 22 + 0.25 * (p.y + 90)) - 1.2
    fissure = np.maximum(np.maximum(ligament, p.y + 66), p.z - 66)
    hilum = ellipsoid(p, np.add((-32, -60, 46), shape.offset_mm), (20, 7, 8))
    liver = np.maximum(np.maximum(liver, bed + _TO_WALL_MM), np.maximum(-fissure, 1 - hilum))
    yield points.layer("liver", box, liver)
    for tissue, tree in (("hepatic_vein", _HEPATIC_VEINS), ("portal_branch", _PORTAL_BRANCHES)):
        for knots in tree:
            hit = tube(p, organ_path(subject, "liver", knots))
            if hit is not None:
                inner, vessel = hit
                yield points.layer(tissue, shifted(box, inner), np.maximum(vessel, liver[inner]))


def _spleen(subject: Subject, points: Points, trunk: Trunk) -> Iterator[Layer]:
    """An ellipsoid on the wall at the back, hollow towards stomach and kidney."""
    box = points.box((35, -60, -25), (165, 110, 145))
    if box is None:
        return
    p, shape = points.cut(box), subject.organs["spleen"]
    centre = np.add((99, 30, 66), shape.offset_mm)
    axes = np.array([[0.87, 0.47, -0.14], [-0.46, 0.88, 0.11], [0.175, -0.03, 0.984]])
    spleen = ellipsoid(p, centre, np.multiply((38, 56, 60), shape.scale), axes)
    hollow = ellipsoid(p, centre - 46 * axes[0], (26, 46, 54), axes)
    spleen = np.maximum(spleen, -hollow) + shape.ripple(p.x, p.y, p.z)
    bed = np.maximum(trunk.abdomen[box], 1.5 - _perirenal(subject, p, "left"))
    yield points.layer("fat", box, np.maximum(spleen - FAT_PLANE_MM, bed))
    yield points.layer("spleen", box, np.maximum(spleen, bed + _TO_WALL_MM))


def _pancreas(subject: Subject, points: Points) -> Iterator[Layer]:
    hit = tube(points, organ_path(subject, "pancreas", _PANCREAS), FAT_PLANE_MM + 4)
    if hit is None:
        return
    box, distance = hit
    p = points.cut(box)
    distance = distance + subject.organs["pancreas"].ripple(p.x, p.y, p.z)
    yield points.layer("fat", box, distance - FAT_PLANE_MM)
    yield points.layer("pancreas", box, distance)


def _gallbladder(subject: Subject, points: Points) -> Iterator[Layer]:
    shape = subject.organs["gallbladder"]
    centre = np.add((-42, -82, 10), shape.offset_mm)
    axes = np.array([[0.9, 0.3, -0.3], [-0.2, 0.9, 0.4], [0.38, -0.31, 0.87]])
    box = points.box(centre - 36, centre + 36)
    if box is None:
        return
    p = points.cut(box)
    distance = ellipsoid(p, centre, np.multiply((14, 15, 29), shape.scale), axes)
    distance = distance + shape.ripple(p.x, p.y, p.z)
    yield points.layer("gallbladder_wall", box, distance)
    yield points.layer("bile", box, distance + 1.6)


def _kidney_frame(subject: Subject, side: str) -> tuple[Vector, Vector]:
    """Centre of a kidney, and its axes: to the hilum, across, along."""
    left = 1.0 if side == "left" else -1.0
    offset = subject.organs[f"kidney_{side}"].offset_mm
    along = np.array([-left * 0.24, 0.16, 1.0])  # the upper poles lean to the spine and back
    along /= np.linalg.norm(along)
    hilum = np.array([-left * 0.86, -0.5, 0.0])
    hilum -= along * (hilum @ along)
    hilum /= np.linalg.norm(hilum)
    centre = np.add((left * 60, 18, 8 if side == "left" else -10), offset)
    return centre, np.stack([hilum, np.cross(along, hilum), along])


def _perirenal(subject: Subject, points: Points, side: str) -> Array:
    """Distance to the fat round a kidney and its adrenal, where liver and spleen do not reach."""
    centre, axes = _kidney_frame(subject, side)
    return ellipsoid(points, centre + 12 * axes[0] + (0, 12, 10), (42, 34, 66), axes)


def _kidney(subject: Subject, points: Points, side: str) -> Iterator[Layer]:
    """Cortex, the medulla's pyramids with columns of cortex between them, sinus, and pelvis."""
    shape = subject.organs[f"kidney_{side}"]
    centre, axes = _kidney_frame(subject, side)
    box = points.box(centre - 75, centre + 75)
    if box is None:
        return
    p = points.cut(box)
    kidney = ellipsoid(p, centre, np.multiply((28, 23, 55), shape.scale), axes)
    kidney = kidney + shape.ripple(p.x, p.y, p.z)
    sinus = ellipsoid(p, centre + 20 * axes[0], np.multiply((18, 9, 25), shape.scale), axes)
    pelvis = ellipsoid(p, centre + 15 * axes[0], np.multiply((11, 4, 14), shape.scale), axes)
    across, along = (
        float(u) * (p.x - float(centre[0]))
        + float(v) * (p.y - float(centre[1]))
        + float(w) * (p.z - float(centre[2]))
        for u, v, w in axes[1:]
    )
    columns = 3 * np.cos(along * (2 * np.pi / 21)) - 0.8 * np.abs(np.sin(across / 7)) - 1.4
    medulla = np.maximum(kidney + subject.cortex_mm / subject.scale, columns)
    yield points.layer("fat", box, kidney - FAT_PLANE_MM)
    yield points.layer(f"cortex_{side}", box, np.maximum(kidney, -sinus))
    yield points.layer(f"medulla_{side}", box, np.maximum(medulla, 2 - sinus))
    yield points.layer("fat", box, np.maximum(sinus, kidney - 1))
    yield points.layer("urine", box, pelvis)
