"""Shards as they are encoded here, against those of zarr."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import zarr
from blake3 import blake3
from zarr.codecs import BloscCodec, Crc32cCodec, ShardingCodecIndexLocation
from zarr.core.array import ShardsConfigParam

from storage import array, layout
from storage.array import content_digest, write_array
from storage.errors import StoreCorrupt
from storage.layout import layout_of
from storage.place import LocalPlace, Place


def files(root: Path) -> dict[str, bytes]:
    paths = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def write_by_zarr(root: Path, hu: np.ndarray, origin: tuple[int, int, int]) -> None:
    plan = layout_of(hu.shape, origin)
    padded = np.pad(hu, [(n, 0) for n in plan.lead], constant_values=-1024)
    array = zarr.create_array(
        store=root,
        name="volume",
        shape=padded.shape,
        dtype="int16",
        chunks=plan.chunk,
        shards=ShardsConfigParam(shape=plan.shard, index_location=ShardingCodecIndexLocation.start),
        compressors=[
            BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=2),
            Crc32cCodec(),
        ],
        fill_value=-32768,
        attributes={"a": 1},
    )
    array[...] = padded


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("shard_bytes", [512 * 2**20, 2**20])
@pytest.mark.parametrize(
    ("shape", "origin"),
    [
        ((20, 200, 300), (3, 77, 201)),
        ((5, 30, 40), (1, 2, 3)),
        ((17, 128, 129), (0, 0, 0)),
        ((40, 260, 131), (13, 99, 64)),
    ],
)
def test_every_file_is_byte_for_byte_what_zarr_writes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, int, int],
    origin: tuple[int, int, int],
    shard_bytes: int,
    threads: int,
) -> None:
    monkeypatch.setattr(layout, "_SHARD_BYTES", shard_bytes)
    hu = np.random.default_rng(4).integers(-1024, 2000, shape).astype(np.int16)
    hu[:, :50] = -1000
    write_by_zarr(tmp_path / "zarr", hu, origin)
    place = Place.of(tmp_path / "ours")
    if threads:
        with ThreadPoolExecutor(threads) as pool:
            written = write_array(place, "volume", hu, {"a": 1}, origin, pool)
    else:
        written = write_array(place, "volume", hu, {"a": 1}, origin)
    theirs, ours = (files(tmp_path / name / "volume") for name in ("zarr", "ours"))
    assert ours == theirs
    assert written.stored_bytes == sum(map(len, ours.values()))


class LyingPlace(LocalPlace):
    """A disk that says it has written, and gives back another bit of one file."""

    def __init__(self, root: Path, name: str) -> None:
        super().__init__(root)
        self._name = name

    def replace(self, name: str, data: bytes, *, expected: str | None = None) -> str:
        return super().replace(name, self._altered(name, data), expected=expected)

    @contextmanager
    def replacing(self, name: str) -> Iterator[BinaryIO]:
        with super().replacing(name) as file:
            yield file
        data = (self.root / name).read_bytes()
        (self.root / name).write_bytes(self._altered(name, data))

    def _altered(self, name: str, data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1]) if name.endswith(self._name) else data


@pytest.mark.parametrize("name", ["c/0/0/0", "zarr.json"])
def test_what_reads_back_otherwise_than_written_is_refused_and_removed(
    tmp_path: Path, name: str
) -> None:
    hu = np.random.default_rng(5).integers(-1024, 2000, (20, 130, 140)).astype(np.int16)
    with pytest.raises(StoreCorrupt, match=rf"{name}: reads back other bytes"):
        write_array(LyingPlace(tmp_path, name), "volume", hu, {}, (3, 70, 70))
    assert files(tmp_path) == {}


def test_a_codec_that_does_not_give_back_what_it_took_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress = array.blosc.compress
    monkeypatch.setattr(array.blosc, "compress", lambda chunk, *how: compress(chunk // 2, *how))
    hu = np.random.default_rng(5).integers(-1024, 2000, (20, 130, 140)).astype(np.int16)
    with pytest.raises(StoreCorrupt, match="does not decode to the voxels"):
        write_array(Place.of(tmp_path), "volume", hu, {}, (3, 70, 70))
    assert files(tmp_path) == {}


def test_the_digest_is_of_shape_affine_and_voxels() -> None:
    hu = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    affine = np.arange(16.0)
    parts = np.array(hu.shape, "<i8").tobytes(), affine.astype("<f8").tobytes(), hu.tobytes()
    assert content_digest(hu, affine.tolist()) == blake3(b"".join(parts)).hexdigest()
    flat = np.array(hu.reshape(3, 2, 4))
    assert content_digest(flat, affine.tolist()) != content_digest(hu, affine.tolist())
