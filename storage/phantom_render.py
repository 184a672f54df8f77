"""Phantom subjects on a grid: HU in any phase, organ labels, plaque fractions.

Every slice is sampled several times across its profile; solids cover voxels by the share that
their surface leaves; plaques are super-sampled at 0.25 mm, for the image and the mask alike. The
texture of tissues belongs to the anatomy: it is the same in every phase.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from .phantom_anatomy import Subject
from .phantom_bones import bone_layers
from .phantom_chest import chest_layers
from .phantom_gut import gut_layers
from .phantom_organs import organ_layers
from .phantom_plaque import Plaque
from .phantom_scanner import Protocol, grid_affine, noise_hu
from .phantom_shapes import Array, Box, Layer, Points, Vector
from .phantom_tissue import TISSUES, Phase
from .phantom_trunk import Trunk, muscle_layers, trunk_layers
from .phantom_vessels import vessel_layers
from .volume import Volume

__all__ = ["Labels", "labels", "plaque_fraction", "render", "render_phases"]

_SAMPLE_MM = 1.6  # largest distance of samples across a slice
_SLAB_POINTS = 1_500_000  # bounds the memory, whatever the matrix
_PLAQUE_SAMPLE_MM = 0.25
_TEXTURE_MM = 1.5
_AIR_HU = -1000.0


@dataclass(frozen=True)
class Labels:
    """The exact truth on a protocol's grid.

    organs: [Z, Y, X] uint8, the `Label` at the centre of each voxel. plaque: [Z, Y, X] float32 in
    [0, 1], the share of each voxel (pixel by slice thickness) that plaque fills. plaques: those
    whose centre lies in the grid, each with its centre in scanner LPS mm. affine: as of `Volume`.
    """

    organs: npt.NDArray[np.uint8]
    plaque: Array
    plaques: tuple[tuple[Plaque, tuple[float, float, float]], ...]
    affine: Vector


def render(
    subject: Subject, phase: Phase, protocol: Protocol, noise_seed: int | None = None
) -> Volume:
    """One series of the subject, int16 HU. Without a noise_seed it is free of noise: the truth."""
    return render_phases(subject, [phase], protocol, [noise_seed])[0]


def render_phases(
    subject: Subject,
    phases: Sequence[Phase],
    protocol: Protocol,
    noise_seeds: Sequence[int | None],
) -> list[Volume]:
    """Several phases of one subject on one grid; the anatomy is evaluated once for all of them."""
    values = {
        name: [hu.at(phase, subject.dose_factor) for phase in phases]
        for name, hu in subject.hu.items()
    }
    images = np.empty((len(phases), *protocol.shape), np.float32)
    depth = np.empty(protocol.shape, np.float32)
    for slices in _slabs(protocol):
        points, samples = _points(subject, protocol, slices, across_profile=True)
        trunk = Trunk.of(subject, points)
        canvas = np.full((len(phases), *points.x.shape), _AIR_HU, np.float32)
        texture = np.zeros(points.x.shape, np.float32)
        mottle = np.zeros_like(texture) if "arterial" in phases else None
        for tissue, box, cover in _layers(subject, protocol, points, trunk):
            for image, hu in zip(canvas, values[tissue], strict=True):
                image[box] += cover * (hu - image[box])
            texture[box] += cover * (TISSUES[tissue].texture - texture[box])
            if mottle is not None:
                mottle[box] += cover * (TISSUES[tissue].mottle - mottle[box])
        canvas += texture * _texture(subject, points, coarse=False)
        if mottle is not None:
            mottle *= _texture(subject, points, coarse=True)
            canvas[[phase == "arterial" for phase in phases]] += mottle
        sampled = (-1, samples, *protocol.shape[1:])
        images[:, slices] = canvas.reshape(len(phases), *sampled).mean(axis=2)
        depth[slices] = -trunk.wall.reshape(sampled).mean(axis=1) * subject.scale
    for plaque, box, fraction in _plaque_fractions(subject, protocol):
        part = images[(slice(None), *box)]
        part += fraction * (plaque.peak_hu - part)
    affine = grid_affine(protocol)
    volumes = []
    for image, seed in zip(images, noise_seeds, strict=True):
        seen = ndimage.gaussian_filter(image, (0, protocol.blur_px, protocol.blur_px))
        if seed is not None:
            seen += noise_hu(protocol, depth, seed)
        volumes.append(Volume(np.clip(np.rint(seen), -1024, 3071).astype(np.int16), affine))
    return volumes


def labels(subject: Subject, protocol: Protocol) -> Labels:
    """Organ labels, plaque fractions and plaques on the very grid that `render` draws on."""
    organs = np.zeros(protocol.shape, np.uint8)
    for slices in _slabs(protocol):
        points, _ = _points(subject, protocol, slices, across_profile=False)
        slab = organs[slices]
        for tissue, box, cover in _layers(subject, protocol, points, Trunk.of(subject, points)):
            slab[box][cover >= 0.5] = TISSUES[tissue].label
    affine = grid_affine(protocol)
    to_index = np.linalg.inv(affine)
    inside = []
    for plaque in subject.plaques:
        centre = subject.to_scanner(plaque.centre_mm)
        index = to_index[:3, :3] @ centre + to_index[:3, 3]
        if np.all((index > -0.5) & (index < np.asarray(protocol.shape) - 0.5)):
            inside.append((plaque, (float(centre[0]), float(centre[1]), float(centre[2]))))
    return Labels(organs, plaque_fraction(subject, protocol), tuple(inside), affine)


def plaque_fraction(subject: Subject, protocol: Protocol) -> Array:
    """[Z, Y, X] the share of every voxel that plaque fills.

    Its sum times the volume of a voxel is the plaques' volume, also where slices overlap.
    """
    total = np.zeros(protocol.shape, np.float32)
    for _, box, fraction in _plaque_fractions(subject, protocol):
        total[box] += fraction
    return np.minimum(total, np.float32(1))


def _layers(subject: Subject, protocol: Protocol, points: Points, trunk: Trunk) -> Iterator[Layer]:
    """All layers in the order in which they cover one another."""
    return chain(
        _table(subject, protocol, points),
        trunk_layers(points, trunk),
        chest_layers(subject, points, trunk),
        muscle_layers(points),
        bone_layers(points, trunk),
        gut_layers(subject, points, trunk),
        organ_layers(subject, points, trunk),
        vessel_layers(subject, points),
    )


def _table(subject: Subject, protocol: Protocol, points: Points) -> Iterator[Layer]:
    """A curved couch with a foam core; it turns with the patient, as if he lay askew on it."""
    box = points.box((-230, 60, -2000), (230, 260, 2000))
    if protocol.table_gap_mm is None or box is None:
        return
    p = points.cut(box)
    back = 73 + (1.15 * subject.fat_mm + 2 + protocol.table_gap_mm) / subject.scale
    top = back - (p.x / 26) ** 2
    shell = np.maximum(np.maximum(top - p.y, p.y - top - 24), np.abs(p.x) - 205)
    yield points.layer("table_shell", box, shell)
    yield points.layer("table_core", box, shell + 2.5)


def _slabs(protocol: Protocol) -> Iterator[slice]:
    """Runs of slices whose points fit into the memory bound."""
    count, rows, columns = protocol.shape
    step = max(1, _SLAB_POINTS // (rows * columns * _samples(protocol)))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _samples(protocol: Protocol) -> int:
    return max(1, int(np.ceil(protocol.thickness_mm / _SAMPLE_MM)))


def _points(
    subject: Subject, protocol: Protocol, slices: slice, *, across_profile: bool
) -> tuple[Points, int]:
    """Atlas points of some slices, and how many samples each slice has across its profile."""
    samples = _samples(protocol) if across_profile else 1
    z, y, x = (
        start + step * np.arange(count)
        for start, step, count in zip(
            grid_affine(protocol)[2::-1, 3], protocol.spacing_mm, protocol.shape, strict=True
        )
    )
    across = ((np.arange(samples) + 0.5) / samples - 0.5) * protocol.thickness_mm
    z = (z[slices, None] + across).ravel()
    place = subject.from_scanner(*_open_grid(x, y, z))
    softness_mm = (protocol.spacing_mm[1] * protocol.spacing_mm[2]) ** 0.5 / subject.scale
    return Points.of(*subject.to_atlas(*place), softness_mm), samples


def _open_grid(x: Vector, y: Vector, z: Vector) -> tuple[Array, Array, Array]:
    """x, y, z that broadcast to [Z, Y, X]."""
    grid = np.ix_(z.astype(np.float32), y.astype(np.float32), x.astype(np.float32))
    return grid[2], grid[1], grid[0]


def _plaque_fractions(subject: Subject, protocol: Protocol) -> Iterator[tuple[Plaque, Box, Array]]:
    """Each plaque, the index box round it, and the share of the voxels there that it fills."""
    affine = grid_affine(protocol)
    to_index = np.linalg.inv(affine)
    spacing = np.asarray(protocol.spacing_mm)
    voxel = np.array([protocol.thickness_mm, *protocol.spacing_mm[1:]])
    counts = np.maximum(3, np.ceil(voxel / _PLAQUE_SAMPLE_MM)).astype(int).tolist()
    for plaque in subject.plaques:
        index = to_index[:3, :3] @ subject.to_scanner(plaque.centre_mm) + to_index[:3, 3]
        # Bent round the wall, no point is further from the centre than this.
        reach = (0.5 * (plaque.diameter_mm + plaque.thickness_mm) + 0.5 * voxel) / spacing
        low = np.maximum(np.ceil(index - reach), 0).astype(int).tolist()
        high = np.minimum(np.floor(index + reach) + 1, protocol.shape).astype(int).tolist()
        if any(b <= a for a, b in zip(low, high, strict=True)):
            continue
        axes = [
            (
                start + step * np.arange(a, b)[:, None] + width * ((np.arange(n) + 0.5) / n - 0.5)
            ).ravel()
            for start, step, width, a, b, n in zip(
                affine[2::-1, 3], spacing, voxel, low, high, counts, strict=True
            )
        ]
        inside = plaque.contains(*subject.from_scanner(*_open_grid(*axes[::-1])))
        split = [m for a, b, n in zip(low, high, counts, strict=True) for m in (b - a, n)]
        fraction = inside.reshape(split).mean(axis=(1, 3, 5)).astype(np.float32)
        z, y, x = (slice(a, b) for a, b in zip(low, high, strict=True))
        yield plaque, (z, y, x), fraction


def _texture(subject: Subject, points: Points, *, coarse: bool) -> Array:
    """Noise of unit variance fixed to the atlas, so that it is the same in all phases."""
    lattice = _lattice(subject.seed, coarse)
    z, y, x = (
        np.rint(v * np.float32(1 / _TEXTURE_MM)).astype(np.int32) % 64
        for v in (points.z, points.y, points.x)
    )
    field: Array = lattice[z, y, x]
    return field


@lru_cache(maxsize=4)
def _lattice(seed: int, coarse: bool) -> Array:
    """[64, 64, 64] periodic noise: 1/f down to a period of 36 mm, or blobs of about 15 mm."""
    rng = np.random.default_rng([seed, int(coarse), 0x74657874])
    spectrum = np.fft.rfftn(rng.standard_normal((64, 64, 64)))
    full, half = np.fft.fftfreq(64), np.fft.rfftfreq(64)
    k = np.sqrt(full[:, None, None] ** 2 + full[:, None] ** 2 + half**2)
    gain = np.exp(-(((k - 0.1) / 0.03) ** 2)) if coarse else (k > 1 / 24) / np.maximum(k, 1 / 64)
    field = np.fft.irfftn(spectrum * gain, s=(64, 64, 64), axes=(0, 1, 2))
    scaled: Array = (field / field.std()).astype(np.float32)
    return scaled
