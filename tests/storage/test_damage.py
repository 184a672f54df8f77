"""Damage, by accident or on purpose: named when it is read, and never air or zeros."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_cohort import SHAPE, body_hu, two_volumes
from tampering import delete, files, flip, overwrite, read

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
            "spacing": text.replace("null", "[1.0, 1.0, 1.0]"),
            "version": text.replace('"version": 2', '"version": "2"'),
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
    @settings(
        max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
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

    @settings(
        max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
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
