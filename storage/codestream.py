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

__all__ = ["bare_codestream", "precision"]

# The markers that begin a frame of JPEG, and those that a transfer syntax allows (PS3.5 A.4).
_BASELINE, _EXTENDED, _LOSSLESS, _LS = 0xC0, 0xC1, 0xC3, 0xF7
_FRAMES = frozenset([*range(0xC0, 0xD0), _LS]) - {0xC4, 0xC8, 0xCC}
_PROCESSES = {
    JPEGBaseline8Bit: (_BASELINE,),
    JPEGExtended12Bit: (_BASELINE, _EXTENDED),
    JPEGLossless: (_LOSSLESS,),
    JPEGLosslessSV1: (_LOSSLESS,),
    **dict.fromkeys(JPEGLSTransferSyntaxes, (_LS,)),
}

_MOST_TILES = 1024
_END = b"\xff\xd9"  # of JPEG, JPEG-LS and JPEG 2000 alike


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
            height, width, components, bits = _jpeg(frame, _PROCESSES[syntax])
        elif syntax in JPEG2000TransferSyntaxes:
            height, width, components, bits = _jpeg_2000(frame)
        else:
            raise ValueError("is in a transfer syntax that is not read here")
    except (StructError, IndexError):
        raise ValueError("ends within its own header") from None
    if not frame.rstrip(b"\0").endswith(_END):
        raise ValueError("ends without its end marker (FFD9): it is not whole")
    if (height, width, components) != (rows, columns, 1) or not 0 < bits <= bits_allocated:
        raise ValueError(
            f"says of itself {height} x {width} pixels, {components} components of {bits} bits; "
            f"expected {rows} x {columns}, 1 of at most {bits_allocated}"
        )
    return bits


def _require_rle(frame: bytes, pixels: int, planes: int) -> None:
    """RLE (PS3.5 annex G): one segment for each byte of a pixel, each of as many runs as needed."""
    count, *starts = unpack_from("<16I", frame)
    if count != planes:
        raise ValueError(
            f"has {count} RLE segments; expected {planes}, one for each byte of a pixel"
        )
    ends = [*starts[1:count], len(frame)]
    for start, end in zip(starts, ends, strict=False):
        if not 64 <= start <= end <= len(frame):
            raise ValueError(f"has an RLE segment from byte {start} to {end} of {len(frame)}")
        found = _unpacked(frame[start:end], pixels)
        if found != pixels:
            raise ValueError(f"has an RLE segment of {found} pixels; expected {pixels}")


def _unpacked(segment: bytes, most: int) -> int:
    """How many bytes the runs of an RLE segment make, at most about `most`."""
    at = made = 0
    end = len(segment)
    while at < end and made <= most:
        code = segment[at]
        if code > 128:
            made += 257 - code
            at += 2
        elif code < 128 and at + code + 2 <= end:
            made += code + 1
            at += code + 2
        else:  # nothing, or the byte that makes a segment's length even
            at += 1
    return made


def _jpeg(frame: bytes, processes: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The first frame header of a JPEG or JPEG-LS image (ITU-T T.81 B.2.2, T.87 C.2.2)."""
    if frame[:2] != b"\xff\xd8":
        raise ValueError("does not begin as a JPEG image")
    at = 2
    while True:
        if frame[at] != 0xFF:
            raise ValueError("has no frame header where one is due")
        marker = frame[at + 1]
        if marker == 0xFF:  # fill bytes
            at += 1
            continue
        if marker in _FRAMES:
            if marker not in processes:
                raise ValueError(
                    f"is JPEG of another process (marker FF{marker:02X}) than its syntax says"
                )
            _, bits, height, width, components = unpack_from(">HBHHB", frame, at + 2)
            return height, width, components, bits
        if marker in (0xD8, 0xD9, 0xDA):
            raise ValueError("has no frame header before its data")
        at += 2 + unpack_from(">H", frame, at + 2)[0]


def _jpeg_2000(frame: bytes) -> tuple[int, int, int, int]:
    """The image and tile size of a JPEG 2000 codestream (ITU-T T.800 A.5.1)."""
    if frame[:4] != b"\xff\x4f\xff\x51":
        raise ValueError("does not begin as a JPEG 2000 codestream")
    x, y, left, top, tile_x, tile_y, tile_left, tile_top, components = unpack_from(">8IH", frame, 8)
    bits, step_x, step_y = unpack_from(">3B", frame, 42)
    if (step_x, step_y) != (1, 1) or not tile_x or not tile_y or max(left, top) > min(x, y):
        raise ValueError("has a sub-sampled image or empty tiles")
    tiles = -(-(x - tile_left) // tile_x) * -(-(y - tile_top) // tile_y)
    if not 0 < tiles <= _MOST_TILES:
        raise ValueError(f"has {tiles} tiles; expected at most {_MOST_TILES}")
    return y - top, x - left, components, (bits & 0x7F) + 1
