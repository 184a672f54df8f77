"""One volume's voxels on disk: a sharded Zarr v3 array of int16 HU with checksummed chunks."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import google_crc32c
import numpy as np
from blake3 import blake3
from numcodecs import blosc

from storage.errors import IngestError, StoreCorrupt, StoreError
from storage.layout import Layout, layout_of
from storage.place import Place
from storage.volume import Volume

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer

__all__ = ["Written", "as_int16", "content_digest", "write_array"]

# Zarr reads a chunk that is not there as the fill value, without an error, and does not write one
# that holds nothing else. No stored voxel has this value.
_MISSING_HU = -32768
_PADDING_HU = -1024

_CNAME: Literal["lz4"] = "lz4"
_CLEVEL = 5
_CHECKSUM = 4  # bytes
_READ_BACK_BYTES = 1 << 20
_READ_BACK_PARTS = 64  # at most, in one request
_DECODED_CHUNKS = 8  # of which one is decoded again
_NO_CHUNK = 2**64 - 1


@dataclass(frozen=True)
class Written:
    """An array on its place: bytes of all its files, SHA-256 of its zarr.json."""

    stored_bytes: int
    metadata_digest: str


def as_int16(volume: Volume) -> Volume:
    """Rounded to int16, C order; -32768, which some scanners write outside of the field of view,
    becomes -32767. Raises IngestError for values that int16 cannot hold."""
    hu, (low, high) = volume.hu, volume.hu_range
    limits = np.iinfo(np.int16)
    if not (low >= limits.min and high <= limits.max):  # false for NaN as well
        raise IngestError(f"HU from {low} to {high}; expected finite numbers that int16 can hold")
    if hu.dtype == np.int16 and low > _MISSING_HU and hu.flags.c_contiguous:
        return volume
    rounded = np.rint(hu) if hu.dtype.kind == "f" else hu
    kept = np.ascontiguousarray(np.maximum(rounded, _MISSING_HU + 1), dtype=np.int16)
    return replace(volume, hu=kept)


def content_digest(hu: np.ndarray, affine: Sequence[float]) -> str:
    """BLAKE3 of shape (3 int64), affine (16 float64, row by row) and voxels (int16, C order), all
    little endian."""
    digest = blake3(np.array(hu.shape, "<i8").tobytes())
    digest.update(np.array(affine, "<f8").tobytes())
    digest.update(np.ascontiguousarray(hu, "<i2").reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def write_array(
    place: Place,
    array_path: str,
    hu: np.ndarray,
    attributes: Mapping[str, Any],
    origin: Sequence[int],
    pool: Executor | None = None,
) -> Written:
    """Write int16 voxels to a new array: every file once, durably, zarr.json last.

    Every file is read back and compared with what was written. Every eighth chunk is decoded again
    and compared with its voxels, which finds a codec that does not do what it should; to decode all
    of them would cost a fifth of an ingest's time and find no more of that.

    They come behind the padding of `layout_of`: the volume is the array's end, not all of it.
    origin: the voxel that is the origin of the body-centred frame. pool: threads that
    compress, instead of this one.

    Zarr writes the metadata; the shards are encoded here, byte for byte as Zarr does it, in a
    quarter of the time. Raises StoreError when the place refuses, StoreCorrupt where something
    comes back otherwise; nothing of the array stays then.
    """
    # A reader does without zarr, which takes 45 MB and a fifth of a second.
    import zarr  # noqa: PLC0415
    from zarr.codecs import BloscCodec, Crc32cCodec, ShardingCodecIndexLocation  # noqa: PLC0415
    from zarr.core.array import ShardsConfigParam  # noqa: PLC0415
    from zarr.storage import MemoryStore  # noqa: PLC0415

    layout = layout_of(hu.shape, origin)
    encoded: dict[str, Buffer] = {}
    zarr.create_array(
        store=MemoryStore(encoded),
        shape=tuple(n + size for n, size in zip(layout.lead, hu.shape, strict=True)),
        dtype="int16",
        chunks=layout.chunk,
        # The index first: a reader needs neither the file's size nor a second request for it.
        shards=ShardsConfigParam(
            shape=layout.shard, index_location=ShardingCodecIndexLocation.start
        ),
        # The checksum is of the compressed bytes: damaged blosc decodes to wrong HU silently.
        compressors=[
            BloscCodec(cname=_CNAME, clevel=_CLEVEL, shuffle="bitshuffle", typesize=2),
            Crc32cCodec(),
        ],
        fill_value=_MISSING_HU,
        attributes=dict(attributes),
    )
    metadata = encoded.pop("zarr.json").to_bytes()
    stored_bytes = len(metadata)
    counts = [
        -(-(n + size) // step)
        for n, size, step in zip(layout.lead, hu.shape, layout.shard, strict=True)
    ]
    try:
        for shard in np.ndindex(*counts):
            name = f"{array_path}/c/{'/'.join(map(str, shard))}"
            stored_bytes += _write_shard(place, name, hu, layout, shard, pool)
        place.replace(f"{array_path}/zarr.json", metadata)
        _check(place, f"{array_path}/zarr.json", [metadata])
    except BaseException:
        with suppress(StoreError):  # the next writer sweeps
            place.remove_tree(array_path)
        raise
    return Written(stored_bytes, hashlib.sha256(metadata).hexdigest())


def _check(place: Place, name: str, parts: Sequence[bytes]) -> None:
    """Read a file back and compare it with the parts that were written one behind the other."""
    same = place.size(name) == sum(map(len, parts))
    memory = memoryview(bytearray(max(_READ_BACK_BYTES, *map(len, parts), 0)))
    first = start = 0
    while same and first < len(parts):
        lengths = list(itertools.accumulate(map(len, parts[first : first + _READ_BACK_PARTS])))
        count = max(1, sum(length <= _READ_BACK_BYTES for length in lengths))
        (back,) = place.read_ranges(name, [start], [lengths[count - 1]], memory)
        begins = [0, *lengths]
        same = all(
            bytes(back[begin : begin + len(part)]) == part
            for begin, part in zip(begins, parts[first : first + count], strict=False)
        )
        first, start = first + count, start + lengths[count - 1]
    if not same:
        raise StoreCorrupt(f"{place}/{name}: reads back other bytes than were written")


def _write_shard(
    place: Place,
    name: str,
    hu: np.ndarray,
    layout: Layout,
    shard: tuple[int, ...],
    pool: Executor | None,
) -> int:
    """Write one shard's file, check it, and return its bytes: an index of offset and length
    (uint64) for each chunk in C order with its CRC-32C, then the chunks in Z order, those that lie
    beyond the array left out."""
    from zarr.core.indexing import morton_order_iter  # noqa: PLC0415

    grid = tuple(a // b for a, b in zip(layout.shard, layout.chunk, strict=True))
    inside = [
        chunk
        for chunk in morton_order_iter(grid)
        if all(
            (s * n + i) * size < lead + whole
            for s, n, i, size, lead, whole in zip(
                shard, grid, chunk, layout.chunk, layout.lead, hu.shape, strict=True
            )
        )
    ]
    first = [s * n for s, n in zip(shard, grid, strict=True)]
    places = [np.add(first, chunk).tolist() for chunk in inside]
    encode = partial(_encoded_chunk, hu, layout)
    index = np.full((*grid, 2), _NO_CHUNK, "<u8")
    offset = index.nbytes + _CHECKSUM
    parts = [bytes(offset)]  # the index, once it is known
    with place.replacing(name) as file:
        file.write(parts[0])
        encoded = map(encode, places) if pool is None else pool.map(encode, places)
        for chunk, part in zip(inside, encoded, strict=True):
            file.write(part)
            index[chunk] = offset, len(part)
            offset += len(part)
            parts.append(part)
        parts[0] = _checked(index.tobytes())
        file.seek(0)
        file.write(parts[0])
    _check(place, name, parts)
    return offset


def _encoded_chunk(hu: np.ndarray, layout: Layout, place: Sequence[int]) -> bytes:
    """A chunk of the padded array: blosc, then its CRC-32C."""
    starts = [i * n - lead for i, n, lead in zip(place, layout.chunk, layout.lead, strict=True)]
    ends = [start + n for start, n in zip(starts, layout.chunk, strict=True)]
    box = tuple(slice(max(a, 0), b) for a, b in zip(starts, ends, strict=True))
    chunk = hu[box]
    if chunk.shape != layout.chunk:
        whole = np.full(layout.chunk, _PADDING_HU, np.int16)
        for axis, (end, size) in enumerate(zip(ends, hu.shape, strict=True)):
            if end > size:  # beyond the array
                np.moveaxis(whole, axis, 0)[size - end :] = _MISSING_HU
        before = [max(-start, 0) for start in starts]
        whole[tuple(slice(a, a + n) for a, n in zip(before, chunk.shape, strict=True))] = chunk
        chunk = whole
    chunk = np.ascontiguousarray(chunk)
    packed = blosc.compress(chunk, _CNAME.encode(), _CLEVEL, blosc.BITSHUFFLE)
    if sum(place) % _DECODED_CHUNKS == 0:
        decoded = blosc.decompress(packed, np.empty_like(chunk))
        if not np.array_equal(decoded, chunk):
            raise StoreCorrupt(f"chunk {tuple(place)} does not decode to the voxels that it is of")
    return _checked(packed)


def _checked(data: bytes) -> bytes:
    checksum: int = google_crc32c.value(data)
    return data + checksum.to_bytes(_CHECKSUM, "little")
