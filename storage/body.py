"""Where the patient is in a CT volume: the body's mask, and the body-centred frame's origin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .errors import IngestError
from .volume import Volume

__all__ = ["TISSUE_HU", "FrameOrigin", "body_mask", "find_body", "frame_origin"]

TISSUE_HU = -300.0  # between fat (-100) and lung (-700 and less)
LUNG_HU = (-950.0, -500.0)  # gas in the bowel and air around the patient lie below

_COARSE_MM = 3.0  # the work is done in voxels of at most this size where the volume's are smaller
_LUNG_BASE_MM2 = 2000.0
_LUNG_HEIGHT_MM = 10.0
_WHOLE_LUNG_MM3 = 500_000.0  # of two lungs after a full breath: a tenth
_GAS_HU = -900.0  # most gas lies below, a quarter of a lung or more above
_CENTRE_MM = 30.0

# Blocks of so many int16 have sums that float32 holds exactly, in whatever order they are added.
_EXACT_SUMS = 2**24 // 2**15

_PLANE_AXES = (1, 2)
_CROSS: NDArray[np.bool_] = ndimage.generate_binary_structure(3, 1)
_IN_PLANE: NDArray[np.bool_] = _CROSS.copy()
_IN_PLANE[[0, 2]] = False


@dataclass(frozen=True)
class FrameOrigin:
    """Voxel (z, y, x) of the body-centred frame's origin, and the rule that placed its z."""

    index: tuple[int, int, int]
    rule: Literal["lung base", "middle of the body"]


def find_body(volume: Volume) -> tuple[NDArray[np.bool_], FrameOrigin]:
    """`body_mask` and `frame_origin` of a canonical volume, in less time than one after the other.

    Raises IngestError if nothing exceeds -300 HU.
    """
    coarse = _coarse(volume)
    mask = _mask(volume, coarse)
    return mask, _origin(volume, mask, coarse)


def body_mask(volume: Volume) -> NDArray[np.bool_]:
    """The patient's voxels: [Z, Y, X] of a canonical volume, lungs and bowel gas included.

    The largest connected piece above -300 HU after an opening that removes sheets thinner than
    three coarse voxels (the table, blankets), with its holes filled slice by slice. Where the
    field of view cuts through a lung, the lung is no hole: it is added if most of it has the
    density of lung and it touches more of the body than of the rim. The border is then found at
    full resolution, within one coarse voxel.

    Arms that do not touch the trunk are left out. The mask is empty if nothing exceeds -300 HU.
    """
    return _mask(volume, _coarse(volume))


def frame_origin(volume: Volume, mask: NDArray[np.bool_]) -> FrameOrigin:
    """The origin of the body-centred frame of a canonical volume with its body mask.

    z: the lowest slice with at least 20 cm^2 of lung, to a coarse voxel, if the lungs end inside of
    the volume and 10 mm of slices hold as much; otherwise the middle of the slices that hold body.

    y, x: the middle between the outermost rows and columns at least half as full of body as the
    fullest, so that an arm or a hand does not count; the median over the slices within 30 mm of z,
    so that it does not depend on how much of chest and belly is in view.

    Raises IngestError if the mask is empty.
    """
    return _origin(volume, mask, _coarse(volume))


def _mask(volume: Volume, hu: NDArray[np.float32]) -> NDArray[np.bool_]:
    """`body_mask`; hu: the coarse volume."""
    # Outside of the field of view the body goes on: hence the border value.
    opened = _dilated(_eroded(hu > TISSUE_HU))
    pieces, count = ndimage.label(opened, _CROSS)
    if count == 0:
        return np.zeros(volume.shape, bool)
    body = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    body |= _enclosed(body, hu)

    certain, possible = _eroded(body, _PLANE_AXES), _dilated(body, _PLANE_AXES)
    return _sharpened(volume, certain, possible)


def _sharpened(
    volume: Volume, certain: NDArray[np.bool_], possible: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """At full resolution: what is certain, and tissue where it is possible (both coarse)."""
    z, y, x = _coarsening(volume)
    mask = np.zeros(volume.shape, bool)
    box = _box_around(possible, margin=0)
    if box is None:
        return mask
    tissue = volume.hu.dtype.type(TISSUE_HU)
    across = [slice(part.start * n, part.stop * n) for part, n in ((box[1], y), (box[2], x))]
    for index in range(box[0].start, box[0].stop):
        inside = (slice(index * z, (index + 1) * z), *across)
        part = mask[inside]
        inner, outer = (
            one[index, box[1], box[2]].repeat(x, 1).repeat(y, 0)[: part.shape[1], : part.shape[2]]
            for one in (certain, possible)
        )
        np.greater(volume.hu[inside], tissue, out=part)
        part &= outer
        part |= inner
    return mask


def _origin(volume: Volume, mask: NDArray[np.bool_], hu: NDArray[np.float32]) -> FrameOrigin:
    """`frame_origin`; hu: the coarse volume."""
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    if not len(slices):
        raise IngestError(
            f"volume of shape {volume.shape}: nothing in it is above {TISSUE_HU:g} HU "
            f"(maximum {volume.hu.max()}); expected a patient"
        )
    base = _lung_base(volume, mask, hu)
    z = int(slices[len(slices) // 2]) if base is None else base
    near = mask[slices[np.abs(slices - z) * volume.spacing_mm[0] <= _CENTRE_MM]]
    y, x = (_median_centre(near.view(np.uint8).sum(axis, np.int32)) for axis in (2, 1))
    return FrameOrigin((z, y, x), "middle of the body" if base is None else "lung base")


def _enclosed(body: NDArray[np.bool_], hu: NDArray[np.float32]) -> NDArray[np.bool_]:
    """What belongs to the body in each slice though it is no tissue: holes, and cut lungs."""
    regions, count = ndimage.label(~body, _IN_PLANE)

    def counted(labels: NDArray[np.int32]) -> NDArray[np.int_]:
        return np.bincount(labels.ravel(), minlength=count + 1)

    sizes = counted(regions)
    rim = [regions[:, [0, -1]], regions[:, 1:-1, [0, -1]]]
    on_rim = counted(rim[0]) + counted(rim[1])
    lung = counted(regions[(hu > LUNG_HU[0]) & (hu < LUNG_HU[1])]) > sizes / 2
    # The foam of a table has the density of lung, but the body covers only one side of it.
    covered = counted(regions[_dilated(body, _PLANE_AXES) & ~body]) > on_rim
    inside = (on_rim == 0) | (lung & covered)
    inside[0] = False  # the body itself
    enclosed: NDArray[np.bool_] = inside[regions]
    return enclosed


def _lung_base(volume: Volume, mask: NDArray[np.bool_], hu: NDArray[np.float32]) -> int | None:
    """The lowest slice of the lungs, None if they do not end inside of the volume."""
    factors = _coarsening(volume)
    z_mm, y_mm, x_mm = (mm * n for mm, n in zip(volume.spacing_mm, factors, strict=True))
    body = _centres(mask, factors)
    lungs = _lungs(hu, body, z_mm * y_mm * x_mm)
    area_mm2 = np.count_nonzero(lungs, axis=(1, 2)) * (y_mm * x_mm)
    runs, _ = ndimage.label(area_mm2 >= _LUNG_BASE_MM2)
    held = np.bincount(runs, area_mm2)
    held[np.bincount(runs) * z_mm < _LUNG_HEIGHT_MM] = 0
    held[0] = 0
    if not held.any():
        return None
    base = int(np.argmax(runs == np.argmax(held)))
    # Lungs that taper to so little at the volume's lower end have their base within 15 mm of it.
    tip = area_mm2[base] < min(2 * _LUNG_BASE_MM2, area_mm2.max() / 4)
    return base * factors[0] if base or tip else None


def _lungs(hu: NDArray[np.float32], body: NDArray[np.bool_], voxel_mm3: float) -> NDArray[np.bool_]:
    """The lungs in a coarse volume: of the regions of low density, those that are no bowel gas.

    Gas is of one density, while a lung with the worst emphysema still has denser parts. And lungs
    reach up out of the volume, or are seen whole; stool that foams, as dense as lung, is neither.
    """
    lungs = np.zeros_like(body)
    box = _box_around(body & (hu < LUNG_HU[1]))
    if box is None:
        return lungs
    top = int(np.flatnonzero(body.any(axis=(1, 2)))[-1])
    body, hu = body[box], hu[box]
    low = body & (hu < LUNG_HU[1])
    regions, count = ndimage.label(low, _CROSS)

    def counted(where: NDArray[np.bool_]) -> NDArray[np.int_]:
        return np.bincount(regions[where], minlength=count + 1)

    # The rim of gas has the density of lung, and noise hides gas's: hence means of inner voxels.
    inner = _eroded(low)
    weight = _sums_of_27(inner.astype(np.float32))
    total = _sums_of_27(np.where(inner, hu, np.float32(0)))
    dense = counted(inner & (total > _GAS_HU * weight)) > counted(inner) / 4
    seen_at_top = np.zeros_like(body)
    seen_at_top[top - box[0].start :][:1] = True
    lung = dense & ((counted(seen_at_top) > 0) | (counted(low) * voxel_mm3 > _WHOLE_LUNG_MM3))
    lung[0] = False  # whatever is not of low density
    lungs[box] = lung[regions]
    return lungs


def _box_around(mask: NDArray[np.bool_], margin: int = 1) -> tuple[slice, ...] | None:
    """The smallest box with all of the mask, and `margin` voxels more on each side where there are
    so many."""
    box = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if not len(hit):
            return None
        first, last = int(hit[0]), int(hit[-1])
        box.append(slice(max(first - margin, 0), min(last + margin + 1, mask.shape[axis])))
    return tuple(box)


def _median_centre(fullness: NDArray[np.int_]) -> int:
    """The median over rows of the middle between the first and last value of half the largest."""
    full = 2 * fullness >= fullness.max(axis=1, keepdims=True)
    first = full.argmax(axis=1)
    last = full.shape[1] - 1 - full[:, ::-1].argmax(axis=1)
    return round(float(np.median(first + last)) / 2)


def _coarsening(volume: Volume) -> tuple[int, int, int]:
    """How many voxels make a coarse one, along z, y, x."""
    z, y, x = (max(int(_COARSE_MM / spacing), 1) for spacing in volume.spacing_mm)
    return z, y, x


def _coarse(volume: Volume) -> NDArray[np.float32]:
    """Mean HU over blocks of `_coarsening` voxels; incomplete blocks are filled by their edge."""
    hu, factors = volume.hu, _coarsening(volume)
    count = int(np.prod(factors))
    if hu.dtype == np.int16 and count <= _EXACT_SUMS:
        return _block_sums(volume, factors) / np.float32(count)
    padding = [(0, -size % factor) for size, factor in zip(hu.shape, factors, strict=True)]
    padded = np.pad(hu, padding, mode="edge")
    split = [part for size, f in zip(padded.shape, factors, strict=True) for part in (size // f, f)]
    means: NDArray[np.float32] = padded.reshape(split).mean(axis=(1, 3, 5), dtype=np.float32)
    return means


def _block_sums(volume: Volume, factors: tuple[int, int, int]) -> NDArray[np.float32]:
    """Sums over the blocks of `_coarse`, as whole numbers that float32 holds exactly.

    Thirty times as fast as a mean over three axes: whole planes are added, then whole rows, in
    int16 where it holds the sums, and only what is left of them voxel by voxel.
    """
    z, y, x = factors
    depth, rows, columns = volume.shape
    sums = np.empty((-(-depth // z), -(-rows // y), -(-columns // x)), np.float32)
    most = z * y * max(map(abs, volume.hu_range))
    kind = np.int16 if most <= np.iinfo(np.int16).max else np.int32
    tall = np.empty((sums.shape[1], columns), kind)
    for index, wide in enumerate(sums):
        planes = [volume.hu[min(plane, depth - 1)] for plane in range(index * z, (index + 1) * z)]
        flat = planes[0].astype(kind)
        for plane in planes[1:]:
            flat += plane
        _add_blocks(flat, y, tall)
        _add_blocks(tall.T, x, wide.T)
    return sums


def _add_blocks(values: NDArray[Any], factor: int, sums: NDArray[Any]) -> None:
    """The sum of each `factor` rows of values, as a row of sums; the last row stands for missing
    ones."""
    whole = len(values) // factor
    sums[:whole] = values[: whole * factor : factor]
    for start in range(1, factor):
        sums[:whole] += values[start : whole * factor : factor]
    if whole < len(sums):
        rest = values[whole * factor :]
        sums[whole] = rest.sum(0, sums.dtype) + sums.dtype.type(factor - len(rest)) * rest[-1]


def _centres(mask: NDArray[np.bool_], factors: tuple[int, int, int]) -> NDArray[np.bool_]:
    """The mask at the middle of each block."""
    for axis, factor in enumerate(factors):
        size = mask.shape[axis]
        places = np.minimum(np.arange(factor // 2, size + factor // 2, factor), size - 1)
        mask = mask.take(places, axis)
    return mask


def _eroded(mask: NDArray[np.bool_], axes: tuple[int, ...] = (0, 1, 2)) -> NDArray[np.bool_]:
    """Without the voxels that have a neighbour along the axes outside of the mask; what lies beyond
    the border is inside."""
    return ~_dilated(~mask, axes)


def _sums_of_27(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of each voxel and its neighbours, those beyond the border like the voxels at it."""
    for axis in range(3):
        sums = values.copy()
        source, target = np.moveaxis(values, axis, 0), np.moveaxis(sums, axis, 0)
        target[1:] += source[:-1]
        target[:-1] += source[1:]
        target[0] += source[0]
        target[-1] += source[-1]
        values = sums
    return values


def _dilated(mask: NDArray[np.bool_], axes: tuple[int, ...] = (0, 1, 2)) -> NDArray[np.bool_]:
    """With the neighbours of its voxels along the axes.

    Whole arrays at a time: seven times as fast as scipy's operations, which take any structure.
    """
    result = mask.copy()
    for axis in axes:
        source, target = np.moveaxis(mask, axis, 0), np.moveaxis(result, axis, 0)
        target[1:] |= source[:-1]
        target[:-1] |= source[1:]
    return result
