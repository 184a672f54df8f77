"""What a DICOM header says of an image, checked; and how a refusal names what is wrong in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage

from storage.errors import GeometryError, IngestError
from storage.grid import MAX_SHEAR

__all__ = [
    "IMAGE_TAGS",
    "Image",
    "image_of",
    "named",
    "position_of",
    "raw_uid",
    "raw_value",
    "raw_values",
    "refuse",
    "shown",
    "value_of",
]

# Values of PixelPresentation (PS3.3 C.8.16.2.1.1) of maps and fused images.
_COLOURED = ("COLOR", "MIXED", "TRUE_COLOR")

# One plane: twice the side of the largest matrix that CT scanners reconstruct.
_MAX_PIXELS = 4096 * 4096


@dataclass(frozen=True)
class Image:
    """What the planes of one stack share, all but the position (PS3.3 C.7.6.2, C.7.6.3, C.8.2.1).

    spacing_mm: between rows, between columns. row, column: unit vectors in LPS along a row (to the
    next column) and along a column. padding: lowest and highest stored value that is no
    measurement, as written, or None. tilt_degrees: GantryDetectorTilt, or None.
    """

    series: str
    frame_of_reference: str
    rows: int
    columns: int
    spacing_mm: tuple[float, float]
    row: tuple[float, float, float]
    column: tuple[float, float, float]
    bits_allocated: int
    bits_stored: int
    signed: bool
    photometric: str
    slope: float
    intercept: float
    padding: tuple[int, int] | None
    tilt_degrees: float | None


_KEYWORDS = """
    SOPClassUID Modality ImageType NumberOfFrames SamplesPerPixel PhotometricInterpretation
    BitsAllocated BitsStored HighBit PixelRepresentation Rows Columns PixelSpacing
    ImageOrientationPatient RescaleType RescaleSlope RescaleIntercept PixelPaddingValue
    PixelPaddingRangeLimit SeriesInstanceUID FrameOfReferenceUID GantryDetectorTilt
    PixelPresentation RealWorldValueMappingSequence
"""

# What scanners call a projection image.
_PROJECTIONS = frozenset(["LOCALIZER", "SCOUT", "SCANOGRAM", "SURVIEW", "TOPOGRAM"])

_HOUNSFIELD = "[hnsf'U]"  # in UCUM

# Whatever `image_of` depends on: headers that agree in these describe equal images.
_POSITION = Tag("ImagePositionPatient")
IMAGE_TAGS = tuple(Tag(keyword) for keyword in _KEYWORDS.split())


def image_of(path: Path, header: Dataset) -> Image:
    """The image of a single-frame CT header.

    Raises, naming file, tag and value: GeometryError for spacing and orientation that are missing
    or none, IngestError for anything that is no CT slice in HU of at most 4096 x 4096 pixels.
    """
    _require(path, header, "SOPClassUID", CTImageStorage, expected="CT Image Storage")
    _require(path, header, "Modality", "CT")
    kind = np.atleast_1d(value_of(path, header, "ImageType") or ())
    if not _PROJECTIONS.isdisjoint(kind.tolist()):
        refuse(path, header, "ImageType", "AXIAL; a localizer is a projection, not a slice")
    _require(path, header, "NumberOfFrames", None, 1, expected="one frame in a CT Image")
    _require(path, header, "SamplesPerPixel", 1, expected="1 (grey values)")
    _require(path, header, "PhotometricInterpretation", "MONOCHROME2", "MONOCHROME1")
    _require(path, header, "BitsAllocated", 8, 16, 32)
    _require(path, header, "PixelRepresentation", 0, 1)
    allocated, stored = header.BitsAllocated, value_of(path, header, "BitsStored")
    _require(path, header, "BitsStored", *range(1, allocated + 1))
    _require(path, header, "HighBit", stored - 1)

    if value_of(path, header, "PixelPresentation") in _COLOURED:
        refuse(path, header, "PixelPresentation", "MONOCHROME")
    _require(path, header, "RescaleType", None, "", "HU", "US", expected="HU")
    _require_hounsfield(path, header)
    slope = _numbers(path, header, "RescaleSlope", 1)[0]
    if slope == 0:
        refuse(path, header, "RescaleSlope", "a number other than 0")
    intercept = _numbers(path, header, "RescaleIntercept", 1)[0]

    rows, columns = (int(_numbers(path, header, name, 1)[0]) for name in ("Rows", "Columns"))
    if min(rows, columns) < 1 or rows * columns > _MAX_PIXELS:
        most = f"a positive number, Rows x Columns at most {_MAX_PIXELS} ({rows} x {columns})"
        refuse(path, header, "Columns" if rows > 0 and columns < 1 else "Rows", most)
    spacing = _numbers(path, header, "PixelSpacing", 2)
    if not (spacing > 0).all():
        refuse(path, header, "PixelSpacing", "two positive numbers in mm", GeometryError)
    cosines = _numbers(path, header, "ImageOrientationPatient", 6).reshape(2, 3)
    if np.abs(cosines @ cosines.T - np.eye(2)).max() > MAX_SHEAR:
        expected = "two unit vectors at right angles"
        refuse(path, header, "ImageOrientationPatient", expected, GeometryError)
    row, column = (cosines / np.linalg.norm(cosines, axis=1, keepdims=True)).tolist()
    return Image(
        series=str(value_of(path, header, "SeriesInstanceUID") or ""),
        frame_of_reference=str(value_of(path, header, "FrameOfReferenceUID") or ""),
        rows=rows,
        columns=columns,
        spacing_mm=(float(spacing[0]), float(spacing[1])),
        row=tuple(row),
        column=tuple(column),
        bits_allocated=int(allocated),
        bits_stored=int(stored),
        signed=bool(header.PixelRepresentation),
        photometric=str(header.PhotometricInterpretation),
        slope=float(slope),
        intercept=float(intercept),
        padding=_padding(path, header),
        tilt_degrees=_tilt(path, header),
    )


def position_of(path: Path, header: Dataset) -> NDArray[np.float64]:
    """[3]: the centre of the first pixel in LPS mm. Raises GeometryError unless it is finite."""
    written = raw_value(header, _POSITION)
    if isinstance(written, bytes):  # by far the most frequent case, and five times faster
        try:
            x, y, z = map(float, written.split(b"\\"))
            if math.isfinite(x + y + z):
                return np.array((x, y, z))
        except ValueError:
            pass
    return _numbers(path, header, "ImagePositionPatient", 3)


def raw_value(header: Dataset, tag: int) -> bytes | None:
    """The element's bytes as they stand in the file, b"" if missing, None if decoded already."""
    if tag not in header:
        return b""
    element = header.get_item(tag)
    return element.value or b"" if isinstance(element, RawDataElement) else None


def raw_values(
    elements: Mapping[int, RawDataElement], tags: Sequence[int]
) -> tuple[bytes | None, ...]:
    """The elements' bytes as they stand in the file, None for those that are missing or empty."""
    found = map(elements.get, tags)
    return tuple([one.value if one is not None else None for one in found])


def raw_uid(header: Dataset, tag: int) -> str:
    """A UID without pydicom's checks of it, which take longer than reading the file; or ""."""
    written = raw_value(header, tag)
    value = str(header[tag].value or "") if written is None else written.decode("latin-1")
    return value.strip("\0 ")


def value_of(path: Path, header: Dataset, keyword: str) -> Any:
    """The element's value, None if it is missing or empty."""
    try:
        return header.get(keyword)
    except Exception as error:  # decoding an element is as unpredictable as reading a file
        raise IngestError(
            f"{path}: {named(keyword)} cannot be decoded: {repr(error)[:200]}"
        ) from error


def refuse(
    path: Path,
    header: Dataset,
    keyword: str,
    expected: str,
    error: type[ValueError] = IngestError,
    where: str = "",
) -> NoReturn:
    """Raise the error: the file, the tag, its value, and what was expected."""
    value = shown(value_of(path, header, keyword))
    raise error(f"{path}: {where}{named(keyword)} is {value}; expected {expected}")


def shown(value: Any) -> str:
    """The value as DICOM writes it, printable, and cut to a length that a message can hold."""
    if value is None or value == "":
        return "missing or empty"
    several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    text = "\\".join(map(str, value)) if several else str(getattr(value, "name", value))
    text = text if len(text) <= 100 else f"{text[:100]}..."
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def named(keyword: str) -> str:
    """`Rows (0028,0010)`."""
    tag = Tag(tag_for_keyword(keyword) or 0)
    return f"{keyword} ({tag.group:04X},{tag.element:04X})"


def _require_hounsfield(path: Path, header: Dataset) -> None:
    """Refuse what the real world value mapping (PS3.3 C.7.6.16.2.11) calls something else."""
    for mapping in value_of(path, header, "RealWorldValueMappingSequence") or ():
        for unit in value_of(path, mapping, "MeasurementUnitsCodeSequence") or ():
            if value_of(path, unit, "CodeValue") not in (_HOUNSFIELD, None, ""):
                where = f"{named('RealWorldValueMappingSequence')}: "
                refuse(path, unit, "CodeValue", f"{_HOUNSFIELD}: HU", where=where)


def _tilt(path: Path, header: Dataset) -> float | None:
    value = value_of(path, header, "GantryDetectorTilt")
    try:
        return None if value is None or value == "" else float(value)
    except (TypeError, ValueError):
        return None


def _padding(path: Path, header: Dataset) -> tuple[int, int] | None:
    value = value_of(path, header, "PixelPaddingValue")
    if not isinstance(value, int):
        return None
    limit = value_of(path, header, "PixelPaddingRangeLimit")
    return value, limit if isinstance(limit, int) else value


def _numbers(path: Path, header: Dataset, keyword: str, count: int) -> NDArray[np.float64]:
    """The element's values as `count` finite numbers."""
    try:
        numbers = np.atleast_1d(np.array(value_of(path, header, keyword), dtype=np.float64))
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        refuse(path, header, keyword, f"finite numbers, {count} of them", GeometryError)
    return numbers


def _require(
    path: Path, header: Dataset, keyword: str, *allowed: object, expected: str | None = None
) -> None:
    if value_of(path, header, keyword) not in allowed:
        refuse(path, header, keyword, expected or " or ".join(map(str, allowed)))
