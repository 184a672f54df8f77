"""Shards as they are encoded here, against those of zarr."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ShardingCodecIndexLocation
from zarr.core.array import ShardsConfigParam

from storage import layout
from storage.array import write_array
from storage.layout import layout_of
from storage.place import Place


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
