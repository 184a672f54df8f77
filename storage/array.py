"""One volume's voxels on disk: a sharded Zarr v3 array of int16 HU with checksummed chunks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from storage.errors import IngestError, StoreCorrupt, StoreError
from storage.place import Place

__all__ = ["Written", "as_int16", "content_digest", "open_array", "read_array", "write_array"]

_CHUNK = (32, 64, 64)
_SHARD_BYTES = 512 * 2**20  # a shard is encoded in memory as a whole

# Zarr reads a chunk that is not there as the fill value, without an error. No stored voxel has
# this value, so that a box with one in it is known to be damaged.
_MISSING_HU = -32768


@dataclass(frozen=True)
class Written:
    """An array on its place: bytes of all its files, SHA-256 of its zarr.json."""

    stored_bytes: int
    metadata_digest: str


def as_int16(hu: np.ndarray) -> np.ndarray:
    """Rounded to int16, C order; -32768, which some scanners write outside of the field of view,
    becomes -32767. Raises IngestError for values that int16 cannot hold."""
    low, high = hu.min(), hu.max()
    limits = np.iinfo(np.int16)
    if not (low >= limits.min and high <= limits.max):  # false for NaN as well
        raise IngestError(f"HU from {low} to {high}; expected finite numbers that int16 can hold")
    rounded = np.rint(hu) if hu.dtype.kind == "f" else hu
    return np.ascontiguousarray(np.maximum(rounded, _MISSING_HU + 1), dtype=np.int16)


def content_digest(hu: np.ndarray, affine: Sequence[float]) -> str:
    """SHA-256 of shape (3 int64), affine (16 float64, row by row) and voxels (int16, C order), all
    little endian."""
    sha = hashlib.sha256(np.array(hu.shape, "<i8").tobytes())
    sha.update(np.array(affine, "<f8").tobytes())
    sha.update(np.ascontiguousarray(hu, "<i2").data)
    return sha.hexdigest()


def write_array(
    place: Place, array_path: str, hu: np.ndarray, attributes: Mapping[str, Any]
) -> Written:
    """Write int16 voxels to a new array: every file once, durably, zarr.json last.

    Zarr encodes in memory and the place writes, since zarr's own store does not fsync. Raises
    StoreError when the place refuses; nothing of the array stays then.
    """
    chunk = tuple(min(n, size) for n, size in zip(_CHUNK, hu.shape, strict=True))
    encoded: dict[str, Buffer] = {}
    array = zarr.create_array(
        store=MemoryStore(encoded),
        shape=hu.shape,
        dtype="int16",
        chunks=chunk,
        shards=_shard_shape(hu.shape, chunk),
        # The checksum is of the compressed bytes: damaged blosc decodes to wrong HU silently.
        compressors=[
            BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=2),
            Crc32cCodec(),
        ],
        fill_value=_MISSING_HU,
        attributes=dict(attributes),
    )
    array[...] = hu
    metadata = encoded.pop("zarr.json").to_bytes()
    stored_bytes = len(metadata)
    try:
        while encoded:
            name, shard = encoded.popitem()
            stored_bytes += len(shard)
            place.replace(f"{array_path}/{name}", shard.to_bytes())
        place.replace(f"{array_path}/zarr.json", metadata)
    except BaseException:
        with suppress(StoreError):  # the next writer sweeps
            place.remove_tree(array_path)
        raise
    return Written(stored_bytes, hashlib.sha256(metadata).hexdigest())


def open_array(place: Place, array_path: str, shape: Sequence[int]) -> zarr.Array[Any]:
    """Raises StoreCorrupt unless `array_path` is an int16 array of this shape within the store."""
    place.size(f"{array_path}/zarr.json")  # refuses what is missing or leads out of the store
    try:
        array = zarr.open_array(store=place.zarr_store, path=array_path, mode="r", zarr_format=3)
        found, dtype = tuple(array.shape), array.dtype
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreCorrupt(
            f"{place}/{array_path}/zarr.json: missing or altered: {error}"
        ) from error
    # Before anything is read: a shape decides how much memory a read takes.
    if found != tuple(shape) or dtype != np.int16:
        raise StoreCorrupt(
            f"{place}/{array_path}/zarr.json: is {dtype} {found}; the catalogue says int16 {shape}"
        )
    return array


def read_array(array: zarr.Array[Any], box: tuple[slice, ...]) -> np.ndarray:
    """Voxels of a box. Raises StoreCorrupt when a chunk of it is damaged or missing."""
    try:
        hu = np.asarray(array[box])
    except MemoryError:
        raise
    except Exception as error:  # codecs raise whatever they like for damaged bytes
        raise StoreCorrupt(
            f"{array.store_path}: a chunk is damaged ({type(error).__name__}: {error})"
        ) from error
    if hu.size and hu.min() == _MISSING_HU:
        raise StoreCorrupt(f"{array.store_path}: a chunk or shard is missing")
    return hu


def _shard_shape(shape: Sequence[int], chunk: Sequence[int]) -> tuple[int, ...]:
    """Whole chunks that cover the volume; halved along its longest axis while too large."""
    counts = [-(-size // n) for size, n in zip(shape, chunk, strict=True)]
    while np.prod(counts) * np.prod(chunk) * 2 > _SHARD_BYTES:
        longest = int(np.argmax(counts))
        counts[longest] = -(-counts[longest] // 2)
    return tuple(count * n for count, n in zip(counts, chunk, strict=True))
