"""From planes to a stack: their order along the normal, and the affine of the volume they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storage.dicom_header import Image, named
from storage.errors import GeometryError, IngestError
from storage.grid import MAX_SHEAR
from storage.tilt import tilt_degrees

__all__ = ["Plane", "require_same_stack", "require_voxels", "stacked"]

# How far slices may lie from even spacing: positions are often rounded to 0.01 mm and worse.
_TOLERANCE_MM = 0.01
_TOLERANCE_OF_SPACING = 0.01

_UPRIGHT_DEGREES = float(np.degrees(np.arctan(MAX_SHEAR)))
_MOST_TILT_DEGREES = 35.0  # gantries reach 30
_TILT_TOLERANCE_DEGREES = 1.0

_MAX_VOXELS = 1 << 31

_POSITION = named("ImagePositionPatient")


@dataclass(frozen=True)
class Plane:
    """One plane of pixels, of file number `file`, in it frame number `frame` (both from 0)."""

    path: Path
    file: int
    frame: int
    image: Image
    position: NDArray[np.float64]  # [3], centre of the first pixel in LPS mm


def stacked(planes: Sequence[Plane]) -> tuple[list[Plane], NDArray[np.float64]]:
    """The planes in the order of their positions along the normal, and their volume's affine.

    Instance numbers and the like are ignored. The affine is sheared where the gantry was tilted.
    Raises, naming file, tag and value: GeometryError for planes that are no regular stack (missing,
    doubled or unevenly spaced slices, mixed orientation, spacing or shape, fewer than two, a tilt
    that contradicts GantryDetectorTilt or exceeds 35 degrees); IngestError for planes of several
    series or frames of reference, and for more than 2^31 voxels.
    """
    first = planes[0]
    if len(planes) < 2:
        raise GeometryError(
            f"{first.path}: {len(planes)} slices; expected at least 2, since one slice has no "
            "spacing"
        )
    for plane in planes[1:]:
        require_same_stack(first, plane)
    require_voxels(first.path, len(planes), first.image)
    normal = np.cross(first.image.row, first.image.column)
    ordered = sorted(planes, key=lambda plane: float(plane.position @ normal))
    return ordered, _affine(ordered, normal)


def require_voxels(path: Path, planes: int, image: Image) -> None:
    """Raise IngestError for so many planes that they are no volume."""
    if planes * image.rows * image.columns > _MAX_VOXELS:
        raise IngestError(
            f"{path}: {planes} slices of {image.rows} x {image.columns}; expected at most "
            f"{_MAX_VOXELS} voxels in one volume"
        )


def require_same_stack(first: Plane, other: Plane) -> None:
    """Raise what `stacked` does for a plane that cannot lie in one stack with the first."""
    a, b = first.image, other.image
    if a is b:
        return
    if a.series != b.series:
        _differs(first, other, "SeriesInstanceUID", a.series, b.series, IngestError)
    if a.frame_of_reference != b.frame_of_reference:
        values = a.frame_of_reference, b.frame_of_reference
        _differs(first, other, "FrameOfReferenceUID", *values, IngestError)
    if a.rows != b.rows:
        _differs(first, other, "Rows", a.rows, b.rows)
    if a.columns != b.columns:
        _differs(first, other, "Columns", a.columns, b.columns)
    if not np.allclose(a.spacing_mm, b.spacing_mm, rtol=1e-4, atol=0):
        _differs(first, other, "PixelSpacing", a.spacing_mm, b.spacing_mm)
    ours, theirs = (*a.row, *a.column), (*b.row, *b.column)
    if not np.allclose(ours, theirs, rtol=0, atol=1e-4):
        _differs(first, other, "ImageOrientationPatient", ours, theirs)


def _differs(
    first: Plane,
    other: Plane,
    keyword: str,
    expected: object,
    value: object,
    error: type[ValueError] = GeometryError,
) -> None:
    raise error(
        f"{_place(other)}: {named(keyword)} is {_shown(value)}; expected {_shown(expected)} as in "
        f"{first.path.name}, the same in the whole series"
    )


def _affine(planes: list[Plane], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine of planes sorted along the normal; refuses those that are no regular stack."""
    positions = np.array([plane.position for plane in planes])
    steps = np.diff(positions @ normal)
    spacing = float(np.median(steps))
    tolerance = max(_TOLERANCE_MM, _TOLERANCE_OF_SPACING * spacing)
    for index, step in enumerate(steps):
        if abs(step - spacing) <= tolerance and step > _TOLERANCE_MM / 10:
            continue
        pair = f"{_place(planes[index])} and {_place(planes[index + 1], short=True)}: {_POSITION}"
        if step <= _TOLERANCE_MM / 10:
            raise GeometryError(
                f"{pair} put both slices at {_shown(positions[index])} mm; expected one slice at "
                "each position (are these two phases or reconstructions in one series?)"
            )
        if step > 1.5 * spacing:
            raise GeometryError(
                f"{pair} leave {step:.4f} mm between the slices, where others have {spacing:.4f}; "
                f"expected about {round(step / spacing) - 1} more slices between them"
            )
        raise GeometryError(
            f"{pair} leave {step:.4f} mm between the slices; expected {spacing:.4f} +- "
            f"{tolerance:.4f} as in the rest of the series"
        )

    first = planes[0]
    stride = (positions[-1] - positions[0]) / (len(planes) - 1)
    even = positions[0] + np.arange(len(planes))[:, None] * stride
    off = np.linalg.norm(positions - even, axis=1)
    if off.max() > tolerance:
        worst = int(off.argmax())
        raise GeometryError(
            f"{_place(planes[worst])}: {_POSITION} is {_shown(positions[worst])} mm, "
            f"{off[worst]:.4f} mm off the even stack of the series; expected at most "
            f"{tolerance:.4f}"
        )

    affine = np.eye(4)
    affine[:3, 0] = stride
    affine[:3, 1] = np.multiply(first.image.column, first.image.spacing_mm[0])
    affine[:3, 2] = np.multiply(first.image.row, first.image.spacing_mm[1])
    affine[:3, 3] = first.position
    _require_stated_tilt(first, tilt_degrees(affine))
    return affine


def _require_stated_tilt(first: Plane, degrees: float) -> None:
    """Refuse a tilt that no gantry has, or another one than the header states."""
    if degrees <= _UPRIGHT_DEGREES:
        return
    moves = (
        f"{first.path}: {_POSITION} moves sideways by {np.tan(np.radians(degrees)):.4f} mm for "
        f"each mm along the slices' normal, a tilt of {degrees:.1f} degrees"
    )
    if degrees > _MOST_TILT_DEGREES:
        raise GeometryError(f"{moves}; expected at most {_MOST_TILT_DEGREES:g}")
    stated = first.image.tilt_degrees
    if stated is not None and abs(abs(stated) - degrees) > _TILT_TOLERANCE_DEGREES:
        raise GeometryError(
            f"{moves}; {named('GantryDetectorTilt')} is {stated:g}; expected both to be the same "
            f"within {_TILT_TOLERANCE_DEGREES:g} degree"
        )


def _place(plane: Plane, *, short: bool = False) -> str:
    """The file, and the frame if there are several in it."""
    name = plane.path.name if short else str(plane.path)
    return f"{name}, frame {plane.frame + 1}" if plane.frame else name


def _shown(value: object) -> str:
    if isinstance(value, tuple | np.ndarray):
        return "\\".join(f"{number:.10g}" for number in value)
    return str(value) or "missing or empty"
