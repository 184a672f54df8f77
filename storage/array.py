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
from storage.errors import IngestError, StoreError
from storage.layout import layout_of

__all__ = ["as_int16", "content_digest", "write_array"]

# Zarr reads a chunk that is not there as the fill value, without an error, and does not write one
# that holds nothing else. No stored voxel has this value.
_MISSING_HU = -32768
_PADDING_HU = -1024


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
    root: Path,
    array_path: str,
    hu: np.ndarray,
    attributes: Mapping[str, Any],
    origin: Sequence[int],
) -> None:
    """Write int16 voxels to a new array, behind the padding of `layout_of`, and bring it to the
    disk.

    Raises StoreError when the disk refuses; nothing of the array stays then.
    """
    folder = root / array_path
    layout = layout_of(hu.shape, origin)
    padded = np.pad(hu, [(n, 0) for n in layout.lead], constant_values=_PADDING_HU)
    try:
        array = zarr.create_array(
            store=root,
            name=array_path,
            shape=padded.shape,
            dtype="int16",
            chunks=layout.chunk,
            # The index first: a reader needs one request for it, and not the file's size.
            shards={"shape": layout.shard, "index_location": "start"},
            # The checksum is of the compressed bytes: damaged blosc decodes to wrong HU silently.
            compressors=[
                BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=2),
                Crc32cCodec(),
            ],
            fill_value=_MISSING_HU,
            attributes=dict(attributes),
        )
        array[...] = padded
        sync_tree(folder)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise StoreError(
                f"{folder}: not written ({error.strerror or error}); the store stays as it was"
            ) from error
        raise
