"""Where the patient is in a CT volume: the body's mask, and the body-centred frame's origin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .errors import IngestError
from .volume import Volume

__all__ = ["FrameOrigin", "body_mask", "frame_origin"]

TISSUE_HU = -300.0  # between fat (-100) and lung (-700 and less)
LUNG_HU = (-950.0, -500.0)  # gas in the bowel and air around the patient lie below

_COARSE_MM = 2.5  # the work is done in voxels of at most this size where the volume's are smaller
_LUNG_BASE_MM2 = 2000.0
_LUNG_HEIGHT_MM = 20.0

_CROSS: NDArray[np.bool_] = ndimage.generate_binary_structure(3, 1)
_IN_PLANE: NDArray[np.bool_] = _CROSS.copy()
_IN_PLANE[[0, 2]] = False


@dataclass(frozen=True)
class FrameOrigin:
    """Voxel (z, y, x) of the body-centred frame's origin, and the rule that placed its z."""

    index: tuple[int, int, int]
    rule: Literal["lung base", "middle of the body"]


def body_mask(volume: Volume) -> NDArray[np.bool_]:
    """The patient's voxels: [Z, Y, X] of a canonical volume, lungs and bowel gas included.

    The largest connected piece above -300 HU after an opening that removes sheets thinner than
    three coarse voxels (the table, blankets), with its holes filled slice by slice. Where the
    field of view cuts through a lung, the lung is no hole: it is added if most of it has the
    density of lung and it touches more of the body than of the rim. The border is then found at
    full resolution, within one coarse voxel.

    Arms that do not touch the trunk are left out. The mask is empty if nothing exceeds -300 HU.
    """
    factors = _coarsening(volume)
    hu = _coarse(volume.hu, factors)
    # Outside of the field of view the body goes on: hence the border value.
    opened = ndimage.binary_dilation(
        ndimage.binary_erosion(hu > TISSUE_HU, _CROSS, border_value=1), _CROSS
    )
    pieces, count = ndimage.label(opened, _CROSS)
    if count == 0:
        return np.zeros(volume.shape, bool)
    body = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    body |= _enclosed(body, hu)

    certain = ndimage.binary_erosion(body, _IN_PLANE, border_value=1)
    possible = ndimage.binary_dilation(body, _IN_PLANE)
    mask = np.asarray(volume.hu > TISSUE_HU)
    mask &= _fine(possible, factors, volume.shape)
    mask |= _fine(certain, factors, volume.shape)
    return mask


def frame_origin(volume: Volume, mask: NDArray[np.bool_]) -> FrameOrigin:
    """The origin of the body-centred frame of a canonical volume with its body mask.

    y, x: the median over slices of the centre of the body's bounding box. z: the lowest slice with
    at least 20 cm^2 of lung from which on 20 mm of slices have as much, if the lung ends inside of
    the volume; otherwise the middle of the slices that hold body.

    Raises IngestError if the mask is empty.
    """
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    if not len(slices):
        raise IngestError(
            f"volume of shape {volume.shape}: nothing in it is above {TISSUE_HU:g} HU "
            f"(maximum {volume.hu.max()}); expected a patient"
        )
    y = _median_centre(np.logical_or.reduce(mask[slices], axis=2))
    x = _median_centre(np.logical_or.reduce(mask[slices], axis=1))
    base = _lung_base(volume, mask)
    if base is None:
        return FrameOrigin((int(slices[len(slices) // 2]), y, x), "middle of the body")
    return FrameOrigin((base, y, x), "lung base")


def _enclosed(body: NDArray[np.bool_], hu: NDArray[np.float32]) -> NDArray[np.bool_]:
    """What belongs to the body in each slice though it is no tissue: holes, and cut lungs."""
    regions, count = ndimage.label(~body, _IN_PLANE)

    def counted(where: NDArray[np.bool_]) -> NDArray[np.int_]:
        return np.bincount(regions[where], minlength=count + 1)

    rim = np.ones(body.shape, bool)
    rim[:, 1:-1, 1:-1] = False
    on_rim = counted(rim)
    lung = counted((hu > LUNG_HU[0]) & (hu < LUNG_HU[1])) > counted(~body) / 2
    # The foam of a table has the density of lung, but the body covers only one side of it.
    covered = counted(ndimage.binary_dilation(body, _IN_PLANE)) > on_rim
    inside = (on_rim == 0) | (lung & covered)
    inside[0] = False  # the body itself
    enclosed: NDArray[np.bool_] = inside[regions]
    return enclosed


def _lung_base(volume: Volume, mask: NDArray[np.bool_]) -> int | None:
    """The lowest slice of the lungs, None if they do not end inside of the volume."""
    factors = (1, *_coarsening(volume)[1:])
    hu = _coarse(volume.hu, factors)
    lung = (hu > LUNG_HU[0]) & (hu < LUNG_HU[1]) & (_coarse(mask, factors) > 0.5)
    z_mm, y_mm, x_mm = volume.spacing_mm
    area_mm2 = np.count_nonzero(lung, axis=(1, 2)) * (y_mm * factors[1]) * (x_mm * factors[2])
    height = max(int(np.ceil(_LUNG_HEIGHT_MM / z_mm)), 1)
    if len(area_mm2) <= height:
        return None
    windows = np.lib.stride_tricks.sliding_window_view(area_mm2 >= _LUNG_BASE_MM2, height)
    runs = np.logical_and.reduce(windows, axis=1)
    base = int(np.argmax(runs))
    return base if runs[base] and base > 0 else None


def _median_centre(profiles: NDArray[np.bool_]) -> int:
    """The median over rows of the middle between a row's first and last True."""
    first = profiles.argmax(axis=1)
    last = profiles.shape[1] - 1 - profiles[:, ::-1].argmax(axis=1)
    return int(np.median((first + last) / 2))


def _coarsening(volume: Volume) -> tuple[int, int, int]:
    """How many voxels make a coarse one, along z, y, x."""
    z, y, x = (max(int(_COARSE_MM / spacing), 1) for spacing in volume.spacing_mm)
    return z, y, x


def _coarse(values: NDArray[np.generic], factors: tuple[int, ...]) -> NDArray[np.float32]:
    """Means over blocks of `factors` voxels; incomplete blocks are filled by their edge."""
    padding = [(0, -size % factor) for size, factor in zip(values.shape, factors, strict=True)]
    padded = np.pad(values, padding, mode="edge")
    split = [part for size, f in zip(padded.shape, factors, strict=True) for part in (size // f, f)]
    means: NDArray[np.float32] = padded.reshape(split).mean(axis=(1, 3, 5), dtype=np.float32)
    return means


def _fine(
    coarse: NDArray[np.bool_], factors: tuple[int, ...], shape: tuple[int, int, int]
) -> NDArray[np.bool_]:
    """The inverse of `_coarse`: every block has its coarse voxel's value."""
    for axis, factor in enumerate(factors):
        coarse = coarse.repeat(factor, axis)
    z, y, x = shape
    return coarse[:z, :y, :x]
