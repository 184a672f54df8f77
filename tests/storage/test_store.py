"""The store on a disk and on an object store: what goes in comes out, whole volumes or none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_cohort import SHAPE, body_hu, coordinate_store, lps, stage, two_volumes, write_volume
from tampering import delete, files, overwrite, read

import storage.layout
from storage.body import FrameOrigin
from storage.catalogue_file import write_catalogue
from storage.errors import GeometryError, IngestError, StoreCorrupt, StoreError
from storage.place import Place
from storage.store import Store, stage_volume
from storage.volume import Volume


@pytest.fixture
def store(place: Place) -> Store:
    return two_volumes(place)


class TestReading:
    def test_a_volume_comes_back_as_it_went_in(self, store: Store) -> None:
        volume = store.read("v1")
        np.testing.assert_array_equal(volume.hu, body_hu(SHAPE, 1))
        np.testing.assert_array_equal(volume.affine, lps((2.0, 1.0, 1.0)))
        assert volume.hu.dtype == np.int16

    def test_plain_zarr_reads_it_too_with_its_geometry(self, store: Store) -> None:
        row = store.row("v2")
        array = zarr.open_group(store.place.zarr_store, mode="r")[row.array_path]
        volume = tuple(slice(-n, None) for n in array.attrs["shape"])
        np.testing.assert_array_equal(array[volume], body_hu(SHAPE, 2))
        assert array.chunks == (8, 70, 90)
        assert array.shards == (48, 70, 90)
        assert array.attrs["affine"] == list(row.affine)
        assert array.attrs["provenance"] == {"steps": ["made up"]}
        codecs = json.loads(read(store.place, f"{row.array_path}/zarr.json"))["codecs"]
        inner = [codec["name"] for codec in codecs[0]["configuration"]["codecs"]]
        assert inner == ["bytes", "blosc", "crc32c"]

    @settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
    @given(data=st.data())
    def test_a_box_is_the_slice_of_the_volume(
        self, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "boxes"
        store = Store.open(path) if path.exists() else coordinate_store(path)
        row = data.draw(st.sampled_from(list(store.rows)))
        shape = [data.draw(st.integers(1, n)) for n in row.shape]
        start = [data.draw(st.integers(0, n - s)) for n, s in zip(row.shape, shape, strict=True)]
        z, y, x = (slice(a, a + n) for a, n in zip(start, shape, strict=True))
        np.testing.assert_array_equal(
            store.read_box(row.volume_id, start, shape), store.read(row.volume_id).hu[z, y, x]
        )

    @pytest.mark.parametrize("start", [(-1, 0, 0), (0, 0, 85)])
    def test_a_box_that_reaches_out_is_refused(self, store: Store, start: list[int]) -> None:
        with pytest.raises(StoreError, match="reaches out"):
            store.read_box("v1", start, (8, 8, 8))

    def test_an_unknown_volume_is_named(self, store: Store) -> None:
        with pytest.raises(StoreError, match="no volume 'v9' among its 2"):
            store.read("v9")

    def test_a_large_volume_is_cut_into_shards(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(storage.layout, "_SHARD_BYTES", 2 * 8 * 70 * 90 * 2)
        store = Store.create(place, None)
        hu = body_hu(SHAPE, 3)
        row = write_volume(store, "v", domain=1, patient="p", hu=hu, origin=(1, 1, 1))
        shards = files(place, f"{row.array_path}/c")
        assert len(shards) == 3
        np.testing.assert_array_equal(Store.open(place).read("v").hu, hu)
        delete(place, shards[1])
        with pytest.raises(StoreCorrupt, match=r"v.*missing"):
            Store.open(place.address).read("v")


class TestWriting:
    def test_a_staged_volume_does_not_exist_and_is_swept_away(self, store: Store) -> None:
        with store.writer() as writer:
            row = stage(writer, body_hu(SHAPE, 5))
        assert files(store.place, row.array_path)
        assert [row.volume_id for row in Store.open(store.place).rows] == ["v1", "v2"]
        with store.writer():
            assert not files(store.place, row.array_path)
        assert store.verify() == []

    def test_a_volume_written_again_replaces_the_old_one(self, store: Store) -> None:
        with store.writer() as writer:
            writer.commit([stage(writer, body_hu(SHAPE, 6), "v1")], removed=["v2"])
            writer.sweep()
        opened = Store.open(store.place)
        assert [row.volume_id for row in opened.rows] == ["v1"]
        np.testing.assert_array_equal(opened.read("v1").hu, body_hu(SHAPE, 6))
        assert sum(name.endswith("/") for name in store.place.list("volumes")) == 1

    def test_float_hu_are_rounded_and_the_mark_of_missing_chunks_is_kept_free(
        self, store: Store
    ) -> None:
        hu = np.full((4, 4, 4), 40.0, np.float32)
        hu[0, 0, :4] = [0.5, 1.5, -1.6, -32768]
        with store.writer() as writer:
            writer.commit([stage(writer, hu)])
        stored = Store.open(store.place).read("new").hu
        assert stored[0, 0].tolist() == [0, 2, -2, -32767]

    @pytest.mark.parametrize("value", [np.nan, np.inf, 32768, -32769])
    def test_hu_beyond_int16_are_refused(self, store: Store, value: float) -> None:
        hu = np.full((4, 4, 4), 40.0, np.float32)
        hu[1, 2, 3] = value
        with store.writer() as writer, pytest.raises(IngestError, match="finite numbers"):
            stage(writer, hu)

    def test_chunks_begin_at_the_frames_origin_where_volumes_share_a_grid(
        self, tmp_path: Path
    ) -> None:
        hu = np.full((20, 140, 150), 40, np.int16)
        origin = FrameOrigin((3, 70, 75), "middle of the body")
        leads = {}
        for spacing_mm in (None, (2.0, 1.0, 1.0)):
            store = Store.create(tmp_path / f"{spacing_mm}", spacing_mm)
            with store.writer() as writer:
                row = stage(writer, hu, origin=origin)
            array = zarr.open_group(store.place.zarr_store, mode="r")[row.array_path]
            leads[spacing_mm] = tuple(np.subtract(array.shape, hu.shape).tolist())
        assert leads == {None: (0, 0, 0), (2.0, 1.0, 1.0): (5, 58, 53)}

    def test_what_is_no_volume_of_this_store_is_refused(self, tmp_path: Path) -> None:
        hu = body_hu((8, 8, 8), 0)
        store = Store.create(tmp_path / "store", (2.0, 1.5, 1.5))
        with (
            store.writer() as writer,
            pytest.raises(GeometryError, match=r"\(2\.0, 1\.0, 1\.0\) mm.*\(2\.0, 1\.5"),
        ):
            stage(writer, hu)
        with Store.create(tmp_path / "free", None).writer() as writer:
            with pytest.raises(StoreError, match="domain 3"):
                stage(writer, hu, domain=3)
            with pytest.raises(StoreError, match=r"\.\./x"):
                stage(writer, hu, volume_id="../x")
            with pytest.raises(IngestError, match="expected a patient"):
                stage(writer, hu, body=False)

    def test_a_store_is_tied_to_its_key(self, store: Store) -> None:
        with store.writer() as writer:
            writer.bind_key("key-a")
        with store.writer() as writer:
            writer.bind_key("key-a")
            with pytest.raises(StoreError, match="not the one"):
                writer.bind_key("key-b")

    def test_create_refuses_a_place_with_other_things(self, place: Place) -> None:
        place.replace("thesis.tex", b"x")
        with pytest.raises(StoreError, match=r"thesis\.tex"):
            Store.create(place, None)

    def test_create_completes_what_a_killed_creation_left(self, place: Place) -> None:
        Store.create(place, None)
        delete(place, "zarr.json")
        with pytest.raises(StoreError, match="no store here"):
            Store.open(place)
        assert len(Store.open_or_create(place, None).rows) == 0

    def test_a_store_keeps_its_grid(self, place: Place) -> None:
        Store.create(place, (3.0, 2.0, 2.0))
        assert Store.open_or_create(place, None).spacing_mm == (3.0, 2.0, 2.0)
        with pytest.raises(StoreError, match="choose a new path"):
            Store.open_or_create(place, (3.0, 1.0, 1.0))

    def test_a_store_of_another_version_is_refused(self, store: Store) -> None:
        text = read(store.place, "zarr.json").replace(b'"version": 3', b'"version": 4')
        overwrite(store.place, "zarr.json", text)
        with pytest.raises(StoreError, match="version 4; this program reads 3"):
            Store.open(store.place)

    def test_a_volume_staged_without_the_lock_can_be_committed(self, store: Store) -> None:
        volume = Volume(body_hu(SHAPE, 9), lps((2.0, 1.0, 1.0)))
        with store.writer() as writer:
            row = stage_volume(
                Place.of(store.place.address),
                writer.spacing_mm,
                volume,
                np.ones(SHAPE, bool),
                FrameOrigin((1, 1, 1), "middle of the body"),
                volume_id="elsewhere",
                patient="p",
                domain=1,
                phase="x",
                source_digest="0",
                source_stat="1",
                ingest_version=1,
                provenance={},
            )
            writer.commit([row])
        opened = Store.open(store.place)
        assert opened.row("elsewhere") == row
        assert row.source_stat == "1"
        np.testing.assert_array_equal(opened.read("elsewhere").hu, volume.hu)

    def test_a_writer_whose_catalogue_was_replaced_changes_nothing(self, store: Store) -> None:
        with store.writer() as late:
            row = stage(late, body_hu(SHAPE, 5))
            # As by a writer that took over the lock while this one slept.
            write_catalogue(store.place, store.rows)
            with pytest.raises(StoreError, match="another process has replaced it"):
                late.commit([row])
            with pytest.raises(StoreError, match="another process has replaced it"):
                late.sweep()
        assert files(store.place, row.array_path)
        assert [row.volume_id for row in Store.open(store.place).rows] == ["v1", "v2"]

    def test_stored_bytes_are_those_of_the_files(self, store: Store) -> None:
        for row in store.rows:
            names = files(store.place, row.array_path)
            assert row.stored_bytes == sum(store.place.size(name) for name in names)
