"""Calcified plaques on the walls of arteries: their shape, and how they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .phantom_shapes import Array, Vector

__all__ = ["AORTA", "ILIAC", "Plaque", "Wall", "draw_plaques"]

Triple = tuple[float, float, float]

Region = tuple[tuple[float, float], tuple[int, int]]

# Range of z in the atlas, and the fewest and most plaques there. Of the aorta: the part that a scan
# from the lung bases to the lower poles of the kidneys shows, and the chest with the arch.
AORTA: tuple[Region, ...] = (((-58.0, 88.0), (4, 12)), ((100.0, 300.0), (1, 5)))
ILIAC: tuple[Region, ...] = (((-142.0, -86.0), (0, 3)),)
_APART_MM = 9.0


@dataclass(frozen=True)
class Plaque:
    """An ellipsoid bent round the lumen, in mm of the subject's frame.

    centre_mm lies on the edge of the lumen; normal points out of it, tangent along the vessel.
    length_mm (along), arc_mm (round) and thickness_mm (through the wall) are full diameters.
    peak_hu: of the plaque itself, the same in all phases; voxels that it fills in part show less.
    """

    id: int
    centre_mm: Triple
    normal: Triple
    tangent: Triple
    lumen_radius_mm: float
    length_mm: float
    arc_mm: float
    thickness_mm: float
    peak_hu: float

    @property
    def diameter_mm(self) -> float:
        """The largest of its three diameters."""
        return max(self.length_mm, self.arc_mm, self.thickness_mm)

    def contains(self, x: Array, y: Array, z: Array) -> npt.NDArray[np.bool_]:
        """Which points (subject mm; inputs broadcast) lie inside: the exact mask at any scale."""
        x, y, z = (v - c for v, c in zip((x, y, z), self.centre_mm, strict=True))
        side = np.cross(self.tangent, self.normal).tolist()
        along, across, outward = (
            d[0] * x + d[1] * y + d[2] * z for d in (self.tangent, side, self.normal)
        )
        outward = outward + self.lumen_radius_mm
        arc = self.lumen_radius_mm * np.arctan2(across, outward)
        radial = np.hypot(across, outward) - self.lumen_radius_mm
        level = (
            (2 / self.length_mm * along) ** 2
            + (2 / self.arc_mm * arc) ** 2
            + (2 / self.thickness_mm * radial) ** 2
        )
        inside: npt.NDArray[np.bool_] = level <= 1
        return inside


@dataclass(frozen=True)
class Wall:
    """An artery's wall: axis [n, 3], points along it in atlas mm, about 1 mm apart; lumen_radius
    [n]; and how many plaques lie where along z."""

    axis: Vector
    lumen_radius: Vector
    regions: tuple[Region, ...]


def draw_plaques(
    rng: np.random.Generator, walls: Sequence[Wall], to_mm: Callable[[Vector], Vector]
) -> tuple[Plaque, ...]:
    """Plaques on every wall, as many as its regions say, more of them further down.

    Each is a lesion of its own, 9 mm or more from the next: 1 to 6 mm long (five in six at least
    2 mm), 0.5 to 2 mm thick, with a peak of 200 to 1200 HU. to_mm: atlas to subject mm.
    """
    plaques: list[Plaque] = []
    for wall, ((lowest, highest), (fewest, most)) in _regions(walls):
        axis, z = wall.axis, wall.axis[1:-1, 2]
        allowed = 1 + np.flatnonzero((z > lowest) & (z < highest))
        weight = np.exp(-axis[allowed, 2] / 120)
        wanted = len(plaques) + int(rng.integers(fewest, most + 1))
        while len(plaques) < wanted:
            at = int(rng.choice(allowed, p=weight / weight.sum()))
            along = axis[at + 1] - axis[at - 1]
            outward = _perpendicular(along, float(rng.uniform(0, 2 * np.pi)))
            middle, centre = to_mm(axis[at]), to_mm(axis[at] + wall.lumen_radius[at] * outward)
            if all(np.linalg.norm(centre - p.centre_mm) >= _APART_MM for p in plaques):
                tangent = to_mm(axis[at + 1]) - to_mm(axis[at - 1])
                plaques.append(_draw_plaque(rng, len(plaques) + 1, middle, centre, tangent))
    return tuple(plaques)


def _regions(walls: Sequence[Wall]) -> list[tuple[Wall, Region]]:
    return [(wall, region) for wall in walls for region in wall.regions]


def _draw_plaque(
    rng: np.random.Generator, number: int, middle: Vector, centre: Vector, tangent: Vector
) -> Plaque:
    """A plaque at `centre`, on the edge of the lumen round `middle`, all in mm."""
    radius = float(np.linalg.norm(centre - middle))
    normal = (centre - middle) / radius
    tangent = tangent - normal * (tangent @ normal)
    longest = float(1 + 5 * rng.beta(1.5, 1.4))
    other_way = max(longest * float(rng.uniform(0.6, 1.0)), 0.8)
    length, arc = (longest, other_way) if rng.random() < 0.6 else (other_way, longest)
    return Plaque(
        id=number,
        centre_mm=_triple(centre),
        normal=_triple(normal),
        tangent=_triple(tangent / np.linalg.norm(tangent)),
        lumen_radius_mm=radius,
        length_mm=length,
        arc_mm=arc,
        thickness_mm=float(np.clip(longest * rng.uniform(0.35, 0.65), 0.5, 2.0)),
        peak_hu=float(rng.uniform(200, 1200)),
    )


def _perpendicular(along: Vector, angle: float) -> Vector:
    """The unit vector at `angle` round the direction `along`."""
    first = np.cross(along, [1.0, 0.0, 0.0])
    first /= np.linalg.norm(first)
    second = np.cross(along / np.linalg.norm(along), first)
    result: Vector = np.cos(angle) * first + np.sin(angle) * second
    return result


def _triple(vector: Vector) -> Triple:
    return float(vector[0]), float(vector[1]), float(vector[2])
