"""The direct reader, with zarr as its oracle: the same voxels, or an error that names the chunk."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from make_cohort import body_hu
from tampering import flip, overwrite, read

import storage.layout
import storage.shard
from storage.array import write_array
from storage.errors import StoreCorrupt, StoreError
from storage.layout import CHUNK, layout_of
from storage.place import LocalPlace, Place
from storage.shard import ShardedArray

PATH = "volumes/v"
SHAPE = (20, 150, 270)
ORIGIN = (11, 70, 130)
SHARD = f"{PATH}/c/0/0/0"


def write(place: Place, hu: np.ndarray, origin: Sequence[int] = ORIGIN) -> ShardedArray:
    write_array(place, PATH, hu, {"shape": hu.shape}, origin)
    return open_array(place, hu.shape)


def open_array(place: Place, shape: Sequence[int] = SHAPE) -> ShardedArray:
    return ShardedArray(place, PATH, place.read(f"{PATH}/zarr.json"), shape)


@pytest.fixture
def local(tmp_path: Path) -> LocalPlace:
    return LocalPlace(tmp_path)


@pytest.fixture
def hu() -> np.ndarray:
    return body_hu(SHAPE, 1)


class Counting:
    """A place that notes what is asked of it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.ranges: list[tuple[int, int]] = []

    def read_ranges(
        self, name: str, starts: Sequence[int], lengths: Sequence[int], scratch: Any = None
    ) -> Any:
        self.ranges += zip(starts, lengths, strict=True)
        return self.place.read_ranges(name, starts, lengths, scratch)


class TestReading:
    @settings(max_examples=30)
    @given(data=st.data())
    def test_every_box_is_what_zarr_reads(
        self, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        sizes = st.tuples(st.integers(1, 30), st.integers(1, 300), st.integers(1, 300))
        shape = data.draw(sizes)
        origin = data.draw(st.tuples(*(st.integers(-5, n + 5) for n in shape)))
        place = LocalPlace(tmp_path_factory.mktemp("shard"))
        array = write(place, body_hu(shape, 1), origin)
        padded = zarr.open_array(place.root / PATH, mode="r")[...]
        box = [data.draw(st.integers(1, n)) for n in shape]
        starts = [
            [data.draw(st.integers(0, n - b)) for n, b in zip(shape, box, strict=True)]
            for _ in range(data.draw(st.integers(1, 4)))
        ]
        outs = [np.zeros(box, np.int16) for _ in starts]
        array.cut(starts, box, outs)
        lead = np.subtract(padded.shape, shape)
        for start, out in zip(starts, outs, strict=True):
            z, y, x = (slice(a, a + n) for a, n in zip(start + lead, box, strict=True))
            np.testing.assert_array_equal(out, padded[z, y, x])

    def test_a_disk_and_an_object_store_give_the_same(self, place: Place, hu: np.ndarray) -> None:
        array = write(place, hu)
        np.testing.assert_array_equal(array.read((0, 0, 0), SHAPE), hu)
        np.testing.assert_array_equal(
            array.read((3, 120, 99), (9, 20, 140)), hu[3:12, 120:140, 99:239]
        )

    def test_a_volume_of_several_shards(
        self, local: LocalPlace, hu: np.ndarray, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(storage.layout, "_SHARD_BYTES", 4 * 2 * math.prod(CHUNK))
        array = write(local, hu)
        assert len(list((local.root / PATH / "c").rglob("*"))) > 6
        np.testing.assert_array_equal(array.read((0, 0, 0), SHAPE), hu)
        np.testing.assert_array_equal(array.read((2, 3, 4), (17, 140, 260)), hu[2:19, 3:143, 4:264])

    def test_what_does_not_fit_in_memory_at_once_is_read_in_groups(
        self, local: LocalPlace, hu: np.ndarray, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(local, hu)
        monkeypatch.setattr(storage.shard, "_DISK_BYTES", 1)
        np.testing.assert_array_equal(open_array(local).read((0, 0, 0), SHAPE), hu)

    def test_a_box_that_reaches_out_is_refused(self, local: LocalPlace, hu: np.ndarray) -> None:
        array = write(local, hu)
        for start in ((-1, 0, 0), (0, 0, SHAPE[2] - 4)):
            with pytest.raises(StoreError, match=r"\(20, 150, 270\); box \(5, 5, 5\) at .* out"):
                array.read(start, (5, 5, 5))

    def test_only_the_touched_chunks_are_fetched_neighbours_in_one_range(
        self, local: LocalPlace, hu: np.ndarray
    ) -> None:
        array = write(local, hu)
        array.read((0, 0, 0), (1, 1, 1))  # the index
        counting = Counting(local)
        array._place = counting  # type: ignore[assignment]
        array.read((0, 0, 0), (1, 1, 1))
        size = (local.root / SHARD).stat().st_size
        assert len(counting.ranges) == 1
        assert counting.ranges[0][1] < size / 4
        counting.ranges.clear()
        array.read((0, 0, 0), SHAPE)
        assert len(counting.ranges) == 1
        assert counting.ranges[0][1] > 0.9 * size

    def test_threads_that_share_an_array_read_the_same(
        self, local: LocalPlace, hu: np.ndarray
    ) -> None:
        array = write(local, hu)
        boxes = [((z, y, 40), (7, 60, 150)) for z in range(0, 12, 3) for y in range(0, 90, 10)]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda box: array.read(*box), boxes))
        for ((z, y, x), (d, h, w)), box in zip(boxes, found, strict=True):
            np.testing.assert_array_equal(box, hu[z : z + d, y : y + h, x : x + w])


class TestDamage:
    def test_every_flipped_byte_is_found(self, local: LocalPlace) -> None:
        hu = body_hu((9, 20, 20), 1)
        write(local, hu, (4, 10, 10))
        size = len(read(local, SHARD))
        for position in np.random.default_rng(0).permutation(size)[:400].tolist():
            flip(local, SHARD, position)
            with pytest.raises(StoreCorrupt, match="volumes/v"):
                open_array(local, hu.shape).read((0, 0, 0), hu.shape)
            flip(local, SHARD, position)
        np.testing.assert_array_equal(open_array(local, hu.shape).read((0, 0, 0), hu.shape), hu)

    def test_a_shard_that_ends_early_is_found(self, place: Place, hu: np.ndarray) -> None:
        write(place, hu)
        data = read(place, SHARD)
        for kept in (0, 10, len(data) // 2, len(data) - 1):
            overwrite(place, SHARD, data[:kept])
            with pytest.raises(StoreCorrupt, match=r"volumes/v/c/0/0/0: .*(truncated|damaged)"):
                open_array(place).read((0, 0, 0), SHAPE)

    @pytest.mark.parametrize(
        ("offset", "length", "message"),
        [
            (2**64 - 1, 2**64 - 1, r"chunk \(0, 0, 0\) is missing"),
            (2**40, 100, "truncated"),
            (0, 2**62, "has 4611686018427387904 bytes; expected at most"),
            (0, 3, "has 3 bytes"),
        ],
    )
    def test_an_index_that_lies_under_a_valid_checksum(
        self, local: LocalPlace, hu: np.ndarray, offset: int, length: int, message: str
    ) -> None:
        write(local, hu)
        data = bytearray(read(local, SHARD))
        size = 16 * math.prod(
            -(-(n + b) // c)
            for n, b, c in zip(SHAPE, layout_of(SHAPE, ORIGIN).lead, CHUNK, strict=True)
        )
        data[:16] = struct.pack("<QQ", offset, length)
        data[size : size + 4] = struct.pack("<I", google_crc32c.value(bytes(data[:size])))
        overwrite(local, SHARD, bytes(data))
        with pytest.raises(StoreCorrupt, match=message):
            open_array(local).read((0, 0, 0), (1, 1, 1))

    @pytest.mark.parametrize(("at", "message"), [(4, "decodes to"), (20, "damaged")])
    def test_a_chunk_that_lies_under_a_valid_checksum(
        self, local: LocalPlace, at: int, message: str
    ) -> None:
        shape = (8, 16, 16)
        write(local, body_hu(shape, 1), (4, 8, 8))
        data = bytearray(read(local, SHARD))
        offset, length = struct.unpack("<QQ", data[:16])
        data[offset + at : offset + at + 4] = b"\xff\xff\xff\x7f"
        end = offset + length - 4
        data[end : end + 4] = struct.pack("<I", google_crc32c.value(bytes(data[offset:end])))
        overwrite(local, SHARD, bytes(data))
        with pytest.raises(StoreCorrupt, match=message):
            open_array(local, shape).read((0, 0, 0), shape)


class TestMetadata:
    @pytest.mark.parametrize(
        "change",
        [
            {"data_type": "uint16"},
            {"zarr_format": 2},
            {"node_type": "group"},
            {"shape": [2**40, 150, 270]},
            {"shape": [1, 150, 270]},
            {"shape": "many"},
            {"codecs": []},
            {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}]},
            {"chunk_grid": {"name": "rectangular"}},
            {"storage_transformers": [{"name": "reverse"}]},
            {"chunk_key_encoding": {"name": "v2"}},
            {"unheard_of": {"must_understand": True}},
        ],
    )
    def test_a_layout_that_it_does_not_know_is_refused(
        self, local: LocalPlace, hu: np.ndarray, change: dict[str, Any]
    ) -> None:
        write(local, hu)
        document = json.loads(local.read(f"{PATH}/zarr.json")) | change
        with pytest.raises(StoreCorrupt, match=r"volumes/v/zarr\.json: not of a pmg store"):
            ShardedArray(local, PATH, json.dumps(document).encode(), SHAPE)

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            (("chunk_shape",), [8, 128, 2**30]),
            (("chunk_shape",), [0, 128, 128]),
            (("index_location",), "end"),
            (("index_codecs",), [{"name": "bytes", "configuration": {"endian": "little"}}]),
            (("codecs", 1, "name"), "gzip"),
            (("codecs", 1, "configuration", "typesize"), 4),
            (("codecs", 1, "configuration", "cname"), "snappy"),
            (("codecs", 0, "configuration", "endian"), "big"),
            (("codecs", 2), {"name": "adler32"}),
        ],
    )
    def test_codecs_that_it_does_not_know_are_refused(
        self, local: LocalPlace, hu: np.ndarray, path: tuple[Any, ...], value: Any
    ) -> None:
        write(local, hu)
        document = json.loads(local.read(f"{PATH}/zarr.json"))
        at = document["codecs"][0]["configuration"]
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        with pytest.raises(StoreCorrupt, match=r"volumes/v/zarr\.json: not of a pmg store"):
            ShardedArray(local, PATH, json.dumps(document).encode(), SHAPE)

    @pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
    def test_what_is_no_metadata_is_refused(self, local: LocalPlace, data: bytes) -> None:
        with pytest.raises(StoreCorrupt, match=r"zarr\.json"):
            ShardedArray(local, PATH, data, SHAPE)


class TestLayout:
    @given(
        shape=st.tuples(*[st.integers(1, 700)] * 3), origin=st.tuples(*[st.integers(-99, 799)] * 3)
    )
    def test_the_origin_of_the_frame_is_a_chunks_corner(
        self, shape: tuple[int, int, int], origin: tuple[int, int, int]
    ) -> None:
        layout = layout_of(shape, origin)
        for size, at, lead, chunk, shard, most in zip(
            shape, origin, layout.lead, layout.chunk, layout.shard, CHUNK, strict=True
        ):
            assert chunk == min(size, most)
            assert 0 <= lead < chunk
            assert (at + lead) % chunk == 0 or size <= most
            assert shard % chunk == 0
            assert shard - chunk < size + lead
        assert 2 * math.prod(layout.shard) <= 512 * 2**20
