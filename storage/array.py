"""One volume's voxels on disk: a sharded Zarr v3 array of int16 HU with checksummed chunks."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from storage.durable import sync_tree
from storage.errors import IngestError, StoreCorrupt, StoreError

__all__ = ["as_int16", "content_digest", "open_array", "read_array", "write_array"]

_CHUNK = (32, 64, 64)
_SHARD_BYTES = 512 * 2**20  # a shard is encoded in memory as a whole

# Zarr reads a chunk that is not there as the fill value, without an error. No stored voxel has
# this value, so that a box with one in it is known to be damaged.
_MISSING_HU = -32768


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
    root: Path, array_path: str, hu: np.ndarray, attributes: Mapping[str, Any]
) -> np.ndarray:
    """Write int16 voxels to a new array, bring it to the disk, and return what reads back.

    Raises StoreError when the disk refuses; nothing of the array stays then.
    """
    folder = root / array_path
    chunk = tuple(min(n, size) for n, size in zip(_CHUNK, hu.shape, strict=True))
    try:
        array = zarr.create_array(
            store=root,
            name=array_path,
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
        sync_tree(folder)
        return np.asarray(array[...])
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise StoreError(
                f"{folder}: not written ({error.strerror or error}); the store stays as it was"
            ) from error
        raise


def open_array(root: Path, array_path: str, shape: Sequence[int]) -> zarr.Array[Any]:
    """Raises StoreCorrupt unless `array_path` is an int16 array of this shape within the store."""
    folder = root / array_path
    if not folder.resolve().is_relative_to(root.resolve() / "volumes"):
        raise StoreCorrupt(f"{folder}: this path leads out of the store")
    try:
        array = zarr.open_array(store=root, path=array_path, mode="r", zarr_format=3)
        found, dtype = tuple(array.shape), array.dtype
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreCorrupt(f"{folder}: its zarr.json is missing or altered: {error}") from error
    # Before anything is read: a shape decides how much memory a read takes.
    if found != tuple(shape) or dtype != np.int16:
        raise StoreCorrupt(f"{folder}: is {dtype} {found}; the catalogue says int16 {shape}")
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
