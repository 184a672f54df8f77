"""The phantom's bones: spine with discs and canal, ribs with cartilage, sternum."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .phantom_shapes import Array, Layer, Points, plate, superellipse
from .phantom_trunk import Trunk

__all__ = ["bone_layers"]

# Vertebrae by number: -11 is T1, 0 is T12, 5 is L5; z of their centres and distance to the next.
_VERTEBRA = np.arange(-11, 6)
_VERTEBRA_Z = np.array(
    [327, 308, 289, 269, 248, 227, 205, 182, 157, 130, 101, 70, 36, 0, -37, -74, -110]
)
_PITCH = ([-11, -4, 0, 2, 5], [19, 22, 30, 36, 36])

# Where ribs end, as the angle round the body from the spine; by vertebra, those above T8 alike.
_RIB_END = ([-4, -3, -2, -1, 0], [2.93, 2.6, 2.45, 1.45, 0.95])
_RIB_DEPTH_MM = 6.5


def bone_layers(points: Points, trunk: Trunk) -> Iterator[Layer]:
    """Cortical bone, marrow inside it, cartilage, discs, and the contents of the spinal canal."""
    yield from _ribs(points, trunk)
    yield from _rib_necks(points)
    yield from _sternum(points, trunk)
    yield from _spine(points)


def _level(z: Array) -> Array:
    """The number of the vertebra at a height, as a fraction between centres."""
    level: Array = np.interp(z, _VERTEBRA_Z[::-1], _VERTEBRA[::-1]).astype(np.float32)
    return level


def _height(vertebra: Array) -> Array:
    height: Array = np.interp(vertebra, _VERTEBRA, _VERTEBRA_Z).astype(np.float32)
    return height


def _ribs(points: Points, trunk: Trunk) -> Iterator[Layer]:
    """All ribs at once: ovals in a shell of the wall, one per vertebra, sloping to the front."""
    box = points.box((-250, -250, 15), (250, 250, 420))
    if box is None:
        return
    depth = trunk.wall[box] + _RIB_DEPTH_MM
    shell = np.abs(depth) < 9
    if not shell.any():
        return
    angle, depth, z = trunk.angle[box][shell], depth[shell], points.z[box][shell]
    slope = 92 * np.sin(np.minimum(angle, 2) / 2) ** 1.5 - 40 * np.maximum(angle - 2, 0)
    rib = np.clip(np.round(_level(z + slope) - 0.15), _VERTEBRA[0], 0)
    across = 0.86 * (_height(rib) + 4 - z - slope)
    beyond = 120 * np.maximum(angle - np.interp(rib, *_RIB_END).astype(np.float32), 0)
    beyond += 110 * np.maximum(0.55 - angle, 0)  # the neck, which leaves the shell
    oval = np.sqrt((depth / 3.8) ** 2 + (across / 6.5) ** 2 + (beyond / 4) ** 2)
    cartilage = (angle > 2.15) & (rib < -1)
    for tissue, part, inset in (
        ("cartilage", cartilage, 0.0),
        ("cortical_bone", ~cartilage, 0.0),
        ("marrow", ~cartilage, 1.1),
    ):
        distance: Array = np.full(shell.shape, 50, np.float32)
        distance[shell] = np.where(part, 3.8 * (oval - 1) + inset, 50)
        yield points.layer(tissue, box, distance)


def _rib_necks(points: Points) -> Iterator[Layer]:
    """From the vertebra to the shell of the ribs, in front of the muscles of the back."""
    box = points.box((-75, 10, 50), (75, 70, 420))
    if box is None:
        return
    p = points.cut(box)
    x = np.abs(p.x)
    rib = np.clip(np.round(_level(p.z) - 0.15), _VERTEBRA[0], 0)
    z = p.z - _height(rib) - 4 + 14 * np.clip((x - 22) / 40, 0, 1)
    neck = plate(x, p.y, z, ((22, 22), (58, 52)), z_range=(-2.5, 2.5), radius_mm=3.6)
    yield points.layer("cortical_bone", box, neck)
    yield points.layer("marrow", box, neck + 1.5)


def _sternum(points: Points, trunk: Trunk) -> Iterator[Layer]:
    box = points.box((-30, -300, 130), (30, 0, 330))
    if box is None:
        return
    p = points.cut(box)
    beyond = np.maximum(np.maximum(145 - p.z, p.z - 305), 0)
    width = 15 + 9 * np.clip((p.z - 255) / 40, 0, 1)  # the manubrium is wider
    depth = (trunk.wall[box] + 6.5) / 5
    oval = np.sqrt(depth * depth + (p.x / width) ** 2 + (beyond / 6) ** 2)
    yield points.layer("cortical_bone", box, 5 * (oval - 1))
    yield points.layer("marrow", box, 5 * (oval - 1) + 1.2)


def _spine(points: Points) -> Iterator[Layer]:
    """Vertebrae, discs, arches and canal, repeated along the levels of the spine."""
    box = points.box((-45, -30, -400), (45, 80, 500))
    if box is None:
        return
    p = points.cut(box)
    x, y = np.abs(p.x), p.y
    vertebra = np.clip(np.round(_level(p.z)), _VERTEBRA[0], _VERTEBRA[-1])
    z = p.z - _height(vertebra)
    pitch = np.interp(vertebra, *_PITCH).astype(np.float32)
    half = 0.39 * pitch
    size = (pitch / 36) ** 0.55 * (1 - 0.07 * (1 - np.minimum((z / half) ** 2, 1)))
    canal = np.hypot(x, y - 25.5)
    # The back of a vertebral body is hollow towards the canal.
    section = np.maximum(superellipse(x, np.abs(y), 23.5 * size, 16.5 * size), 11 - canal)
    body = np.maximum(section, np.abs(z) - half)
    arch = np.minimum.reduce(
        [
            plate(x, y, z, ((14, 12), (15, 30)), z_range=(0, 8), radius_mm=4.5),  # pedicle
            plate(x, y, z, ((15, 33), (1, 43)), z_range=(-11, 5), radius_mm=3.6),  # lamina
            plate(x, y, z, ((0, 43), (0, 62)), z_range=(-15, -1), radius_mm=3.4),  # spinous process
            plate(
                x, y, z, ((18, 28), (38, 35)), z_range=(1, 5), radius_mm=3.6
            ),  # transverse process
            plate(
                x, y, z, ((18.5, 33), (18.5, 37)), z_range=(-22, -6), radius_mm=6.0
            ),  # facet joint
        ]
    )
    yield points.layer("disc", box, section - 0.5)
    yield points.layer("cortical_bone", box, np.minimum(body, arch))
    yield points.layer("marrow", box, np.minimum(body + 0.8, arch + 1.8))
    yield points.layer("fat", box, canal - 10)
    yield points.layer("csf", box, canal - 8)
    yield points.layer("cord", box, np.maximum(canal - 4.5, 30 - p.z))  # it ends at L1
