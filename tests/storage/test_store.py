"""The store: whole volumes or none, and damage that is named instead of read as air."""

from __future__ import annotations

import json
import multiprocessing
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_cohort import body_hu, coordinate_store, lps, write_volume

import storage.array
from storage.body import FrameOrigin
from storage.catalogue import Catalogue, Row, body_cells, read_catalogue, write_catalogue
from storage.errors import GeometryError, IngestError, StoreCorrupt, StoreError
from storage.place import Place
from storage.store import Store, Writer
from storage.volume import Volume

SHAPE = (40, 70, 90)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two volumes of noise, larger than one chunk along every axis."""
    store = Store.create(tmp_path / "store", None)
    for number in (1, 2):
        hu = body_hu(SHAPE, number)
        write_volume(
            store, f"v{number}", domain=number, patient=f"p{number}", hu=hu, origin=(20, 35, 45)
        )
    return Store.open(store.place.root)


def shard(store: Store, volume_id: str) -> Path:
    folder = store.place.root / store.row(volume_id).array_path / "c"
    (path,) = (file for file in folder.rglob("*") if file.is_file())
    return path


def stage(writer: Writer, hu: np.ndarray, volume_id: str = "new", **changes: object) -> Row:
    body = np.ones(hu.shape, bool)
    body[...] = changes.pop("body", True)
    labels: dict[str, object] = {
        "volume_id": volume_id,
        "patient": "p",
        "domain": 1,
        "phase": "arterial",
        "source_digest": "00",
        "ingest_version": 1,
        "provenance": {},
    }
    volume = Volume(hu, lps((2.0, 1.0, 1.0)))
    origin = FrameOrigin((1, 1, 1), "middle of the body")
    return writer.stage(volume, body, origin, **(labels | changes))  # type: ignore[arg-type]


class TestReading:
    def test_a_volume_comes_back_as_it_went_in(self, store: Store) -> None:
        volume = store.read("v1")
        np.testing.assert_array_equal(volume.hu, body_hu(SHAPE, 1))
        np.testing.assert_array_equal(volume.affine, lps((2.0, 1.0, 1.0)))
        assert volume.hu.dtype == np.int16

    def test_plain_zarr_reads_it_too_with_its_geometry(self, store: Store) -> None:
        row = store.row("v2")
        array = zarr.open_group(store.place.root, mode="r")[row.array_path]
        np.testing.assert_array_equal(array[...], body_hu(SHAPE, 2))
        assert array.chunks == (32, 64, 64)
        assert array.shards == (64, 128, 128)
        assert array.attrs["affine"] == list(row.affine)
        assert array.attrs["provenance"] == {"steps": ["made up"]}
        codecs = json.loads((store.place.root / row.array_path / "zarr.json").read_text())["codecs"]
        inner = [codec["name"] for codec in codecs[0]["configuration"]["codecs"]]
        assert inner == ["bytes", "blosc", "crc32c"]

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
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
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(storage.array, "_SHARD_BYTES", 2 * 32 * 64 * 64 * 2)
        store = Store.create(tmp_path / "s", None)
        hu = body_hu(SHAPE, 3)
        row = write_volume(store, "v", domain=1, patient="p", hu=hu, origin=(1, 1, 1))
        shards = [f for f in (store.place.root / row.array_path / "c").rglob("*") if f.is_file()]
        assert len(shards) == 4
        np.testing.assert_array_equal(Store.open(store.place.root).read("v").hu, hu)
        shards[1].unlink()
        with pytest.raises(StoreCorrupt, match=r"v.*missing"):
            Store.open(store.place.root).read("v")


class TestDamage:
    def assert_named(self, store: Store, box_too: bool = True) -> None:
        store = Store.open(store.place.root)
        with pytest.raises(StoreCorrupt, match=r"volume v1: .*volumes/v1-.*ingest it again"):
            store.read("v1")
        if box_too:
            with pytest.raises(StoreCorrupt, match=r"volume v1: .*volumes/v1-"):
                store.read_box("v1", (0, 0, 0), SHAPE)
        (problem,) = store.verify()
        assert "volume v1" in problem
        store.read("v2")

    def test_an_undamaged_store_verifies(self, store: Store) -> None:
        assert store.verify() == []

    @pytest.mark.parametrize("where", [0.0, 0.3, 0.7, 0.999])
    def test_a_flipped_bit_of_a_shard_is_found(self, store: Store, where: float) -> None:
        path = shard(store, "v1")
        data = bytearray(path.read_bytes())
        data[int(where * len(data))] ^= 4
        path.write_bytes(data)
        self.assert_named(store)

    @pytest.mark.parametrize("kept", [0.0, 0.4, 0.99])
    def test_a_truncated_shard_is_found(self, store: Store, kept: float) -> None:
        path = shard(store, "v1")
        path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
        self.assert_named(store)

    def test_a_deleted_shard_is_not_air(self, store: Store) -> None:
        shard(store, "v1").unlink()
        self.assert_named(store)

    def test_a_deleted_array_is_found(self, store: Store) -> None:
        shutil.rmtree(store.place.root / store.row("v1").array_path)
        self.assert_named(store)

    def test_another_volumes_shard_has_another_digest(self, store: Store) -> None:
        shutil.copy(shard(store, "v2"), shard(store, "v1"))
        self.assert_named(store, box_too=False)

    @pytest.mark.parametrize(
        ("old", "new"), [("40", "1099511627776"), ('"int16"', '"float64"'), ("{", "")]
    )
    def test_an_altered_zarr_json_is_found_before_memory_is_taken(
        self, store: Store, old: str, new: str
    ) -> None:
        path = store.place.root / store.row("v1").array_path / "zarr.json"
        path.write_text(path.read_text().replace(old, new, 1))
        self.assert_named(store)

    def test_altered_attributes_are_found_by_verify(self, store: Store) -> None:
        path = store.place.root / store.row("v1").array_path / "zarr.json"
        path.write_text(path.read_text().replace('"arterial"', '"venous"'))
        (problem,) = Store.open(store.place.root).verify()
        assert "volume v1" in problem
        assert "another SHA-256" in problem

    def test_a_link_out_of_the_store_is_not_followed(self, store: Store, tmp_path: Path) -> None:
        folder = store.place.root / store.row("v1").array_path
        shutil.move(folder, tmp_path / "outside")
        folder.symlink_to(tmp_path / "outside")
        with pytest.raises(StoreCorrupt, match=r"volume v1: .*out of the store"):
            Store.open(store.place.root).read("v1")

    def test_every_flipped_byte_of_the_catalogue_is_found(self, store: Store) -> None:
        path = store.place.root / "catalogue.parquet"
        data = path.read_bytes()
        for position in np.random.default_rng(3).choice(len(data), 300, replace=False):
            damaged = bytearray(data)
            damaged[position] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(StoreCorrupt, match=r"catalogue\.parquet"):
                Store.open(store.place.root)

    @pytest.mark.parametrize("kept", [0, 4, 0.5, 0.999])
    def test_a_truncated_catalogue_is_found(self, store: Store, kept: float) -> None:
        path = store.place.root / "catalogue.parquet"
        data = path.read_bytes()
        path.write_bytes(data[: int(kept if kept >= 1 else kept * len(data))])
        with pytest.raises(StoreCorrupt, match=r"catalogue\.parquet: (truncated|altered)"):
            Store.open(store.place.root)

    def test_a_missing_catalogue_is_found(self, store: Store) -> None:
        (store.place.root / "catalogue.parquet").unlink()
        with pytest.raises(StoreCorrupt, match="catalogue is missing"):
            Store.open(store.place.root)


class TestWriting:
    def test_a_staged_volume_does_not_exist_and_is_swept_away(self, store: Store) -> None:
        with store.writer() as writer:
            row = stage(writer, body_hu(SHAPE, 5))
        assert (store.place.root / row.array_path).exists()
        assert [row.volume_id for row in Store.open(store.place.root).rows] == ["v1", "v2"]
        with store.writer():
            assert not (store.place.root / row.array_path).exists()
        assert store.verify() == []

    def test_a_volume_written_again_replaces_the_old_one(self, store: Store) -> None:
        with store.writer() as writer:
            writer.commit([stage(writer, body_hu(SHAPE, 6), "v1")], removed=["v2"])
            writer.sweep()
        opened = Store.open(store.place.root)
        assert [row.volume_id for row in opened.rows] == ["v1"]
        np.testing.assert_array_equal(opened.read("v1").hu, body_hu(SHAPE, 6))
        assert sum(entry.is_dir() for entry in (store.place.root / "volumes").iterdir()) == 1

    def test_a_second_writer_is_refused_until_the_first_has_ended(self, store: Store) -> None:
        queue = multiprocessing.get_context("spawn").Queue()
        with store.writer():
            process = multiprocessing.get_context("spawn").Process(
                target=_try_to_write, args=(store.place.root, queue)
            )
            process.start()
            refusal = queue.get(timeout=60)
            process.join()
            with pytest.raises(StoreError, match="is writing to this store"), store.writer():
                pass
        assert "is writing to this store" in refusal
        with store.writer():
            pass

    def test_a_full_disk_leaves_the_store_as_it_was(self, store: Store) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        with store.writer() as writer:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
            try:
                with pytest.raises(StoreError, match=r"volumes/new-.*not written"):
                    stage(writer, body_hu(SHAPE, 5))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert len([e for e in (store.place.root / "volumes").iterdir() if e.is_dir()]) == 2
        assert Store.open(store.place.root).verify() == []

    def test_float_hu_are_rounded_and_the_mark_of_missing_chunks_is_kept_free(
        self, store: Store
    ) -> None:
        hu = np.full((4, 4, 4), 40.0, np.float32)
        hu[0, 0, :4] = [0.5, 1.5, -1.6, -32768]
        with store.writer() as writer:
            writer.commit([stage(writer, hu)])
        stored = Store.open(store.place.root).read("new").hu
        assert stored[0, 0].tolist() == [0, 2, -2, -32767]

    @pytest.mark.parametrize("value", [np.nan, np.inf, 32768, -32769])
    def test_hu_beyond_int16_are_refused(self, store: Store, value: float) -> None:
        hu = np.full((4, 4, 4), 40.0, np.float32)
        hu[1, 2, 3] = value
        with store.writer() as writer, pytest.raises(IngestError, match="finite numbers"):
            stage(writer, hu)

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

    def test_create_refuses_a_folder_with_other_things(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("x")
        with pytest.raises(StoreError, match=r"thesis\.tex"):
            Store.create(tmp_path, None)

    def test_create_completes_what_a_killed_creation_left(self, tmp_path: Path) -> None:
        store = Store.create(tmp_path / "s", None)
        (store.place.root / "zarr.json").unlink()
        with pytest.raises(StoreError, match="no store here"):
            Store.open(store.place.root)
        assert len(Store.open_or_create(store.place.root, None).rows) == 0

    def test_a_store_keeps_its_grid(self, tmp_path: Path) -> None:
        Store.create(tmp_path / "s", (3.0, 2.0, 2.0))
        assert Store.open_or_create(tmp_path / "s", None).spacing_mm == (3.0, 2.0, 2.0)
        with pytest.raises(StoreError, match="choose a new path"):
            Store.open_or_create(tmp_path / "s", (3.0, 1.0, 1.0))

    def test_a_store_of_another_version_is_refused(self, store: Store) -> None:
        path = store.place.root / "zarr.json"
        path.write_text(path.read_text().replace('"version": 2', '"version": 3'))
        with pytest.raises(StoreError, match="version 3; this program reads 2"):
            Store.open(store.place.root)


class TestCatalogue:
    def test_rows_survive_parquet_one_by_one_and_as_columns(
        self, store: Store, tmp_path: Path
    ) -> None:
        rows = list(store.rows)
        write_catalogue(Place.of(tmp_path), Catalogue.of(rows))
        catalogue, _ = read_catalogue(Place.of(tmp_path))
        assert list(catalogue) == rows
        assert catalogue[-1] == rows[1]
        assert list(catalogue[1:]) == rows[1:]
        assert catalogue.column("shape").tolist() == [list(row.shape) for row in rows]
        assert catalogue.column("volume_id").tolist() == ["v1", "v2"]
        offsets, data = catalogue[1:].bitmaps()
        assert data[offsets[0] : offsets[1]].tobytes() == rows[1].body_cells

    def test_an_empty_catalogue_is_one(self, tmp_path: Path) -> None:
        write_catalogue(Place.of(tmp_path), Catalogue.of([]))
        catalogue, _ = read_catalogue(Place.of(tmp_path))
        assert len(catalogue) == 0
        assert catalogue.column("shape").shape == (0, 3)

    def test_the_row_holds_what_the_volume_shows(self, tmp_path: Path) -> None:
        hu = body_hu((20, 30, 40), 1)
        body = np.zeros(hu.shape, bool)
        body[3:17, 5:21, 7:33] = True
        store = Store.create(tmp_path / "s", None)
        row = write_volume(store, "v", domain=2, patient="p", hu=hu, origin=(9, 15, 20), body=body)
        assert (row.hu_min, row.hu_max) == (hu.min(), hu.max())
        assert row.body_box == (3, 5, 7, 17, 21, 33)
        assert row.frame_origin == (9, 15, 20)
        assert row.spacing_mm == (2.0, 1.0, 1.0)

    @settings(max_examples=40, deadline=None)
    @given(
        shape=st.tuples(st.integers(1, 40), st.integers(1, 70), st.integers(1, 70)),
        spacing=st.tuples(*[st.floats(0.4, 6)] * 3),
        seed=st.integers(0, 99),
    )
    def test_a_cell_is_marked_when_half_of_its_voxels_are_body(
        self, shape: tuple[int, int, int], spacing: tuple[float, float, float], seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        mask = rng.random(shape) < rng.random()
        cell, grid, bits = body_cells(mask, spacing)
        assert np.prod(grid) <= 4096
        marked = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")
        assert len(bits) == -(-int(np.prod(grid)) // 8)
        for index in rng.integers(0, np.prod(grid), 20):
            corner = np.array(np.unravel_index(index, grid)) * cell
            z, y, x = (slice(a, a + n) for a, n in zip(corner, cell, strict=True))
            assert marked[index] == (mask[z, y, x].mean() >= 0.5)

    def test_cells_of_a_trunk_are_about_three_centimetres_in_every_direction(self) -> None:
        cell, _, _ = body_cells(np.ones((150, 256, 256), bool), (4.0, 1.6, 1.6))
        sides = np.array(cell) * (4.0, 1.6, 1.6)
        assert sides.min() > 25
        assert sides.max() < 35


def _try_to_write(path: Path, queue: multiprocessing.Queue[str]) -> None:
    try:
        with Store.open(path).writer():
            queue.put("wrote")
    except StoreError as error:
        queue.put(str(error))
