"""The stored values of a DICOM file's frames, native or compressed, decoded one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from struct import unpack, unpack_from
from typing import BinaryIO

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from storage.codestream import bare_codestream, precision
from storage.dicom_file import DicomFile, open_pixels
from storage.dicom_header import Image, named
from storage.errors import IngestError

__all__ = ["require_image", "require_pixels", "stored_frames"]


def _jpeg_2000(frame: bytes) -> NDArray[np.integer]:
    return imagecodecs.jpeg2k_decode(frame, numthreads=1)


_DECODERS: dict[UID, Callable[[bytes], NDArray[np.integer]]] = {
    JPEGBaseline8Bit: imagecodecs.jpeg8_decode,
    JPEGExtended12Bit: imagecodecs.jpeg8_decode,
    JPEGLossless: imagecodecs.jpeg8_decode,
    JPEGLosslessSV1: imagecodecs.jpeg8_decode,
    JPEGLSLossless: imagecodecs.jpegls_decode,
    JPEGLSNearLossless: imagecodecs.jpegls_decode,
    JPEG2000Lossless: _jpeg_2000,
    JPEG2000: _jpeg_2000,
    HTJ2KLossless: _jpeg_2000,
    HTJ2KLosslessRPCL: _jpeg_2000,
    HTJ2K: _jpeg_2000,
}

# What one file may hold: 1 GiB as int16.
_MAX_VOXELS = 1 << 29

_PIXELS = named("PixelData")


def require_image(dicom: DicomFile) -> None:
    """Raise IngestError unless the file has whole PixelData in a transfer syntax read here."""
    if dicom.pixels_at is None:
        raise IngestError(f"{dicom.path}: {_PIXELS} is missing or cut off; expected an image")
    there = dicom.end - dicom.pixels_at
    if dicom.pixels_bytes is not None and dicom.pixels_bytes > there:
        raise IngestError(
            f"{dicom.path}: {_PIXELS} has {dicom.pixels_bytes} bytes by its length, and at most "
            f"{there} are there; expected a whole file (was it cut off while it was copied?)"
        )
    if not _is_known(dicom.syntax):
        raise IngestError(
            f"{dicom.path}: {named('TransferSyntaxUID')} is {dicom.syntax.name}; expected native "
            "pixels, RLE, JPEG, JPEG-LS, JPEG 2000 or HTJ2K"
        )


def require_pixels(dicom: DicomFile, image: Image, frames: int) -> None:
    """Raise IngestError unless the file may hold `frames` such images, by its lengths."""
    path = dicom.path
    voxels = frames * image.rows * image.columns
    if voxels > _MAX_VOXELS:
        raise IngestError(
            f"{path}: {named('NumberOfFrames')} is {frames}, of {image.rows} x {image.columns} "
            f"pixels; expected at most {_MAX_VOXELS} voxels in one file"
        )
    if _encapsulated(dicom):
        return
    expected = voxels * image.bits_allocated // 8
    if dicom.pixels_bytes is None or not 0 <= dicom.pixels_bytes - expected <= expected % 2:
        found = "an open number of" if dicom.pixels_bytes is None else dicom.pixels_bytes
        raise IngestError(
            f"{path}: {_PIXELS} has {found} bytes; expected {expected} for {frames} frame(s) of "
            f"{image.rows} x {image.columns} pixels of {image.bits_allocated} bits"
        )


def stored_frames(dicom: DicomFile, image: Image, frames: int) -> Iterator[NDArray[np.integer]]:
    """The values of every frame as they are stored: [rows, columns], in the file's order.

    int or uint of BitsAllocated, by PixelRepresentation; what a writer put above BitsStored is
    still there. To be called after `require_pixels`. Raises IngestError naming the file where the
    pixels are not intact.
    """
    if dicom.data is not None and dicom.inflates_at is None and not _encapsulated(dicom):
        yield from _in_memory(dicom, image, frames, dicom.data)
        return
    with open_pixels(dicom) as file:
        if not _encapsulated(dicom):
            yield from _native(dicom, image, frames, file)
            return
        for number, frame in enumerate(_encoded_frames(dicom, frames, file), 1):
            yield _decoded(dicom, image, frame, number)


def _in_memory(
    dicom: DicomFile, image: Image, frames: int, data: bytes
) -> Iterator[NDArray[np.integer]]:
    """Native frames of a file that was read at once, without copies where its order is ours."""
    assert dicom.pixels_at is not None
    size = image.rows * image.columns * image.bits_allocated // 8
    for at in range(dicom.pixels_at, dicom.pixels_at + frames * size, size):
        yield _values(dicom, image, memoryview(data)[at : at + size])


def _native(
    dicom: DicomFile, image: Image, frames: int, file: BinaryIO
) -> Iterator[NDArray[np.integer]]:
    for _ in range(frames):
        size = image.rows * image.columns * image.bits_allocated // 8
        yield _values(dicom, image, _exactly(dicom, file, size))


def _values(dicom: DicomFile, image: Image, data: bytes | memoryview) -> NDArray[np.integer]:
    """One native frame, in this machine's byte order."""
    order = "<" if dicom.header.original_encoding[1] else ">"
    size = image.bits_allocated // 8
    dtype = np.dtype(f"{order}{'i' if image.signed else 'u'}{size}")
    if order == ">" and size == 1:  # bytes within the 16-bit words of OW (PS3.5 A.3)
        if image.rows * image.columns % 2:
            raise IngestError(
                f"{dicom.path}: {_PIXELS} has big endian words that do not end with a row; "
                "expected an even number of 8 bit pixels"
            )
        data = np.frombuffer(data, ">u2").astype("<u2").tobytes()
    values = np.frombuffer(data, dtype).reshape(image.rows, image.columns)
    return values if order == "<" else values.astype(dtype.newbyteorder("="))


def _decoded(dicom: DicomFile, image: Image, frame: bytes, number: int) -> NDArray[np.integer]:
    syntax = dicom.syntax
    if _DECODERS.get(syntax) is _jpeg_2000:
        frame = bare_codestream(frame)
    try:
        bits = precision(frame, syntax, image.rows, image.columns, image.bits_allocated)
        raw = _by_runs(frame, image) if syntax == RLELossless else _DECODERS[syntax](frame)
        if raw.shape != (image.rows, image.columns) or raw.dtype.kind not in "iu":
            raise ValueError(f"gives {raw.dtype} of shape {raw.shape}")
    except MemoryError:
        raise
    except Exception as error:  # every decoder has exceptions of its own
        reason = " ".join(str(error).split())[:200]
        raise IngestError(
            f"{dicom.path}: {_PIXELS} in transfer syntax {syntax} cannot be decoded: frame "
            f"{number} {reason}"
        ) from error
    size = image.bits_allocated // 8
    if image.signed and raw.dtype.kind == "u":  # a code without signs holds two's complement
        unused = 8 * raw.dtype.itemsize - bits
        raw = (raw.view(f"i{raw.dtype.itemsize}") << unused) >> unused
    return raw.astype(f"{'i' if image.signed else 'u'}{size}", copy=False)


def _by_runs(frame: bytes, image: Image) -> NDArray[np.integer]:
    """RLE: the decoder stops where the image is full."""
    dtype = np.dtype(f"<u{image.bits_allocated // 8}")
    expected = image.rows * image.columns * dtype.itemsize
    data = imagecodecs.dicomrle_decode(frame, dtype, out=bytearray(expected))
    if len(data) != expected:
        raise ValueError(f"has runs for {len(data)} bytes; expected {expected}")
    return np.frombuffer(data, dtype).reshape(image.rows, image.columns)


def _encoded_frames(dicom: DicomFile, frames: int, file: BinaryIO) -> Iterator[bytes]:
    """Each frame's bytes, out of the fragments of encapsulated pixels (PS3.5 A.4)."""
    start = file.tell()
    table, *fragments = _items(dicom, file)
    if frames == 1:
        groups = [fragments]
    elif len(fragments) == frames:
        groups = [[one] for one in fragments]
    else:
        groups = _by_offsets(dicom, file, table, fragments, frames)
    if not fragments:
        raise IngestError(f"{dicom.path}: {_PIXELS} has no fragments; expected {frames} frame(s)")
    for group in groups:
        parts = []
        for at, length in group:
            file.seek(at)
            parts.append(_exactly(dicom, file, length))
        yield b"".join(parts)
    file.seek(start)


def _items(dicom: DicomFile, file: BinaryIO) -> list[tuple[int, int]]:
    """Start and length of every item's value: the basic offset table and the fragments."""
    items = []
    size = dicom.path.stat().st_size
    while True:
        tag, length = unpack("<II", _exactly(dicom, file, 8))
        if tag == 0xE0DDFFFE:
            break
        at = file.tell()
        if tag != 0xE000FFFE or at + length > size:
            raise IngestError(
                f"{dicom.path}: {_PIXELS} has tag {tag & 0xFFFF:04X},{tag >> 16:04X} of {length} "
                f"bytes at byte {at - 8}; expected fragments within the file"
            )
        items.append((at, length))
        file.seek(at + length)
    if not items:
        raise IngestError(f"{dicom.path}: {_PIXELS} has no offset table; expected one, or an empty")
    return items


def _by_offsets(
    dicom: DicomFile,
    file: BinaryIO,
    table: tuple[int, int],
    fragments: list[tuple[int, int]],
    frames: int,
) -> list[list[tuple[int, int]]]:
    """The fragments of each frame, by the basic offset table."""
    file.seek(table[0])
    data = _exactly(dicom, file, table[1])
    offsets = unpack_from(f"<{len(data) // 4}I", data)
    base = fragments[0][0] if fragments else 0
    begins = {at - base: index for index, (at, _) in enumerate(fragments)}
    firsts = [begins.get(offset, -1) for offset in offsets]
    if len(firsts) != frames or -1 in firsts or firsts[:1] != [0] or firsts != sorted(set(firsts)):
        raise IngestError(
            f"{dicom.path}: {_PIXELS} has {len(fragments)} fragments and {len(offsets)} offsets "
            f"that fit them; expected {frames} frames by {named('NumberOfFrames')}"
        )
    ends = [*firsts[1:], len(fragments)]
    return [fragments[first:end] for first, end in zip(firsts, ends, strict=True)]


def _exactly(dicom: DicomFile, file: BinaryIO, amount: int) -> bytes:
    data = file.read(amount)
    while len(data) < amount and (more := file.read(amount - len(data))):
        data += more
    if len(data) < amount:
        raise IngestError(
            f"{dicom.path}: {_PIXELS} cannot be decoded: {amount - len(data)} of {amount} bytes "
            "are missing; expected a whole file (was it cut off while it was copied?)"
        )
    return data


def _encapsulated(dicom: DicomFile) -> bool:
    return _is_encapsulated(dicom.syntax)


# pydicom looks a UID up by regular expressions, for every slice of a series again.


@lru_cache(64)
def _is_known(syntax: UID) -> bool:
    known = not syntax.is_private and syntax.is_transfer_syntax
    return known and (not _is_encapsulated(syntax) or syntax in (RLELossless, *_DECODERS))


@lru_cache(64)
def _is_encapsulated(syntax: UID) -> bool:
    return syntax.is_compressed and not syntax.is_deflated
