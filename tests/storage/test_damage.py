"""Damage, by accident or on purpose: named when it is read, and never air or zeros."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_cohort import SHAPE, body_hu, two_volumes
from numcodecs import blosc
from tampering import delete, files, flip, overwrite, read

from storage.catalogue_file import write_catalogue
from storage.errors import StoreCorrupt, StoreError
from storage.place import LocalPlace, Place
from storage.store import Store

V1 = r"volume v1: .*/volumes/v1-.*ingest it again"


@pytest.fixture
def store(place: Place) -> Store:
    return two_volumes(place)


def shard(store: Store, volume_id: str = "v1") -> str:
    (name,) = files(store.place, f"{store.row(volume_id).array_path}/c")
    return name


def metadata(store: Store) -> str:
    return f"{store.row('v1').array_path}/zarr.json"


def assert_named(store: Store, *, box_too: bool = True) -> None:
    store = Store.open(store.place.address)
    with pytest.raises(StoreCorrupt, match=V1):
        store.read("v1")
    if box_too:
        with pytest.raises(StoreCorrupt, match=V1):
            store.read_box("v1", (0, 0, 0), SHAPE)
    (problem,) = store.verify(threads=2)
    assert "volume v1: " in problem
    np.testing.assert_array_equal(store.read("v2").hu, body_hu(SHAPE, 2))


class TestAccidents:
    def test_an_undamaged_store_verifies(self, store: Store) -> None:
        told: list[tuple[int, int]] = []
        assert store.verify(2, lambda done, total: told.append((done, total))) == []
        assert told == [(1, 2), (2, 2)]

    @pytest.mark.parametrize("where", [0.0, 0.3, 0.7, 0.999])
    def test_a_flipped_bit_of_a_shard(self, store: Store, where: float) -> None:
        name = shard(store)
        flip(store.place, name, int(where * store.place.size(name)))
        assert_named(store)

    @pytest.mark.parametrize("kept", [0.0, 0.4, 0.99])
    def test_a_truncated_shard(self, store: Store, kept: float) -> None:
        data = read(store.place, shard(store))
        overwrite(store.place, shard(store), data[: int(kept * len(data))])
        assert_named(store)

    def test_a_deleted_shard(self, store: Store) -> None:
        delete(store.place, shard(store))
        assert_named(store)

    def test_a_shard_of_zeros(self, store: Store) -> None:
        overwrite(store.place, shard(store), bytes(store.place.size(shard(store))))
        assert_named(store)

    def test_a_deleted_array(self, store: Store) -> None:
        store.place.remove_tree(store.row("v1").array_path)
        assert_named(store)

    def test_another_volumes_shard(self, store: Store) -> None:
        overwrite(store.place, shard(store), read(store.place, shard(store, "v2")))
        assert_named(store, box_too=False)  # all its checksums are right

    @pytest.mark.parametrize("change", ["deleted", "empty", "truncated", "shape", "type", "label"])
    def test_an_altered_zarr_json(self, store: Store, change: str) -> None:
        name, text = metadata(store), read(store.place, metadata(store)).decode()
        if change == "deleted":
            delete(store.place, name)
        else:
            altered = {
                "empty": "",
                "truncated": text[: len(text) // 2],
                "shape": text.replace("40", str(2**40), 1),
                "type": text.replace('"int16"', '"float64"'),
                "label": text.replace('"arterial"', '"venous"'),
            }[change]
            assert altered != text
            overwrite(store.place, name, altered.encode())
        assert_named(store)

    @pytest.mark.parametrize("change", ["truncated", "spacing", "version", "key"])
    def test_an_altered_root(self, store: Store, change: str) -> None:
        with store.writer() as writer:
            writer.bind_key("aaaa")
        text = read(store.place, "zarr.json").decode()
        altered = {
            "truncated": text[:50],
            "spacing": text.replace("2.0", "2.5"),
            "version": text.replace('"version": 3', '"version": "3"'),
            "key": text.replace("aaaa", "aaab"),
        }[change]
        assert altered != text
        overwrite(store.place, "zarr.json", altered.encode())
        with pytest.raises(StoreError, match=r"place.*(zarr\.json: |version)"):
            Store.open(store.place)
        with pytest.raises(StoreError, match=r"place.*(zarr\.json: |version)"), store.writer():
            pass


@pytest.fixture(scope="module", params=["local", "s3"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store that every example leaves as it found it."""
    if request.param == "local":
        return two_volumes(Place.of(tmp_path_factory.mktemp("whole") / "place"))
    return two_volumes(Place.of(f"{request.getfixturevalue('s3_bucket')}/whole-place"))


class TestAnyByte:
    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_any_flipped_byte_of_any_file_is_found_and_its_file_is_named(
        self, whole: Store, data: st.DataObject
    ) -> None:
        name = data.draw(st.sampled_from(files(whole.place)))
        before = read(whole.place, name)
        position = data.draw(st.integers(0, len(before) - 1))
        flip(whole.place, name, position, data.draw(st.integers(1, 255)))
        try:
            said = complaint(whole.place, name)
            assert name in said or name.rpartition("/c/")[0] in said
        finally:
            overwrite(whole.place, name, before)
        assert Store.open(whole.place).verify() == []

    @settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_any_truncated_file_is_found(self, whole: Store, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(files(whole.place)))
        before = read(whole.place, name)
        overwrite(whole.place, name, before[: data.draw(st.integers(0, len(before) - 1))])
        try:
            said = complaint(whole.place, name)
            assert name in said or name.rpartition("/c/")[0] in said
        finally:
            overwrite(whole.place, name, before)


def complaint(place: Place, name: str) -> str:
    """What is said of a damaged file when the store is opened, or else verified.

    The volumes that it has no part in are as they were.
    """
    try:
        store = Store.open(place)
    except StoreError as error:
        return str(error)
    for volume_id in ("v1", "v2"):
        if name.startswith(f"volumes/{volume_id}-"):
            with pytest.raises(StoreCorrupt, match=f"volume {volume_id}: "):
                store.read(volume_id)
        else:
            np.testing.assert_array_equal(
                store.read(volume_id).hu, body_hu(SHAPE, int(volume_id[1]))
            )
    (problem,) = store.verify()
    return problem


class TestOnPurpose:
    def test_a_link_out_of_the_store_is_not_followed(self, tmp_path: Path) -> None:
        store = two_volumes(Place.of(tmp_path / "place"))
        assert isinstance(store.place, LocalPlace)
        folder = store.place.root / store.row("v1").array_path
        shutil.move(folder, tmp_path / "outside")
        folder.symlink_to(tmp_path / "outside")
        with pytest.raises(StoreCorrupt, match=r"volume v1: .*out of the store"):
            Store.open(store.place).read("v1")

    def test_a_link_in_a_shards_place_is_not_followed(self, tmp_path: Path) -> None:
        store = two_volumes(Place.of(tmp_path / "place"))
        assert isinstance(store.place, LocalPlace)
        path = store.place.root / shard(store)
        os.rename(path, tmp_path / "shard")
        path.symlink_to(tmp_path / "shard")
        with pytest.raises(StoreCorrupt, match=r"volume v1: .*out of the store"):
            Store.open(tmp_path / "place").read("v1")

    @pytest.mark.parametrize("bomb", ["chunk", "deep zarr.json", "long zarr.json", "vast shape"])
    def test_what_would_take_much_memory_is_refused_before_it_gets_it(
        self, tmp_path: Path, bomb: str
    ) -> None:
        """All digests are right: by somebody who knows how a store is made."""
        store, first = two_volumes(Place.of(tmp_path / "place")), 0
        if bomb == "chunk":
            forge_chunk(store, blosc.compress(bytes(400_000_000), b"zstd", 9, blosc.BITSHUFFLE))
        elif bomb == "deep zarr.json":
            forge_metadata(store, b"[" * 10_000_000)
        elif bomb == "long zarr.json":
            forge_metadata(store, b" " * 200_000_000)
        else:
            shape, first = (2**13, 2**10, 2**10), 2**12
            document = json.loads(read(store.place, metadata(store)))
            document["shape"] = shape
            fields = {"shape": shape, "cell_shape": (512, 64, 64)}
            forge_metadata(store, json.dumps(document).encode(), **fields)
        code = (
            "import resource, sys\n"
            "from storage.errors import StoreCorrupt\n"
            "from storage.store import Store\n"
            "store = Store.open(sys.argv[1])\n"
            "store.read('v2')\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "first = int(sys.argv[2])\n"
            "for read in (store.read, lambda v: store.read_box(v, (first, 0, 0), (8, 8, 8))):\n"
            "    try:\n"
            "        read('v1')\n"
            "    except StoreCorrupt as error:\n"
            "        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "place"), str(first)],
            capture_output=True,
            text=True,
            check=True,
        )
        whole_and_box = done.stdout.splitlines()
        assert len(whole_and_box) == 2
        for line in whole_and_box:
            taken_kib, _, message = line.partition(" ")
            assert "volume v1: " in message
            assert int(taken_kib) < 50_000


def forge_chunk(store: Store, chunk: bytes) -> None:
    """Put other bytes in the place of v1's first chunk; its checksum and its shard's are right."""
    data = bytearray(read(store.place, shard(store)))
    chunk += google_crc32c.value(chunk).to_bytes(4, "little")
    chunks = _chunks(store)
    data[:16] = struct.pack("<QQ", len(data), len(chunk))
    index = bytes(data[: 16 * chunks])
    data[len(index) : len(index) + 4] = google_crc32c.value(index).to_bytes(4, "little")
    overwrite(store.place, shard(store), bytes(data) + chunk)


def _chunks(store: Store) -> int:
    """How many chunks the index of v1's shard has."""
    sharding = json.loads(read(store.place, metadata(store)))
    inner = sharding["codecs"][0]["configuration"]["chunk_shape"]
    outer = sharding["chunk_grid"]["configuration"]["chunk_shape"]
    return math.prod(n // m for n, m in zip(outer, inner, strict=True))


def forge_metadata(store: Store, data: bytes, **fields: Any) -> None:
    """Replace v1's zarr.json, and its digest in the catalogue."""
    overwrite(store.place, metadata(store), data)
    row = replace(store.row("v1"), metadata_digest=hashlib.sha256(data).hexdigest(), **fields)
    grid = [-(-n // cell) for n, cell in zip(row.shape, row.cell_shape, strict=True)]
    bits = bytes(-(-math.prod(grid) // 8))
    row = replace(row, cells_grid=(grid[0], grid[1], grid[2]), body_cells=bits)
    write_catalogue(store.place, store.rows.changed([row]))
