"""The structure of a JPEG or JPEG-LS image of one component, walked before a decoder sees it.

Decoders allocate what the header asks for, go on after what they only warn of, and make up what is
missing. (GDCM 3.2 ends the process on a failed assertion, so it decodes nothing here.)
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from struct import unpack_from

__all__ = ["BASELINE", "EXTENDED", "JPEG_LS", "LOSSLESS", "frame_header"]

# Markers that begin a frame, by the process that it is coded with (ITU-T T.81 table B.1, T.87).
BASELINE, EXTENDED, LOSSLESS, JPEG_LS = 0xC0, 0xC1, 0xC3, 0xF7
_HUFFMAN_TABLES, _SCAN, _JFIF = 0xC4, 0xDA, 0xE0
_FRAMES = frozenset([*range(0xC0, 0xD0), JPEG_LS]) - {_HUFFMAN_TABLES, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset([0x00, 0x01, *range(0xD0, 0xDA)])

# Markers within coded data but restarts; JPEG-LS stuffs a bit after FF, JPEG a byte of zeros.
_MARKER = {
    False: re.compile(rb"\xff[^\x00\xd0-\xd7\xff]"),
    True: re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]"),
}


def frame_header(frame: bytes, processes: Collection[int]) -> tuple[int, int, int]:
    """Rows, columns and bits of a sample.

    processes: the markers of the frames that are allowed. Raises ValueError for another one, for
    more than one component, frame or scan, for anything between the segments, and for an image
    that does not end with its end marker; struct.error or IndexError where a segment is cut.
    """
    header, scan, data_at = None, b"", 2
    for marker, segment, end in _segments(frame):
        if marker in _FRAMES:
            if header is not None or marker not in processes:
                raise ValueError(f"is JPEG of process FF{marker:02X}, which its syntax has not")
            header = segment
        elif marker == _HUFFMAN_TABLES:
            _require_huffman_tables(segment)
        elif marker == _JFIF and segment[:5] == b"JFIF\0" and segment[5] != 1:
            raise ValueError(f"is JFIF of version {segment[5]}; expected 1")
        scan, data_at = segment, end
    if header is None:
        raise ValueError("has no frame header before its data")
    bits, rows, columns, components = unpack_from(">BHHB", header)
    if components != 1 or len(header) != 9 or scan[:2] != bytes([1, header[6]]):
        raise ValueError(f"has {components} components; expected 1, in one scan")
    _require_one_scan(frame, data_at, is_ls=JPEG_LS in processes)
    return rows, columns, bits


def _segments(frame: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Marker, contents and end of each segment, up to the scan header."""
    if frame[:2] != b"\xff\xd8":
        raise ValueError("does not begin as a JPEG image")
    at, marker = 2, 0
    while marker != _SCAN:
        if frame[at] != 0xFF:
            raise ValueError(f"has bytes of no segment at byte {at}")
        marker = frame[at + 1]
        if marker == 0xFF:  # fill bytes
            at += 1
            continue
        if marker in _WITHOUT_LENGTH:
            raise ValueError(f"has marker FF{marker:02X} before its data")
        (length,) = unpack_from(">H", frame, at + 2)
        end = at + 2 + length
        if length < 2 or end > len(frame):
            raise IndexError
        yield marker, frame[at + 4 : end], end
        at = end


def _require_huffman_tables(segment: bytes) -> None:
    """Refuse tables whose codes do not fit their lengths (T.81 C.2)."""
    at = 0
    while at < len(segment):
        counts = segment[at + 1 : at + 17]
        used = 0
        for bits, count in enumerate(counts, 1):
            used = 2 * used + count
            if used > 1 << bits:
                raise ValueError("has a Huffman table of more codes than their lengths allow")
        at += 17 + sum(counts)
    if at != len(segment):
        raise ValueError("has a Huffman table that is cut off")


def _require_one_scan(frame: bytes, start: int, *, is_ls: bool) -> None:
    marker = _MARKER[is_ls].search(frame, start)
    if marker is None:
        raise ValueError("ends without its end marker (FFD9): it is not whole")
    if marker[0] != b"\xff\xd9" or frame[marker.end() :].strip(b"\0"):
        raise ValueError(f"has marker FF{marker[0][1]:02X} within its data; expected one scan")
