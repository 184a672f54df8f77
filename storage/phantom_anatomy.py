"""Who a phantom subject is: everything that is drawn at random, and his frames of reference.

Three frames, all in mm with x to the patient's left, y to his back, z to his head:

- atlas: the mean adult with a straight spine, origin in the middle of the second lumbar vertebra;
  all organs are defined in it.
- subject: the atlas bent along the spine, warped by a smooth random field, and scaled.
- scanner (DICOM's LPS): the subject turned and shifted by his pose on the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from .phantom_plaque import AORTA, ILIAC, Plaque, Wall, draw_plaques
from .phantom_shapes import Array, Knots, Ripple, Vector, spline
from .phantom_tissue import TissueHU, draw_hu

__all__ = [
    "ARTERIAL_WALL_MM",
    "ILIACS",
    "OrganShape",
    "Subject",
    "aorta_path",
    "draw_subject",
    "iliac_path",
]

Triple = tuple[float, float, float]

ARTERIAL_WALL_MM = 1.4

# From the root over the arch to the bifurcation.
_AORTA: Knots = (
    (-6, -62, 205, 15), (-20, -66, 240, 14.5), (-16, -58, 275, 14), (3, -40, 292, 13.5),
    (20, -20, 280, 13), (24, -14, 250, 12.5), (22, -18, 200, 12), (18, -23, 150, 11.5),
    (12, -29, 110, 11), (9, -31, 60, 10.5), (8, -31, 10, 9.5), (7, -31, -40, 9), (5, -30, -72, 8.5),
)  # fmt: skip

# From the bifurcation to the brim of the pelvis, by tissue.
ILIACS: Mapping[str, Knots] = {
    "iliac_artery_left": ((5, -30, -70, 6.5), (20, -27, -95, 6), (42, -15, -150, 5.5)),
    "iliac_artery_right": ((4, -30, -70, 6.5), (-14, -28, -95, 6), (-38, -15, -150, 5.5)),
}

# Amplitude and wavelength of the surface ripple of each organ, in mm.
_RIPPLES = {
    "liver": (3.0, 70.0),
    "spleen": (2.0, 55.0),
    "stomach": (3.0, 60.0),
    "colon": (2.0, 26.0),
    "heart": (2.0, 60.0),
    "pancreas": (1.6, 16.0),  # lobules
    **dict.fromkeys(("kidney_left", "kidney_right", "gallbladder"), (1.0, 50.0)),
    **dict.fromkeys(("aorta", "ivc", "portal_vein"), (0.0, 50.0)),
}


@dataclass(frozen=True)
class OrganShape:
    """How one organ differs from the atlas: its place, its size along three axes, its surface."""

    offset_mm: Triple
    scale: Triple
    ripple: Ripple


@dataclass(frozen=True)
class Subject:
    """Everything random about one person; he renders alike in every phase.

    scale: size against the atlas. fat_mm: mean subcutaneous fat. girth: width and depth of the
    muscular trunk against the atlas. cortex_mm: thickness of the renal cortex. rotation: [3, 3],
    subject to scanner. shift_mm: where the subject's origin lies in the scanner. dose_factor
    multiplies every enhancement of `hu`. small_bowel: knots of each loop, in atlas mm.
    """

    seed: int
    scale: float
    fat_mm: float
    girth: tuple[float, float]
    cortex_mm: float
    rotation: tuple[Triple, Triple, Triple]
    shift_mm: Triple
    warp: tuple[Ripple, Ripple, Ripple]
    dose_factor: float
    hu: Mapping[str, TissueHU]
    organs: Mapping[str, OrganShape]
    small_bowel: tuple[Knots, ...]
    plaques: tuple[Plaque, ...]

    @property
    def width_mm(self) -> float:
        """About the widest that the body gets, from side to side."""
        return 2 * (150 * self.girth[0] * self.scale + 0.8 * self.fat_mm + 4)

    def from_scanner(self, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
        """Scanner LPS mm to subject mm; inputs broadcast."""
        x, y, z = (v - s for v, s in zip((x, y, z), self.shift_mm, strict=True))
        p, q, r = (m[0] * x + m[1] * y + m[2] * z for m in zip(*self.rotation, strict=True))
        return p, q, r

    def to_scanner(self, point_mm: npt.ArrayLike) -> Vector:
        """Subject mm [3] to scanner LPS mm [3]."""
        moved: Vector = np.asarray(self.rotation) @ np.asarray(point_mm, float) + self.shift_mm
        return moved

    def to_atlas(self, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
        """Subject mm to atlas mm."""
        x, y, z = x / self.scale, y / self.scale, z / self.scale
        dx, dy, dz = (ripple(x, y, z) for ripple in self.warp)
        x, y, z = x + dx, y + dy, z + dz
        return x, y - _spine_offset_mm(z), z

    def from_atlas(self, point: Vector) -> Vector:
        """Atlas mm [3] to subject mm [3]: the fixed point of `to_atlas`, to about 0.01 mm."""
        x, y, z = point.tolist()
        bent = np.array([x, y + float(_spine_offset_mm(np.array(z, np.float32))), z])
        found = bent.copy()
        for _ in range(14):  # the warp's gradient is below 0.5
            place = found.astype(np.float32)
            shift = [float(ripple(place[0], place[1], place[2])) for ripple in self.warp]
            found = bent - np.array(shift)
        result: Vector = found * self.scale
        return result


def draw_subject(seed: int) -> Subject:
    """A subject, as a pure function of the seed (0 or more).

    Sizes, shapes, places and enhancement vary by 8 to 15 % between subjects; the iodine dose by a
    factor of 0.75 to 1.25; the pose by rotations of up to 6 degrees about the body's axis.
    """
    rng = np.random.default_rng([seed, 0x7375626A])

    def normal(mean: float, deviation: float) -> float:
        return float(mean + deviation * np.clip(rng.standard_normal(), -2.0, 2.0))

    subject = Subject(
        seed=seed,
        scale=normal(1.0, 0.035),
        fat_mm=float(np.exp(normal(np.log(17.0), 0.32))),
        girth=(normal(1.0, 0.04), normal(1.0, 0.05)),
        cortex_mm=float(rng.uniform(5.0, 8.0)),
        rotation=_rotation(normal(0, 3.0), normal(0, 1.2), normal(0, 0.8)),
        shift_mm=(normal(0, 6.0), normal(0, 6.0), 0.0),
        warp=(_ripple(rng, 2.5, 150), _ripple(rng, 2.5, 150), _ripple(rng, 2.5, 150)),
        dose_factor=float(rng.uniform(0.75, 1.25)),
        hu=draw_hu(rng),
        organs={name: _organ_shape(rng, *ripple) for name, ripple in _RIPPLES.items()},
        small_bowel=tuple(_bowel_loop(rng) for _ in range(20)),
        plaques=(),
    )
    path = aorta_path(subject, 1.0)
    walls = [Wall(path[:, :3], path[:, 3] - ARTERIAL_WALL_MM, AORTA)]
    for name in ILIACS:  # their wall is too thin to be drawn
        path = iliac_path(subject, name, 1.0)
        walls.append(Wall(path[:, :3], path[:, 3], ILIAC))
    return replace(subject, plaques=draw_plaques(rng, walls, subject.from_atlas))


def aorta_path(subject: Subject, step_mm: float = 4.0) -> Vector:
    """[n, 4] points and outer radius along the subject's aorta, in atlas mm."""
    shape = subject.organs["aorta"]
    path = spline(_AORTA, step_mm)
    path[:, :3] += shape.offset_mm
    path[:, 3] *= shape.scale[0]
    return path


def iliac_path(subject: Subject, name: str, step_mm: float = 4.0) -> Vector:
    """[n, 4] points and radius along one of the subject's common iliac arteries, in atlas mm."""
    path = spline(ILIACS[name], step_mm)
    path[:, :3] += subject.organs["aorta"].offset_mm
    return path


def _spine_offset_mm(z: Array) -> Array:
    """How far behind the straight atlas the spine lies: lordosis at L3, kyphosis at T7."""
    offset: Array = 9 * (1 - np.cos((z + 30) * np.float32(np.pi / 240)))
    return offset


def _rotation(about_z: float, about_x: float, about_y: float) -> tuple[Triple, Triple, Triple]:
    a, b, c = np.deg2rad([about_z, about_x, about_y])
    z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    y = np.array([[np.cos(c), 0, np.sin(c)], [0, 1, 0], [-np.sin(c), 0, np.cos(c)]])
    first, second, third = z @ x @ y
    return _triple(first), _triple(second), _triple(third)


def _ripple(rng: np.random.Generator, amplitude_mm: float, wavelength_mm: float) -> Ripple:
    waves = 5
    directions = rng.standard_normal((waves, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    vectors = 2 * np.pi * directions / (wavelength_mm * rng.uniform(0.75, 1.4, (waves, 1)))
    phases = rng.uniform(0, 2 * np.pi, waves)
    return Ripple(
        float(amplitude_mm * rng.uniform(0.7, 1.3)),
        tuple(_triple(vector) for vector in vectors),
        tuple(float(phase) for phase in phases),
    )


def _organ_shape(rng: np.random.Generator, amplitude_mm: float, wavelength_mm: float) -> OrganShape:
    offset = 3.0 * np.clip(rng.standard_normal(3), -2, 2)
    scale = 1 + 0.07 * np.clip(rng.standard_normal(3), -2, 2)
    return OrganShape(_triple(offset), _triple(scale), _ripple(rng, amplitude_mm, wavelength_mm))


def _bowel_loop(rng: np.random.Generator) -> Knots:
    """A random walk of the small bowel, turned back at the borders of the mesentery."""
    low, high = np.array([-85.0, -112.0, -150.0]), np.array([95.0, -50.0, 2.0])
    place, heading = rng.uniform(low, high), rng.standard_normal(3)
    radius = float(rng.uniform(9, 14))
    knots = []
    for _ in range(7):
        knots.append((*_triple(place), radius))
        heading += 0.9 * rng.standard_normal(3)
        heading /= np.linalg.norm(heading)
        place = place + 28 * heading
        beyond = place - np.clip(place, low, high)
        heading = np.where(beyond == 0, heading, -heading)
        place = place - 2 * beyond
    return tuple(knots)


def _triple(vector: Vector) -> Triple:
    return float(vector[0]), float(vector[1]), float(vector[2])
