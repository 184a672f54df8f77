"""One volume's voxels on disk: a sharded Zarr v3 array of int16 HU with checksummed chunks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import IngestError, StoreError
from storage.layout import layout_of
from storage.place import Place

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer

__all__ = ["Written", "as_int16", "content_digest", "write_array"]

# Zarr reads a chunk that is not there as the fill value, without an error, and does not write one
# that holds nothing else. No stored voxel has this value.
_MISSING_HU = -32768
_PADDING_HU = -1024


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
    place: Place,
    array_path: str,
    hu: np.ndarray,
    attributes: Mapping[str, Any],
    origin: Sequence[int],
) -> Written:
    """Write int16 voxels to a new array: every file once, durably, zarr.json last.

    They come behind the padding of `layout_of`: the volume is the array's end, not all of it.
    origin: the voxel that is the origin of the body-centred frame.

    Zarr encodes in memory and the place writes, since zarr's own store does not fsync. Raises
    StoreError when the place refuses; nothing of the array stays then.
    """
    # A reader does without zarr, which takes 45 MB and a fifth of a second.
    import zarr  # noqa: PLC0415
    from zarr.codecs import BloscCodec, Crc32cCodec, ShardingCodecIndexLocation  # noqa: PLC0415
    from zarr.core.array import ShardsConfigParam  # noqa: PLC0415
    from zarr.storage import MemoryStore  # noqa: PLC0415

    layout = layout_of(hu.shape, origin)
    padded = np.pad(hu, [(n, 0) for n in layout.lead], constant_values=_PADDING_HU)
    encoded: dict[str, Buffer] = {}
    array = zarr.create_array(
        store=MemoryStore(encoded),
        shape=padded.shape,
        dtype="int16",
        chunks=layout.chunk,
        # The index first: a reader needs neither the file's size nor a second request for it.
        shards=ShardsConfigParam(
            shape=layout.shard, index_location=ShardingCodecIndexLocation.start
        ),
        # The checksum is of the compressed bytes: damaged blosc decodes to wrong HU silently.
        compressors=[
            BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=2),
            Crc32cCodec(),
        ],
        fill_value=_MISSING_HU,
        attributes=dict(attributes),
    )
    array[...] = padded
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
