"""What a compressed frame says of itself, held against the header before a decoder sees it.

The decoders are C libraries: they allocate what the frame's own header asks for, which may be
gigabytes in a kilobyte, and trust the caller for the size of the result.
"""

from __future__ import annotations

from struct import error as StructError
from struct import unpack_from

from pydicom.uid import (
    UID,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSTransferSyntaxes,
    RLELossless,
)

from storage.jpeg import BASELINE, EXTENDED, JPEG_LS, LOSSLESS, frame_header

__all__ = ["bare_codestream", "precision"]

_PROCESSES = {
    JPEGBaseline8Bit: (BASELINE,),
    JPEGExtended12Bit: (BASELINE, EXTENDED),
    JPEGLossless: (LOSSLESS,),
    JPEGLosslessSV1: (LOSSLESS,),
    **dict.fromkeys(JPEGLSTransferSyntaxes, (JPEG_LS,)),
}

_MOST_TILES = 1024
_RLE_GROWTH = 64  # two bytes make 128


def bare_codestream(frame: bytes) -> bytes:
    """A JPEG 2000 frame without the boxes of a JP2 file, which some write around it."""
    if frame[4:8] != b"jP  ":
        return frame
    at = 0
    while at + 8 <= len(frame):
        length, kind = unpack_from(">I4s", frame, at)
        if kind == b"jp2c":
            return frame[at + 8 :] if length == 0 else frame[at + 8 : at + length]
        if length < 8:
            break
        at += length
    return b""


def precision(frame: bytes, syntax: UID, rows: int, columns: int, bits_allocated: int) -> int:
    """The bits of a sample that the frame's own header states.

    Raises ValueError where that header is no grey image's of this size, in this transfer syntax,
    and where the frame is not whole: decoders make something up for what is missing.
    """
    try:
        if syntax == RLELossless:
            _require_rle(frame, rows * columns, bits_allocated // 8)
            return bits_allocated
        if syntax in _PROCESSES:
            height, width, bits = frame_header(frame, _PROCESSES[syntax])
        elif syntax in JPEG2000TransferSyntaxes:
            height, width, bits = _jpeg_2000(frame)
        else:
            raise ValueError("is in a transfer syntax that is not read here")
    except (StructError, IndexError):
        raise ValueError("ends within its own header") from None
    if (height, width) != (rows, columns) or not 0 < bits <= bits_allocated:
        raise ValueError(
            f"says of itself {height} x {width} pixels of {bits} bits; expected {rows} x "
            f"{columns} of at most {bits_allocated}"
        )
    return bits


def _require_rle(frame: bytes, pixels: int, planes: int) -> None:
    """RLE (PS3.5 annex G): one segment for each byte of a pixel."""
    count, *starts = unpack_from("<16I", frame)
    if count != planes:
        raise ValueError(
            f"has {count} RLE segments; expected {planes}, one for each byte of a pixel"
        )
    ends = [*starts[1:count], len(frame)]
    for start, end in zip(starts, ends, strict=False):
        if not 64 <= start <= end <= len(frame):
            raise ValueError(f"has an RLE segment from byte {start} to {end} of {len(frame)}")
        if (end - start) * _RLE_GROWTH < pixels:
            raise ValueError(f"has an RLE segment of {end - start} bytes for {pixels} pixels")


def _jpeg_2000(frame: bytes) -> tuple[int, int, int]:
    """Rows, columns and bits of a JPEG 2000 codestream (ITU-T T.800 A.5.1)."""
    if frame[:4] != b"\xff\x4f\xff\x51":
        raise ValueError("does not begin as a JPEG 2000 codestream")
    x, y, left, top, tile_x, tile_y, tile_left, tile_top, components = unpack_from(">8IH", frame, 8)
    bits, step_x, step_y = unpack_from(">3B", frame, 42)
    if (step_x, step_y) != (1, 1) or not tile_x or not tile_y or max(left, top) > min(x, y):
        raise ValueError("has a sub-sampled image or empty tiles")
    tiles = -(-(x - tile_left) // tile_x) * -(-(y - tile_top) // tile_y)
    if not 0 < tiles <= _MOST_TILES:
        raise ValueError(f"has {tiles} tiles; expected at most {_MOST_TILES}")
    if components != 1:
        raise ValueError(f"has {components} components; expected 1")
    if not frame.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise ValueError("ends without its end marker (FFD9): it is not whole")
    return y - top, x - left, (bits & 0x7F) + 1
