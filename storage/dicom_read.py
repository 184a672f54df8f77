"""DICOM in: the files of one CT series as a volume in HU, or a refusal that says what is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import overload

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from pydicom.config import IGNORE
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage

from storage.bounds import advanced, reading
from storage.dicom_file import DicomFile, read_file
from storage.dicom_header import (
    IMAGE_TAGS,
    Image,
    image_of,
    position_of,
    raw_uid,
    raw_values,
    shown,
)
from storage.dicom_pixels import require_image, require_pixels, stored_frames
from storage.enhanced import MULTI_FRAME, frame_headers
from storage.errors import GeometryError, IngestError
from storage.grid import AIR_HU, MAX_SHEAR
from storage.stack import Plane, require_same_stack, require_voxels, stacked
from storage.tilt import tilt_degrees, upright
from storage.volume import Volume

__all__ = ["read_series", "series_uid"]

_AFTER_SERIES_UID = 0x0020000F
_INT16 = np.iinfo(np.int16)


def series_uid(path: Path, start: bytes = b"") -> str:
    """The series that a file belongs to. No more of it is read than is needed for that.

    start: the file's first bytes, if they were read already.

    Raises IngestError for what is no DICOM, or no CT image by its SOP class.
    """
    with _refusing(path):
        dicom = read_file(path, before=_AFTER_SERIES_UID, start=start)
    storage = raw_uid(dicom.header, 0x00080016) or dicom.sop_class
    if storage not in (CTImageStorage, *MULTI_FRAME):
        name = UID(storage, validation_mode=IGNORE).name
        raise IngestError(f"SOPClassUID (0008,0016) is {shown(name)}; expected CT Image Storage")
    uid = raw_uid(dicom.header, 0x0020000E)
    if not uid:
        raise IngestError("SeriesInstanceUID (0020,000E) is missing or empty")
    return uid


def read_series(
    files: Sequence[Path], digests: dict[Path, bytes] | None = None
) -> tuple[Volume, Sequence[Dataset]]:
    """One CT series as int16 HU, and its slices' headers (without pixels) in the same order.

    CT images, one slice a file, or enhanced multi-frame CT, whose frames get a header each like a
    single slice's. Slices lie along axis 0 in the order of their positions along the normal;
    instance numbers are ignored. Every slice is rescaled by its own slope and intercept, rounded
    and clipped to int16; padding becomes -1024 HU. MONOCHROME1 only inverts the display, so it
    changes nothing here. Header elements that cannot be decoded are left out of the headers.

    digests: takes the BLAKE3 of the contents of every file that was read at once, which spares
    reading it a second time.

    Slices of a tilted gantry are moved within their planes (`upright`), and the volume's steps say
    so.

    Raises, naming file, tag and value: GeometryError for slices that are no regular stack
    (missing, doubled or unevenly spaced slices, mixed orientation, spacing or shape, fewer than
    two, a tilt that contradicts GantryDetectorTilt); IngestError for anything else that is not one
    series of CT images with intact pixels and HU. Each file is read within the bounds of `reading`.
    """
    if not files:
        raise GeometryError("series: 0 slices; expected at least 2, since one slice has no spacing")
    headers: list[Dataset] = []
    planes: list[Plane] = []
    images = _Images()
    pixels = _Pixels()
    for number, path in enumerate(files):
        with reading(path), _refusing(path):
            dicom = read_file(path, pixels=True)
            require_image(dicom)
            frames = frame_headers(path, dicom.header)
            own = dicom.elements if len(frames) == 1 else None
            found = [images.of(path, header, own) for header in frames]
            require_pixels(dicom, found[0], len(frames))
            for frame, (image, header) in enumerate(zip(found, frames, strict=True)):
                planes.append(Plane(path, number, frame, image, position_of(path, header)))
                require_same_stack(planes[0], planes[-1])
            room = pixels.room(len(frames))
            if room is not None:
                _decode(dicom, found, room)
        if room is None:  # memory of the series, and not of one file's reading
            room = pixels.more_room(path, len(frames), len(files) - number, found[0])
            with reading(path), _refusing(path):
                _decode(dicom, found, room)
        headers += frames
        if digests is not None and dicom.data is not None:
            digests[path] = blake3(dicom.data).digest()
    ordered, affine = stacked(planes)
    numbers = {(plane.file, plane.frame): number for number, plane in enumerate(planes)}
    order = [numbers[plane.file, plane.frame] for plane in ordered]
    hu = pixels.in_order(order)
    sheared = np.tan(np.radians(tilt_degrees(affine))) > MAX_SHEAR
    volume = upright(hu, affine, files[0]) if sheared else Volume(hu, affine)
    return volume, _Headers(headers[number] for number in order)


class _Pixels:
    """The HU of all planes, in the order of the files: nearly always one array, since nearly all
    files hold one plane."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.int16]] = []
        self._used: list[int] = []

    def room(self, planes: int) -> NDArray[np.int16] | None:
        """Where the next planes go, None if there is no room for them."""
        if not self._parts or self._used[-1] + planes > len(self._parts[-1]):
            return None
        self._used[-1] += planes
        return self._parts[-1][self._used[-1] - planes : self._used[-1]]

    def more_room(self, path: Path, planes: int, files: int, image: Image) -> NDArray[np.int16]:
        """Room for these planes, and for one of each other file that is left, of `files`.

        Raises IngestError for more than a volume may have.
        """
        size = max(planes, files)
        require_voxels(path, sum(self._used) + size, image)
        self._parts.append(np.empty((size, image.rows, image.columns), np.int16))
        self._used.append(planes)
        return self._parts[-1][:planes]

    def in_order(self, order: Sequence[int]) -> NDArray[np.int16]:
        """[Z, Y, X] of the planes with these numbers. Moves them: to be called once."""
        used = [part[:count] for part, count in zip(self._parts, self._used, strict=True)]
        if len(used) > 1:
            joined: NDArray[np.int16] = np.concatenate(used)[np.array(order)]
            return joined
        _permute(used[0], order)
        return used[0]


def _permute(planes: NDArray[np.int16], order: Sequence[int]) -> None:
    """Put plane order[i] at place i, in place: a second copy of a volume takes memory and time."""
    left = {place for place, number in enumerate(order) if place != number}
    while left:
        place = first = min(left)
        kept = planes[first].copy()
        while order[place] != first:
            planes[place] = planes[order[place]]
            left.remove(place)
            place = order[place]
        planes[place] = kept
        left.remove(place)


def _decode(dicom: DicomFile, images: Sequence[Image], hu: NDArray[np.int16]) -> None:
    """All frames of a file, rescaled into `hu`: [frames, rows, columns]."""
    raw_frames = stored_frames(dicom, images[0], len(images))
    for raw, image, plane in zip(raw_frames, images, hu, strict=True):
        _to_hu(raw, image, plane)
        advanced()


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
        self._known: dict[tuple[bytes | None, ...], Image] = {}

    def of(
        self, path: Path, header: Dataset, elements: Mapping[int, RawDataElement] | None
    ) -> Image:
        """elements: the header's, as they stand in the file, if that is known."""
        if elements is None:
            return image_of(path, header)
        written = raw_values(elements, IMAGE_TAGS)
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
        if stored.dtype.itemsize == hu.itemsize:
            # Modulo 2^16, which is right as the result fits: four times as fast as wider integers.
            shift = np.array(int(image.intercept)).astype(hu.dtype)
            np.add(stored.view(hu.dtype), shift, out=hu)
        else:
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
    padded = values == low if low == high else (values >= low) & (values <= high)
    np.copyto(hu, AIR_HU, where=padded, casting="unsafe")


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
