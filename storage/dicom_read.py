"""DICOM in: the files of one CT series as a volume in HU, or a refusal that says what is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray
from pydicom.config import IGNORE
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage

from storage.bounds import reading
from storage.dicom_file import DicomFile, read_file
from storage.dicom_header import IMAGE_TAGS, Image, image_of, position_of, raw_uid, raw_value, shown
from storage.dicom_pixels import require_image, require_pixels, stored_frames
from storage.enhanced import MULTI_FRAME, frame_headers
from storage.errors import GeometryError, IngestError
from storage.grid import AIR_HU, MAX_SHEAR
from storage.stack import Plane, stacked
from storage.tilt import tilt_degrees, upright
from storage.volume import Volume

__all__ = ["read_series", "series_uid"]

_AFTER_SERIES_UID = 0x0020000F
_INT16 = np.iinfo(np.int16)


def series_uid(path: Path) -> str:
    """The series that a file belongs to. No more of it is read than is needed for that.

    Raises IngestError for what is no DICOM, or no CT image by its SOP class.
    """
    with _refusing(path):
        dicom = read_file(path, before=_AFTER_SERIES_UID)
    storage = raw_uid(dicom.header, 0x00080016) or dicom.sop_class
    if storage not in (CTImageStorage, *MULTI_FRAME):
        name = UID(storage, validation_mode=IGNORE).name
        raise IngestError(f"SOPClassUID (0008,0016) is {shown(name)}; expected CT Image Storage")
    uid = raw_uid(dicom.header, 0x0020000E)
    if not uid:
        raise IngestError("SeriesInstanceUID (0020,000E) is missing or empty")
    return uid


def read_series(files: Sequence[Path]) -> tuple[Volume, Sequence[Dataset]]:
    """One CT series as int16 HU, and its slices' headers (without pixels) in the same order.

    CT images, one slice a file, or enhanced multi-frame CT, whose frames get a header each like a
    single slice's. Slices lie along axis 0 in the order of their positions along the normal;
    instance numbers are ignored. Every slice is rescaled by its own slope and intercept, rounded
    and clipped to int16; padding becomes -1024 HU. MONOCHROME1 only inverts the display, so it
    changes nothing here. Header elements that cannot be decoded are left out of the headers.

    Slices of a tilted gantry are moved within their planes (`upright`), and the volume's steps say
    so.

    Raises, naming file, tag and value: GeometryError for slices that are no regular stack
    (missing, doubled or unevenly spaced slices, mixed orientation, spacing or shape, fewer than
    two, a tilt that contradicts GantryDetectorTilt); IngestError for anything else that is not one
    series of CT images with intact pixels and HU. Each file is read within the bounds of `reading`.
    """
    if not files:
        raise GeometryError("series: 0 slices; expected at least 2, since one slice has no spacing")
    dicoms: list[DicomFile] = []
    headers: list[list[Dataset]] = []
    planes: list[Plane] = []
    images = _Images()
    for path in files:
        with reading(path), _refusing(path):
            dicom = read_file(path)
            require_image(dicom)
            frames = frame_headers(path, dicom.header)
            found = [images.of(path, header) for header in frames]
            require_pixels(dicom, found[0], len(frames))
            planes += [
                Plane(path, len(dicoms), frame, image, position_of(path, header))
                for frame, (image, header) in enumerate(zip(found, frames, strict=True))
            ]
        dicoms.append(dicom)
        headers.append(frames)
    ordered, affine = stacked(planes)

    hu = np.empty((len(ordered), ordered[0].image.rows, ordered[0].image.columns), np.int16)
    places = {(plane.file, plane.frame): index for index, plane in enumerate(ordered)}
    for number, dicom in enumerate(dicoms):
        with reading(dicom.path), _refusing(dicom.path):
            image = ordered[places[number, 0]].image
            for frame, raw in enumerate(stored_frames(dicom, image, len(headers[number]))):
                place = places[number, frame]
                _to_hu(raw, ordered[place].image, hu[place])
    sheared = np.tan(np.radians(tilt_degrees(affine))) > MAX_SHEAR
    volume = upright(hu, affine, files[0]) if sheared else Volume(hu, affine)
    return volume, _Headers(headers[one.file][one.frame] for one in ordered)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Whatever a library raises is a refusal that names the file."""
    try:
        yield
    except (GeometryError, IngestError, MemoryError):
        raise
    except Exception as error:  # pydicom 3.0 raises eight classes and more on malformed files
        raise IngestError(f"{path}: cannot be read: {repr(error)[:200]}") from error


class _Images:
    """The images that headers describe; equal headers are looked at once."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Image] = {}

    def of(self, path: Path, header: Dataset) -> Image:
        written = tuple(raw_value(header, tag) for tag in IMAGE_TAGS)
        if None in written:  # decoded already
            return image_of(path, header)
        if written not in self._known:
            self._known[written] = image_of(path, header)
        return self._known[written]


class _Headers(Sequence[Dataset]):
    """Headers whose elements are decoded when somebody looks, since most are never looked at."""

    def __init__(self, headers: Iterable[Dataset]) -> None:
        self._headers = list(headers)

    def __len__(self) -> int:
        return len(self._headers)

    @overload
    def __getitem__(self, index: int) -> Dataset: ...

    @overload
    def __getitem__(self, index: slice) -> list[Dataset]: ...

    def __getitem__(self, index: int | slice) -> Dataset | list[Dataset]:
        if isinstance(index, slice):
            return [_decoded(one) for one in self._headers[index]]
        return _decoded(self._headers[index])


def _to_hu(raw: NDArray[np.integer], image: Image, hu: NDArray[np.int16]) -> None:
    """Rescale one plane's stored values into `hu`: both [rows, columns]."""
    # What lies above BitsStored in a cell (overlays in old files) is no part of the number, but
    # padding may be written with all bits.
    unused = image.bits_allocated - image.bits_stored
    low, high = int(raw.min()), int(raw.max())
    least = -(1 << image.bits_stored - 1) if image.signed else 0
    most = least + (1 << image.bits_stored) - 1
    stored = raw if least <= low and high <= most else (raw << unused) >> unused
    if stored is not raw:
        low, high = int(stored.min()), int(stored.max())
    ends = low * image.slope + image.intercept, high * image.slope + image.intercept
    whole = image.slope == 1 and image.intercept.is_integer()
    if whole and _INT16.min <= min(ends) and max(ends) <= _INT16.max:
        np.add(stored, int(image.intercept), out=hu, casting="unsafe", dtype=np.int32)
    else:
        exact = np.rint(stored * image.slope + image.intercept)
        hu[...] = np.clip(exact, _INT16.min, _INT16.max)
    if image.padding is not None:
        for values in (raw,) if stored is raw else (raw, stored):
            _pad(values, image.padding, hu)


def _pad(values: NDArray[np.integer], padding: tuple[int, int], hu: NDArray[np.int16]) -> None:
    """Padding (PS3.3 C.7.5.1.1.2) is no measurement, whatever its value: it becomes air."""
    # Wrapped: -2000 is often written as 63536, with the value representation of the other sign.
    low, high = np.sort(np.array(padding).astype(values.dtype))
    hu[values == low if low == high else (values >= low) & (values <= high)] = AIR_HU


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
