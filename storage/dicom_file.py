"""One DICOM file: its header, and where in it the pixels lie, found in bounded time and memory.

Little endian files, which is nearly all there are, are walked here and not by pydicom: ten times
faster, with every length held against the file, and with a bound on nesting. The values stay raw
bytes until somebody looks at them; pydicom decodes them. What this walk does not know (big endian,
no file meta information, wrong value representations) is left to pydicom's tolerant reader.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from struct import Struct, unpack_from
from struct import error as StructError
from typing import BinaryIO, cast

import pydicom
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from storage.errors import IngestError

__all__ = ["START_BYTES", "DicomFile", "Elements", "begins_as_dicom", "open_pixels", "read_file"]

Elements = dict[BaseTag, DataElement | RawDataElement]
_Raw = dict[int, RawDataElement]

_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_AFTER_META = 0x00030000
_PIXEL_TAGS = 0x7FE00008  # Float Pixel Data; Double Float Pixel Data and Pixel Data follow
_PIXEL_DATA = 0x7FE00010

START_BYTES = 132  # of a file, to know by whether it is DICOM

_MAX_DEPTH = 64  # of sequences in sequences; real files have less than ten
_FIRST_BYTES = 1 << 16  # enough for most headers
_WHOLE_BYTES = 1 << 24  # a file of up to so much is read at once where its pixels are wanted too
_MAX_UNUSUAL_HEADER = 1 << 24  # pydicom takes seconds for that much of tiny elements
_MAX_INFLATED_HEADER = 1 << 24
_MAX_INFLATED = 1 << 29
_KEPT_TAGS = 4096

# Value representations by the size of their length field (PS3.5 7.1.2).
_SHORT = "AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US"
_LONG = "OB OD OF OL OV OW SQ SV UC UN UR UT UV"
_SHORT_VRS = {vr.encode(): vr for vr in _SHORT.split()}
_LONG_VRS = {vr.encode(): vr for vr in _LONG.split()}


class _Tags(dict[int, tuple[int, BaseTag]]):
    """Tags by the four bytes of a file as one number: plain, which is compared ten times as fast,
    and as pydicom has them."""

    def __missing__(self, word: int) -> tuple[int, BaseTag]:
        tag = (word & 0xFFFF) << 16 | word >> 16
        pair = tag, BaseTag(tag)
        if len(self) < _KEPT_TAGS:  # a hostile file may have any number of them
            self[word] = pair
        return pair


_TAGS = _Tags()
_base_tag = lru_cache(64)(BaseTag)
_syntax = lru_cache(64)(UID)
_first_header = Struct("<I2sH").unpack_from
_short_header = Struct("<HH2sH").unpack_from
_item_header = Struct("<HHI").unpack_from
_length = Struct("<I").unpack_from

# By pydicom's `original_encoding`: implicit VR, little endian.
_UNCOMPRESSED: dict[tuple[bool | None, bool | None], UID] = {
    (True, True): ImplicitVRLittleEndian,
    (False, True): ExplicitVRLittleEndian,
    (False, False): ExplicitVRBigEndian,
}


@dataclass(frozen=True)
class DicomFile:
    """header: all before the pixels. syntax: the transfer syntax. sop_class: as the file meta
    information states it, which may be "".

    pixels_at, pixels_bytes: where the value of PixelData (7FE0,0010) begins in the file, or in
    what a deflated file inflates to, and its length: None where the file leaves it open, as
    encapsulated pixels do. Both are None if there is no PixelData. end: of the file, or the bound
    on what it may inflate to.
    inflates_at: where a deflated data set begins in the file.
    elements: the header's, as raw values; None where pydicom has read it.
    data: the whole file, where it was read at once.
    """

    path: Path
    syntax: UID
    sop_class: str
    header: Dataset
    pixels_at: int | None = None
    pixels_bytes: int | None = None
    end: int = 0
    inflates_at: int | None = None
    elements: Mapping[int, RawDataElement] | None = None
    data: bytes | None = None


def begins_as_dicom(start: bytes) -> bool:
    """By the first START_BYTES: DICM after the preamble; or, without both, a first element of
    group 0002 or 0008."""
    if len(start) < START_BYTES:
        return False
    # Any encoding: two capitals for the value representation, or a length below 65536.
    little = start[:2] in (b"\x02\x00", b"\x08\x00") and start[3:4] == b"\x00"
    big = start[:2] in (b"\x00\x02", b"\x00\x08") and start[2:3] == b"\x00"
    plausible = start[4:6].isupper() or start[6:8] == b"\x00\x00"
    return start[128:START_BYTES] == b"DICM" or ((little or big) and plausible)


class _Unusual(Exception):
    """Something that only pydicom's reader may understand."""


class _TooDeep(Exception):
    """Sequences in sequences beyond what any scanner writes."""


def read_file(
    path: Path, *, before: int = _PIXEL_TAGS, start: bytes = b"", pixels: bool = False
) -> DicomFile:
    """The file's header, up to the first element whose tag is not below `before`.

    start: the file's first bytes, if they were read already. pixels: they will be wanted too, so
    that a file of up to 16 MiB is read at once and kept as `data`.

    Raises IngestError naming the file if it is no DICOM, if sequences are nested more than 64
    deep, or if it is deflated and its header inflates to more than 16 MiB.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        whole = pixels and size <= _WHOLE_BYTES
        amount = size if whole else len(start) or _FIRST_BYTES
        while True:
            data = start if amount == len(start) else _read(file, min(amount, size))
            if not begins_as_dicom(data):
                raise IngestError(
                    f"{path}: does not begin as DICOM does; expected DICM at byte 128, or an "
                    "element of group 0002 or 0008"
                )
            try:
                found = _walked(path, data, size, before)
                return replace(found, data=data) if whole else found
            except _TooDeep:
                raise IngestError(
                    f"{path}: sequences are nested more than {_MAX_DEPTH} deep; expected less"
                ) from None
            except _Unusual:
                data = _read(file, min(size, _MAX_UNUSUAL_HEADER))
                break
            except (StructError, IndexError):  # the data read so far end within an element
                if amount >= size:
                    break
                amount *= 16
    return _by_pydicom(path, data[:_MAX_UNUSUAL_HEADER], size, before)


@contextmanager
def open_pixels(dicom: DicomFile) -> Iterator[BinaryIO]:
    """The bytes of the PixelData's value and what follows, as a file that stands at its start.

    A deflated file is inflated no further than that value goes.
    """
    assert dicom.pixels_at is not None
    if dicom.inflates_at is None and dicom.data is not None:
        memory = BytesIO(dicom.data)
        memory.seek(dicom.pixels_at)
        yield memory
    elif dicom.inflates_at is None:
        with dicom.path.open("rb", buffering=0) as file:
            file.seek(dicom.pixels_at)
            yield file
    else:
        end = dicom.pixels_at + (dicom.pixels_bytes or 0)
        stored = dicom.data if dicom.data is not None else dicom.path.read_bytes()
        data = _inflated(dicom.path, stored, dicom.inflates_at, end)
        yield BytesIO(memoryview(data)[dicom.pixels_at :])


def _read(file: BinaryIO, amount: int) -> bytes:
    """From the start; a raw file may give less at once than was asked for."""
    if file.tell():
        file.seek(0)
    data = file.read(amount)
    while len(data) < amount and (more := file.read(amount - len(data))):
        data += more
    return data


def _walked(path: Path, data: bytes, size: int, before: int) -> DicomFile:
    """From the file's first bytes. Raises struct.error or IndexError if these are too few."""
    if data[128:132] != b"DICM":
        raise _Unusual
    meta, start = _elements(data, 132, False, _AFTER_META)
    syntax, sop_class = _syntax(_uid(meta, 0x00020010)), _uid(meta, 0x00020002)
    if not syntax or syntax == ExplicitVRBigEndian:
        raise _Unusual
    if syntax == DeflatedExplicitVRLittleEndian:
        if len(data) < size:
            raise IndexError
        return _deflated(path, sop_class, data, start, before)
    implicit = syntax == ImplicitVRLittleEndian
    found, at = _elements(data, start, implicit, before)
    if len(data) < min(size, at + 12):
        raise IndexError
    header = Dataset(cast(Elements, found))
    header.set_original_encoding(implicit, True)
    bare = DicomFile(path, syntax, sop_class, header, elements=found)
    return _with_pixels(bare, data, at, size)


def _deflated(path: Path, sop_class: str, data: bytes, start: int, before: int) -> DicomFile:
    inflated = _inflated(path, data, start, _MAX_INFLATED_HEADER)
    try:
        found, at = _elements(inflated, 0, False, before)
        header = Dataset(cast(Elements, found))
        header.set_original_encoding(False, True)
        size = len(inflated) if len(inflated) < _MAX_INFLATED_HEADER else _MAX_INFLATED
        syntax = DeflatedExplicitVRLittleEndian
        bare = DicomFile(path, syntax, sop_class, header, inflates_at=start)
        return _with_pixels(bare, inflated, at, size)
    except (_Unusual, StructError, IndexError) as error:
        raise IngestError(
            f"{path}: the deflated header breaks off within its first {len(inflated)} bytes; "
            f"expected explicit VR elements, at most {_MAX_INFLATED_HEADER} bytes before the pixels"
        ) from error


def _with_pixels(bare: DicomFile, data: bytes, at: int, size: int) -> DicomFile:
    """The file with what the element that begins at `at` says of its pixels, if it is PixelData."""
    implicit, little = bare.header.original_encoding
    order = "<" if little else ">"
    if at + 12 > len(data):
        return bare
    group, element, code, _ = unpack_from(f"{order}HH2sH", data, at)
    if group << 16 | element != _PIXEL_DATA:  # floating point, or nothing of an image
        return bare
    short = implicit or not code.isalpha()
    (length,) = unpack_from(f"{order}I", data, at + (4 if short else 8))
    start = at + (8 if short else 12)
    stated = None if length == _UNDEFINED else int(length)
    return replace(bare, pixels_at=start, pixels_bytes=stated, end=size)


def _elements(data: bytes, at: int, implicit: bool, before: int) -> tuple[_Raw, int]:
    """The elements from `at` up to the first tag that is not below `before`, and where that is.

    Raises struct.error or IndexError where the data end within an element.
    """
    found: _Raw = {}
    last = 0
    end = len(data)
    short_vr, raw_element = _SHORT_VRS.get, tuple.__new__
    while at < end:
        word, code, length = _first_header(data, at)
        tag, key = _TAGS[word]
        if tag >= before:
            return found, at
        if tag <= last:
            raise _Unusual
        last = tag
        vr = None if implicit else short_vr(code)
        if vr is not None:  # nearly all
            start = at + 8
            finish = at = start + length
        else:
            vr, start, length = _value_of(data, at, implicit, code, length)
            if length == _UNDEFINED:
                if vr not in (None, "SQ"):
                    raise _Unusual
                vr = "SQ"
                finish, at = _items_end(data, start, end, implicit, 1)
            else:
                finish = at = start + length
                if vr == "SQ" and length > 16 * _MAX_DEPTH and at <= end:  # else it can't be deep
                    _items_end(data, start, finish, implicit, 1)
        if at > end:
            raise IndexError
        value = data[start:finish] if finish > start else None
        # Twice as fast as by its own constructor.
        raw = key, vr, finish - start, value, start, implicit, True
        found[key] = raw_element(RawDataElement, raw)
    return found, at


def _uid(elements: _Raw, tag: int) -> str:
    element = elements.get(_base_tag(tag))
    return element.value.decode("latin-1").strip("\0 ") if element and element.value else ""


def _value_of(
    data: bytes, at: int, implicit: bool, code: bytes, length: int
) -> tuple[str | None, int, int]:
    """Value representation, start and length of the value of the element at `at`."""
    if implicit:
        return None, at + 8, _length(data, at + 4)[0]
    if code in _SHORT_VRS:
        return _SHORT_VRS[code], at + 8, length
    if code in _LONG_VRS:
        return _LONG_VRS[code], at + 12, _length(data, at + 8)[0]
    raise _Unusual


def _items_end(data: bytes, at: int, end: int, implicit: bool, depth: int) -> tuple[int, int]:
    """Where the items that begin at `at` end, and where what follows them begins."""
    if depth > _MAX_DEPTH:
        raise _TooDeep
    while at < end:
        group, element, length = _item_header(data, at)
        tag = group << 16 | element
        if tag == _SEQUENCE_END:
            return at, at + 8
        if tag != _ITEM:
            raise _Unusual
        at += 8
        item_end = end if length == _UNDEFINED else at + length
        if item_end > end:
            raise IndexError
        at = _item_end(data, at, item_end, implicit, depth)
    return at, at


def _item_end(data: bytes, at: int, end: int, implicit: bool, depth: int) -> int:
    """Where the item whose elements begin at `at` ends, its delimiter included."""
    while at < end:
        group, element, code, length = _short_header(data, at)
        if group << 16 | element == _ITEM_END:
            return at + 8
        vr, start, length = _value_of(data, at, implicit, code, length)
        if length == _UNDEFINED:
            if vr not in (None, "SQ"):
                raise _Unusual
            _, at = _items_end(data, start, end, implicit, depth + 1)
        else:
            at = start + length
            if at > end:
                raise IndexError
            if vr == "SQ":
                _items_end(data, start, at, implicit, depth + 1)
    return at


def _inflated(path: Path, data: bytes, start: int, limit: int) -> bytes:
    """At most `limit` bytes of a deflated data set (PS3.5 A.5)."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(memoryview(data)[start:], limit)
    except zlib.error as error:
        raise IngestError(f"{path}: the deflated data set is corrupt: {error}") from error


def _by_pydicom(path: Path, data: bytes, size: int, before: int) -> DicomFile:
    """From the file's first bytes."""
    if DeflatedExplicitVRLittleEndian.encode() in data:  # pydicom 3.0 inflates without a bound
        raise IngestError(f"{path}: deflated, and its file meta information cannot be read")
    file = BytesIO(data)
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        implicit, little = header.original_encoding
        syntax = UID(header.file_meta.get("TransferSyntaxUID") or _UNCOMPRESSED[implicit, little])
    except Exception as error:  # pydicom 3.0 raises eight classes and more on malformed files
        raise IngestError(f"{path}: not a readable DICOM file: {repr(error)[:200]}") from error
    sop_class = str(header.file_meta.get("MediaStorageSOPClassUID") or "")
    bare = DicomFile(path, syntax, sop_class, header)
    return _with_pixels(bare, data, file.tell(), size) if before == _PIXEL_TAGS else bare
