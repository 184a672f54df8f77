"""DICOM in: the files of one CT series as a volume in HU, or a refusal that says what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from .errors import GeometryError, IngestError
from .grid import AIR_HU, MAX_SHEAR
from .volume import Volume

__all__ = ["read_series"]

# How far slices may lie from even spacing: positions are often rounded to 0.01 mm and worse.
_TOLERANCE_MM = 0.01
_TOLERANCE_OF_SPACING = 0.01

# By pydicom's `original_encoding`: implicit VR, little endian.
_UNCOMPRESSED: dict[tuple[bool | None, bool | None], UID] = {
    (True, True): ImplicitVRLittleEndian,
    (False, True): ExplicitVRLittleEndian,
    (False, False): ExplicitVRBigEndian,
}


@dataclass(frozen=True)
class _Plane:
    """One plane of pixels and where it lies (PS3.3 C.7.6.2.1.1), all in LPS mm."""

    path: Path
    header: Dataset
    shape: tuple[int, int]
    position: NDArray[np.float64]  # [3], centre of the first pixel
    row: NDArray[np.float64]  # [3], unit vector along a row, to the next column
    column: NDArray[np.float64]  # [3], unit vector along a column, to the next row
    spacing: NDArray[np.float64]  # [2], between rows, between columns


def read_series(files: Sequence[Path]) -> tuple[Volume, list[Dataset]]:
    """One CT series as int16 HU, and its slices' headers (without pixels) in the same order.

    Slices lie along axis 0 in the order of their positions along the normal; instance numbers are
    ignored. Every slice is rescaled by its own slope and intercept, rounded and clipped to int16;
    padding becomes -1024 HU. MONOCHROME1 only inverts the display, so it changes nothing here.
    Header elements that cannot be decoded are left out of the headers.

    Raises, naming file, tag and value: GeometryError for slices that are no regular stack at right
    angles (gantry tilt, missing, doubled or unevenly spaced slices, mixed orientation, spacing or
    shape, fewer than two); IngestError for anything else that is not one series of single-frame
    CT images with intact pixels and HU.
    """
    if len(files) < 2:
        raise GeometryError(
            f"{', '.join(map(str, files)) or 'series'}: {len(files)} slices; expected at least 2, "
            "since one slice has no spacing"
        )
    planes = [
        plane for path in files for plane in _planes(path, _dcmread(path, stop_before_pixels=True))
    ]
    for plane in planes[1:]:
        _require_same_stack(planes[0], plane)
    normal = np.cross(planes[0].row, planes[0].column)
    planes.sort(key=lambda plane: float(plane.position @ normal))
    affine = _stack_affine(planes, normal)

    hu = np.empty((len(planes), *planes[0].shape), np.int16)
    for index, plane in enumerate(planes):
        hu[index] = _hu(plane)
    return Volume(hu, affine), [_decoded(plane.header) for plane in planes]


def _dcmread(path: Path, *, stop_before_pixels: bool) -> Dataset:
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=stop_before_pixels, force=True)
        if "TransferSyntaxUID" not in dataset.file_meta:  # a bare data set, without file header
            dataset.file_meta.TransferSyntaxUID = _UNCOMPRESSED[dataset.original_encoding]
        return dataset
    except Exception as error:  # pydicom 3.0 raises eight classes and more on malformed files
        raise IngestError(f"{path}: not a readable DICOM file: {error!r}") from error


def _planes(path: Path, header: Dataset) -> list[_Plane]:
    """The planes of one file: one, since only single-frame images are read so far."""
    _require(path, header, "SOPClassUID", CTImageStorage, expected="CT Image Storage")
    _require(path, header, "Modality", "CT")
    if "LOCALIZER" in np.atleast_1d(_value(path, header, "ImageType") or ()):
        _refuse(path, header, "ImageType", "AXIAL; a localizer is a projection, not a slice")
    _require(path, header, "NumberOfFrames", None, 1, expected="one frame a file")
    _require(path, header, "SamplesPerPixel", 1, expected="1 (grey values)")
    _require(path, header, "PhotometricInterpretation", "MONOCHROME2", "MONOCHROME1")
    _require(path, header, "BitsAllocated", 8, 16, 32)
    _require(path, header, "PixelRepresentation", 0, 1)
    allocated, stored = header.BitsAllocated, _value(path, header, "BitsStored")
    _require(path, header, "BitsStored", *range(1, allocated + 1))
    _require(path, header, "HighBit", stored - 1)

    _require(path, header, "RescaleType", None, "", "HU", "US", expected="HU")
    if not _numbers(path, header, "RescaleSlope", 1).all():
        _refuse(path, header, "RescaleSlope", "a number other than 0")
    _numbers(path, header, "RescaleIntercept", 1)

    shape = _numbers(path, header, "Rows", 1)[0], _numbers(path, header, "Columns", 1)[0]
    if min(shape) < 1:
        _refuse(path, header, "Rows" if shape[0] < 1 else "Columns", "a positive number")
    spacing = _numbers(path, header, "PixelSpacing", 2)
    if not (spacing > 0).all():
        _refuse(path, header, "PixelSpacing", "two positive numbers in mm", GeometryError)
    cosines = _numbers(path, header, "ImageOrientationPatient", 6).reshape(2, 3)
    if np.abs(cosines @ cosines.T - np.eye(2)).max() > MAX_SHEAR:
        expected = "two unit vectors at right angles"
        _refuse(path, header, "ImageOrientationPatient", expected, GeometryError)
    row, column = cosines / np.linalg.norm(cosines, axis=1, keepdims=True)
    position = _numbers(path, header, "ImagePositionPatient", 3)
    return [_Plane(path, header, (int(shape[0]), int(shape[1])), position, row, column, spacing)]


def _require_same_stack(first: _Plane, other: _Plane) -> None:
    """Refuse a plane that cannot lie in one stack with the first."""
    for keyword in ("SeriesInstanceUID", "FrameOfReferenceUID"):
        expected = _value(first.path, first.header, keyword)
        if _value(other.path, other.header, keyword) != expected:
            _refuse(other.path, other.header, keyword, f"{expected} as in {first.path.name}")
    same = {
        "Rows": first.shape[0] == other.shape[0],
        "Columns": first.shape[1] == other.shape[1],
        "PixelSpacing": np.allclose(first.spacing, other.spacing, rtol=1e-4, atol=0),
        "ImageOrientationPatient": np.allclose(
            [first.row, first.column], [other.row, other.column], rtol=0, atol=1e-4
        ),
    }
    for keyword, holds in same.items():
        if not holds:
            expected = _shown(_value(first.path, first.header, keyword))
            _refuse(
                other.path,
                other.header,
                keyword,
                f"{expected} as in {first.path.name}, the same in the whole series",
                GeometryError,
            )


def _stack_affine(planes: list[_Plane], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine of planes sorted along the normal; refuses those that are no regular stack."""
    tag = "ImagePositionPatient (0020,0032)"
    positions = np.array([plane.position for plane in planes])
    steps = np.diff(positions @ normal)
    spacing = float(np.median(steps))
    tolerance = max(_TOLERANCE_MM, _TOLERANCE_OF_SPACING * spacing)
    for index, step in enumerate(steps):
        pair = f"{planes[index].path} and {planes[index + 1].path.name}: {tag}"
        if step <= _TOLERANCE_MM / 10:
            raise GeometryError(
                f"{pair} put both slices at {positions[index].tolist()} mm; expected one slice at "
                "each position (are these two phases or reconstructions in one series?)"
            )
        if step > 1.5 * spacing:
            raise GeometryError(
                f"{pair} leave {step:.4f} mm between the slices, where others have {spacing:.4f}; "
                f"expected about {round(step / spacing) - 1} more slices between them"
            )
        if abs(step - spacing) > tolerance:
            raise GeometryError(
                f"{pair} leave {step:.4f} mm between the slices; expected {spacing:.4f} +- "
                f"{tolerance:.4f} as in the rest of the series"
            )

    stride = (positions[-1] - positions[0]) / (len(planes) - 1)
    shift = np.linalg.norm(stride - (stride @ normal) * normal) / spacing
    if shift > MAX_SHEAR:
        tilt = planes[0].header.get("GantryDetectorTilt", "not stated")
        raise GeometryError(
            f"{planes[0].path}: {tag} moves sideways by {shift:.4f} mm for each mm along the "
            f"slices' normal (GantryDetectorTilt (0018,1120): {tilt}); expected slices stacked at "
            "right angles: resample a tilted series first"
        )
    even = positions[0] + np.arange(len(planes))[:, None] * stride
    off = np.linalg.norm(positions - even, axis=1)
    if off.max() > tolerance:
        worst = int(off.argmax())
        raise GeometryError(
            f"{planes[worst].path}: {tag} is {positions[worst].tolist()} mm, {off[worst]:.4f} mm "
            f"off the even stack of the series; expected at most {tolerance:.4f}"
        )

    first = planes[0]
    affine = np.eye(4)
    affine[:3, 0] = stride
    affine[:3, 1] = first.column * first.spacing[0]
    affine[:3, 2] = first.row * first.spacing[1]
    affine[:3, 3] = first.position
    return affine


def _hu(plane: _Plane) -> NDArray[np.int16]:
    """Decode the plane's pixels and rescale them: [rows, columns]."""
    path, header = plane.path, plane.header
    dataset = _dcmread(path, stop_before_pixels=False)
    if "PixelData" not in dataset:
        raise IngestError(f"{path}: PixelData (7FE0,0010) is missing or cut off; expected an image")
    try:
        raw = pixel_array(dataset, raw=True, correct_unused_bits=False)
    except Exception as error:  # every decoder has exceptions of its own
        syntax, reason = dataset.file_meta.TransferSyntaxUID, " ".join(str(error).split())
        raise IngestError(
            f"{path}: PixelData (7FE0,0010) in transfer syntax {syntax} cannot be decoded: {reason}"
        ) from error
    if raw.shape != plane.shape:
        raise IngestError(
            f"{path}: PixelData (7FE0,0010) decodes to shape {raw.shape}; expected {plane.shape}"
        )
    # What lies above BitsStored in a cell (overlays in old files) is no part of the number, but
    # padding may be written with all bits: hence not left to pydicom.
    unused = raw.dtype.itemsize * 8 - header.BitsStored
    stored = (raw << unused) >> unused
    hu = stored * float(header.RescaleSlope) + float(header.RescaleIntercept)
    hu[_padding(plane, raw) | _padding(plane, stored)] = AIR_HU
    limits = np.iinfo(np.int16)
    rounded: NDArray[np.int16] = np.clip(np.rint(hu), limits.min, limits.max).astype(np.int16)
    return rounded


def _padding(plane: _Plane, pixels: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Which pixels are padding (PS3.3 C.7.5.1.1.2): no measurement, whatever their value."""
    value = _value(plane.path, plane.header, "PixelPaddingValue")
    if not isinstance(value, int):
        return np.zeros(pixels.shape, bool)
    limit = _value(plane.path, plane.header, "PixelPaddingRangeLimit")
    ends = [value, limit if isinstance(limit, int) else value]
    # Wrapped: -2000 is often written as 63536, with the value representation of the other sign.
    low, high = np.sort(np.array(ends).astype(pixels.dtype))
    inside: NDArray[np.bool_] = (pixels >= low) & (pixels <= high)
    return inside


def _decoded(header: Dataset) -> Dataset:
    """The header with every element decoded in place; without those that cannot be."""
    for tag in list(header.keys()):
        try:
            element = header[tag]
            if element.VR == "SQ":
                for item in element.value:
                    _decoded(item)
        except Exception:  # one broken element, often a private one, is no reason to lose a series
            del header[tag]
    return header


def _value(path: Path, header: Dataset, keyword: str) -> Any:
    """The element's value, None if it is missing or empty."""
    try:
        return header.get(keyword)
    except Exception as error:  # decoding an element is as unpredictable as reading a file
        raise IngestError(f"{path}: {_named(keyword)} cannot be decoded: {error!r}") from error


def _numbers(path: Path, header: Dataset, keyword: str, count: int) -> NDArray[np.float64]:
    """The element's values as `count` finite numbers."""
    try:
        numbers = np.atleast_1d(np.array(_value(path, header, keyword), dtype=np.float64))
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        _refuse(path, header, keyword, f"finite numbers, {count} of them", GeometryError)
    return numbers


def _require(
    path: Path, header: Dataset, keyword: str, *allowed: object, expected: str | None = None
) -> None:
    if _value(path, header, keyword) not in allowed:
        _refuse(path, header, keyword, expected or " or ".join(map(str, allowed)))


def _refuse(
    path: Path,
    header: Dataset,
    keyword: str,
    expected: str,
    error: type[ValueError] = IngestError,
) -> NoReturn:
    value = _shown(_value(path, header, keyword))
    raise error(f"{path}: {_named(keyword)} is {value}; expected {expected}")


def _shown(value: Any) -> str:
    """The value as DICOM writes it, cut to a length that a message can hold."""
    if value is None or value == "":
        return "missing or empty"
    several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    text = "\\".join(map(str, value)) if several else str(getattr(value, "name", value))
    return text if len(text) <= 100 else f"{text[:100]}..."


def _named(keyword: str) -> str:
    tag = Tag(tag_for_keyword(keyword) or 0)
    return f"{keyword} ({tag.group:04X},{tag.element:04X})"
