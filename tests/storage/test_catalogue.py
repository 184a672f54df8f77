"""The catalogue: rows as columns, and a file that is refused unless every byte is as written."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_cohort import body_hu, two_volumes, write_volume
from tampering import delete, flip, overwrite, read

from storage.catalogue import HU_EDGES, SCHEMA, Catalogue, Row, body_cells, hu_histogram, mask_cells
from storage.catalogue_file import CATALOGUE, read_catalogue, write_catalogue
from storage.errors import StoreCorrupt, StoreError
from storage.place import Place
from storage.store import Store


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return list(two_volumes(Place.of(tmp_path_factory.mktemp("rows"))).rows)


class TestRows:
    def test_they_survive_parquet_one_by_one_and_as_columns(
        self, rows: list[Row], tmp_path: Path
    ) -> None:
        write_catalogue(Place.of(tmp_path), Catalogue.of(rows))
        catalogue, _ = read_catalogue(Place.of(tmp_path))
        assert catalogue.column("shape").tolist() == [list(row.shape) for row in rows]
        assert catalogue.column("volume_id").tolist() == ["v1", "v2"]
        assert catalogue.column("phase").tolist() == ["arterial", "arterial"]
        assert catalogue.get(1, "digest", "shape") == (rows[1].digest, list(rows[1].shape))
        offsets, data = catalogue[1:].bitmaps()
        assert data[offsets[0] : offsets[1]].tobytes() == rows[1].body_cells
        assert catalogue[1:].column("hu_histogram").tolist() == [list(rows[1].hu_histogram)]
        assert list(catalogue) == rows
        assert catalogue[-1] == rows[1]
        assert list(catalogue[1:]) == rows[1:]

    def test_an_empty_catalogue_is_one(self, tmp_path: Path) -> None:
        write_catalogue(Place.of(tmp_path), Catalogue.of([]))
        catalogue, _ = read_catalogue(Place.of(tmp_path))
        assert len(catalogue) == 0
        assert catalogue.column("shape").shape == (0, 3)
        assert catalogue.bitmaps()[0].tolist() == [0]

    @settings(max_examples=50)
    @given(steps=st.lists(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=4)))
    def test_changes_are_those_of_a_dictionary(
        self, rows: list[Row], steps: list[list[tuple[int, bool]]]
    ) -> None:
        catalogue, model = Catalogue.of([]), dict[str, Row]()
        for number, step in enumerate(steps):
            added = {f"v{n}": number for n, is_added in step if is_added}
            removed = [f"v{n}" for n, is_added in step if not is_added]
            new = [
                replace(rows[0], volume_id=name, phase=f"phase {at}") for name, at in added.items()
            ]
            catalogue = catalogue.changed(new, removed)
            model = {name: row for name, row in model.items() if name not in removed}
            model |= {row.volume_id: row for row in new}
        assert list(catalogue) == [model[name] for name in sorted(model)]

    def test_the_digest_depends_on_what_decides_the_patches_and_on_nothing_else(
        self, rows: list[Row], tmp_path: Path
    ) -> None:
        catalogue = Catalogue.of(rows)
        write_catalogue(Place.of(tmp_path), catalogue)
        assert read_catalogue(Place.of(tmp_path))[0].digest == catalogue.digest
        both = Catalogue.of([replace(rows[0], volume_id="v0"), *rows])
        assert both[1:].digest == catalogue.digest
        elsewhere = replace(rows[0], array_path="volumes/x", stored_bytes=3, source_stat="7")
        assert Catalogue.of([elsewhere, rows[1]]).digest == catalogue.digest
        for change in (
            {"volume_id": "v0"},
            {"patient": "p"},
            {"domain": 2},
            {"digest": "f" * 64},
            {"frame_origin": (20, 35, 46)},
            {"frame_rule": "lung base"},
            {"body_cells": bytes(len(rows[0].body_cells))},
            {"mask_cells": rows[0].body_cells},
        ):
            other = Catalogue.of([replace(rows[0], **change), rows[1]])  # type: ignore[arg-type]
            assert other.digest != catalogue.digest, change
        # Texts do not run into each other.
        one = [replace(rows[0], patient="ab"), replace(rows[1], patient="c")]
        two = [replace(rows[0], patient="a"), replace(rows[1], patient="bc")]
        assert Catalogue.of(one).digest != Catalogue.of(two).digest

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

    @settings(max_examples=40)
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

    @settings(max_examples=40)
    @given(shape=st.tuples(*[st.integers(1, 30)] * 3), seed=st.integers(0, 99))
    def test_a_cell_is_marked_when_one_voxel_is_in_the_mask(
        self, shape: tuple[int, int, int], seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        cell = tuple(rng.integers(1, 9, 3).tolist())
        mask = rng.random(shape) < rng.random() * 0.02
        bits = np.unpackbits(np.frombuffer(mask_cells(mask, cell), np.uint8), bitorder="little")
        grid = tuple(-(-n // c) for n, c in zip(shape, cell, strict=True))
        expected = {tuple(index // cell) for index in np.argwhere(mask)}
        assert {np.unravel_index(i, grid) for i in np.flatnonzero(bits)} == expected

    @settings(max_examples=40)
    @given(values=st.lists(st.integers(-32767, 32767), min_size=1, max_size=50))
    def test_the_histogram_counts_every_voxel_in_bins_of_50_hu(self, values: list[int]) -> None:
        hu = np.array(values, np.int16).reshape(1, 1, -1)
        edges = [-np.inf, *range(-974, 3027, 50), np.inf]
        assert list(hu_histogram(hu)) == np.histogram(values, edges)[0].tolist()
        assert HU_EDGES[0] == -1024
        assert HU_EDGES[-2] == 3026

    def test_the_histogram_of_a_large_volume_is_that_of_every_fourth_row(self) -> None:
        hu = np.random.default_rng(1).normal(0, 500, (3, 2048, 4096)).astype(np.int16)
        edges = [-np.inf, *range(-974, 3027, 50), np.inf]
        counts = np.array(hu_histogram(hu))
        expected = np.histogram(hu[:, ::4].ravel(), edges)[0] * 4
        np.testing.assert_array_equal(counts, expected)
        assert counts.sum() == hu.size


@pytest.fixture
def store(place: Place) -> Store:
    return two_volumes(place)


class TestDamage:
    def test_every_flipped_byte_of_the_file_is_found(self, store: Store) -> None:
        place, data = store.place, read(store.place, CATALOGUE)
        count = 300 if "s3://" not in str(place) else 30
        for position in np.random.default_rng(3).choice(len(data), count, replace=False):
            flip(place, CATALOGUE, int(position), 1)
            with pytest.raises(StoreCorrupt, match=r"place.*/catalogue\.parquet: "):
                Store.open(place)
            overwrite(place, CATALOGUE, data)
        Store.open(place)

    @pytest.mark.parametrize("kept", [0, 4, 0.5, 0.999])
    def test_a_truncated_file_is_found(self, store: Store, kept: float) -> None:
        data = read(store.place, CATALOGUE)
        overwrite(store.place, CATALOGUE, data[: int(kept if kept >= 1 else kept * len(data))])
        with pytest.raises(StoreCorrupt, match=r"catalogue\.parquet: (truncated|altered)"):
            Store.open(store.place)

    def test_a_missing_file_is_found(self, store: Store) -> None:
        delete(store.place, CATALOGUE)
        with pytest.raises(StoreCorrupt, match=r"catalogue\.parquet: the catalogue is missing"):
            Store.open(store.place)

    def test_another_version_is_refused(self, rows: list[Row], tmp_path: Path) -> None:
        forge(tmp_path, Catalogue.of(rows).table, {"pmg.catalogue_version": "1"})
        with pytest.raises(StoreError, match="catalogue version 1; this program reads 2"):
            read_catalogue(Place.of(tmp_path))


def forge(
    folder: Path, table: pa.Table, facts: dict[str, str] | None = None, **how: object
) -> None:
    """Write a catalogue whose digest is right, by somebody who knows how it is made."""
    placeholder = "0" * 64
    facts = {"pmg.catalogue_version": "2"} | (facts or {}) | {"pmg.sha256": placeholder}
    table = table.replace_schema_metadata(facts)
    sink = io.BytesIO()
    options = {"compression": "zstd", "use_dictionary": ["phase", "frame_rule", "provenance"]}
    pq.write_table(table, sink, **(options | how))
    data = sink.getvalue()
    # The Arrow schema in the footer holds the facts a second time, in base64.
    assert data.count(placeholder.encode()) == 1
    digest = hashlib.sha256(data).hexdigest()
    (folder / CATALOGUE).write_bytes(data.replace(placeholder.encode(), digest.encode()))


def changed(row: Row, **fields: object) -> Callable[[], pa.Table]:
    return lambda: Catalogue.of([replace(row, **fields)]).table  # type: ignore[arg-type]


class TestHostile:
    def test_a_forged_file_that_is_in_order_is_read(self, rows: list[Row], tmp_path: Path) -> None:
        forge(tmp_path, Catalogue.of(rows).table)
        assert list(read_catalogue(Place.of(tmp_path))[0]) == rows

    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            ({"array_path": "volumes/../../etc"}, "array path"),
            ({"array_path": "/etc"}, "array path"),
            ({"array_path": "volumes/a/b"}, "array path"),
            ({"array_path": "volumes"}, "array path"),
            ({"shape": (2**20, 2**20, 1)}, "impossible shape"),
            ({"shape": (0, 70, 90)}, "impossible shape"),
            ({"shape": (-1, 70, 90)}, "impossible shape"),
            ({"cell_shape": (0, 5, 5)}, "impossible cell shape"),
            ({"cells_grid": (2, 2, 2)}, "cells that do not fit"),
            ({"body_cells": b"\xff"}, "bitmap of another size"),
            ({"mask_cells": b"\xff"}, "bitmap of another size"),
            ({"domain": 3}, "domain other than"),
            ({"volume_id": "v2"}, "names a volume twice"),
        ],
    )
    def test_rows_that_no_writer_writes_are_refused(
        self, rows: list[Row], tmp_path: Path, fields: dict[str, object], named: str
    ) -> None:
        altered = replace(rows[0], **fields)  # type: ignore[arg-type]
        forge(tmp_path, Catalogue.of([altered, rows[1]]).table)
        with pytest.raises(StoreCorrupt, match=rf"catalogue\.parquet: .*{named}"):
            read_catalogue(Place.of(tmp_path))

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "bomb", ["many rows", "a long value", "a dictionary", "another column", "a sparse file"]
    )
    def test_a_small_file_that_asks_for_much_memory_is_refused_before_it_gets_it(
        self, rows: list[Row], tmp_path: Path, bomb: str
    ) -> None:
        table = Catalogue.of(rows).table
        if bomb == "many rows":
            many = pa.concat_tables([table.take(np.zeros(2**16, np.int64))] * 16)
            forge(tmp_path, many, use_dictionary=True)
        elif bomb == "a long value":
            forge(tmp_path, changed(rows[0], body_cells=bytes(200_000_000))())
        elif bomb == "a dictionary":
            long = changed(rows[0], source_stat="x" * 1_000_000)()
            forge(tmp_path, long.take(np.zeros(600, np.int64)), use_dictionary=True)
        elif bomb == "another column":
            forge(tmp_path, table.append_column("extra", [["x", "y"]]))
        else:
            with (tmp_path / CATALOGUE).open("wb") as file:
                file.truncate(2**40)
        assert (tmp_path / CATALOGUE).stat().st_blocks * 512 < 2_000_000
        code = (
            "import resource, sys\n"
            "from storage.catalogue_file import read_catalogue\n"
            "from storage.errors import StoreCorrupt\n"
            "from storage.place import Place\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "try:\n"
            "    read_catalogue(Place.of(sys.argv[1]))\n"
            "except StoreCorrupt as error:\n"
            "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
        )
        taken_kib, _, message = done.stdout.partition(" ")
        assert "catalogue.parquet: " in message
        assert int(taken_kib) < 50_000


def test_the_documented_columns_are_those_of_the_schema() -> None:
    text = (Path(__file__).parents[2] / "docs" / "store.md").read_text()
    table = text.partition("| column | type |")[2].partition("\n\n")[0].splitlines()[2:]
    documented = [tuple(cell.strip() for cell in line.split("|")[1:3]) for line in table]
    assert documented == [(field.name, in_words(field.type)) for field in SCHEMA]


def in_words(kind: pa.DataType) -> str:
    if pa.types.is_fixed_size_list(kind):
        return f"{kind.list_size} {kind.value_type}"
    if pa.types.is_dictionary(kind):
        return f"dictionary of {kind.value_type}"
    return str(kind)
