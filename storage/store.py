"""The store: a Zarr v3 hierarchy of int16 HU volumes beside the catalogue that vouches for them."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from storage.array import as_int16, content_digest, write_array
from storage.body import FrameOrigin
from storage.catalogue import Catalogue, Row, body_cells, read_catalogue, write_catalogue
from storage.durable import locked, replace_file
from storage.errors import GeometryError, IngestError, StoreCorrupt, StoreError
from storage.shard import ShardedArray
from storage.volume import Volume

__all__ = ["STORE_VERSION", "Store", "Writer"]

STORE_VERSION = 1

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


class Store:
    """A store opened for reading, as it was at that moment. Safe to share between threads.

    spacing_mm: the grid that all its volumes have, z, y, x; None when each keeps its own.
    """

    def __init__(self, path: Path, attributes: Mapping[str, Any], rows: Catalogue) -> None:
        self.path = path
        self.rows = rows
        spacing = attributes["spacing_mm"]
        self.spacing_mm: tuple[float, float, float] | None = spacing and tuple(spacing)
        self._positions = {name: index for index, name in enumerate(rows.column("volume_id"))}
        # Opening costs a millisecond, and a stream comes back to the same volumes.
        self._array = lru_cache(maxsize=1024)(self._open_array)

    @classmethod
    def create(cls, path: Path, spacing_mm: tuple[float, float, float] | None) -> Store:
        """An empty store in a folder that is new or empty. Raises StoreError otherwise."""
        if path.exists() and not path.is_dir():
            raise StoreError(f"{path} is a file; expected a new or empty folder for a store")
        path.mkdir(parents=True, exist_ok=True)
        # What a creation that was killed may have left; zarr.json comes last and makes the store.
        unfinished = {"lock", "volumes", "catalogue.parquet", ".catalogue.parquet.new"}
        for entry in path.iterdir():
            if entry.name not in unfinished | {".zarr.json.new"}:
                raise StoreError(
                    f"{path} holds {entry.name!r}; expected an empty folder for a new store"
                )
        if spacing_mm is not None and not all(np.isfinite(s) and s > 0 for s in spacing_mm):
            raise GeometryError(f"{path}: spacing {spacing_mm} mm; expected three positive numbers")
        with locked(path):
            (path / "volumes").mkdir(exist_ok=True)
            _write_group(path / "volumes", {})
            write_catalogue(path / "catalogue.parquet", Catalogue.of([]))
            _write_group(path, {"pmg": {"version": STORE_VERSION, "spacing_mm": spacing_mm}})
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> Store:
        """Raises StoreError for a path without a store of this version, StoreCorrupt for damage."""
        return cls(path, _read_attributes(path), read_catalogue(path / "catalogue.parquet"))

    @classmethod
    def open_or_create(cls, path: Path, spacing_mm: tuple[float, float, float] | None) -> Store:
        """Raises StoreError when the store at `path` has another grid than `spacing_mm`.

        Without `spacing_mm` an existing store keeps the grid it has.
        """
        if not (path / "zarr.json").exists():
            return cls.create(path, spacing_mm)
        store = cls.open(path)
        if spacing_mm is not None and store.spacing_mm != tuple(spacing_mm):
            raise StoreError(
                f"{path} was made with spacing {store.spacing_mm} mm, asked for {spacing_mm} mm; "
                "a store has one grid: choose a new path"
            )
        return store

    @property
    def digest(self) -> str:
        """SHA-256 that two stores share when the same run sees the same patches in both."""
        return self.rows.digest

    def require(self, volume_id: str) -> int:
        """The volume's index in `rows`. Raises StoreError when the store has none of that name."""
        position = self._positions.get(volume_id)
        if position is None:
            raise StoreError(f"{self.path} has no volume {volume_id!r} among its {len(self.rows)}")
        return position

    def row(self, volume_id: str) -> Row:
        return self.rows[self.require(volume_id)]

    def read(self, volume_id: str) -> Volume:
        """The whole volume, int16. Raises StoreCorrupt when its digest is not the catalogue's."""
        row = self.row(volume_id)
        with _naming(volume_id):
            hu = self._array(volume_id).read((0, 0, 0), row.shape)
            if content_digest(hu, row.affine) != row.digest:
                raise StoreCorrupt(f"{self.path / row.array_path}: has another SHA-256 than stated")
        return Volume(hu, np.reshape(row.affine, (4, 4)))

    def read_box(self, volume_id: str, start: Sequence[int], shape: Sequence[int]) -> np.ndarray:
        """int16 HU of `shape` from voxel `start` on, z, y, x.

        Checks every chunk that it touches, not the volume's digest. Raises StoreCorrupt for a
        damaged or missing chunk, StoreError for a box that reaches out of the volume.
        """
        with _naming(volume_id):
            return self._array(volume_id).read(start, shape)

    def verify(self) -> list[str]:
        """One sentence for each volume that is not what the catalogue says; empty when all are."""
        problems = []
        for row in self.rows:
            try:
                self.read(row.volume_id)
                metadata = (self.path / row.array_path / "zarr.json").read_bytes()
                if json.loads(metadata)["attributes"] != _attributes(row):
                    problems.append(
                        f"volume {row.volume_id}: {self.path / row.array_path / 'zarr.json'} "
                        "has other attributes than the catalogue"
                    )
            except StoreCorrupt as error:
                problems.append(str(error))
        return problems

    @contextmanager
    def writer(self) -> Iterator[Writer]:
        """The only way to write. Raises StoreError at once while another process does."""
        with locked(self.path):
            writer = Writer(self.path)
            writer.sweep()
            yield writer

    def _open_array(self, volume_id: str) -> ShardedArray:
        row = self.row(volume_id)
        with _naming(volume_id):
            return ShardedArray.open(_Folder(self.path), row.array_path, row.shape)


class _Folder:
    """The store's files, as the direct reader takes them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def read(self, name: str) -> bytes:
        return self._path(name).read_bytes()

    def read_ranges(self, name: str, starts: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        path = self._path(name)
        with path.open("rb", buffering=0) as file:
            ranges = [os.pread(file.fileno(), n, a) for a, n in zip(starts, lengths, strict=True)]
        if any(len(data) != n for data, n in zip(ranges, lengths, strict=True)):
            raise StoreCorrupt(f"{path}: truncated")
        return ranges

    def _path(self, name: str) -> Path:
        path = (self.root / name).resolve()
        if not path.is_relative_to(self.root.resolve() / "volumes"):
            raise StoreCorrupt(f"{self.root / name}: this path leads out of the store")
        if not path.is_file():
            raise StoreCorrupt(f"{self.root / name}: is missing")
        return path


class Writer:
    """Writes volumes under the store's lock; made by `Store.writer`.

    `stage` writes a volume that does not exist yet, `commit` makes staged volumes exist, all in
    the same instant. A crash between the two leaves arrays that nobody refers to: `sweep` removes
    them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        store = Store.open(path)
        self.spacing_mm = store.spacing_mm
        self.rows = store.rows

    def bind_key(self, check: str) -> None:
        """Tie the store to the key of its pseudonyms by a keyed hash of a constant.

        Under another key every patient would enter a second time, as a stranger. Raises StoreError
        when the store is tied to another one.
        """
        attributes = _read_attributes(self.path)
        if attributes.setdefault("key_check", check) != check:
            raise StoreError(
                f"{self.path}: the key is not the one that this store's pseudonyms were made with; "
                "give the first ingest's key file, or choose a new store"
            )
        _write_group(self.path, {"pmg": attributes})

    def stage(
        self,
        volume: Volume,
        body: np.ndarray,
        origin: FrameOrigin,
        *,
        volume_id: str,
        patient: str,
        domain: int,
        phase: str,
        source_digest: str,
        ingest_version: int,
        provenance: Mapping[str, Any],
    ) -> Row:
        """Write the array at a fresh path, read it back, and return the row that would commit it.

        body: bool [Z, Y, X], true inside of the patient.
        Raises IngestError for HU that int16 cannot hold or a volume without body, GeometryError
        for another spacing than the store's, StoreError when it cannot be written (disk full).
        """
        if not _NAME.fullmatch(volume_id) or domain not in (1, 2):
            raise StoreError(
                f"volume {volume_id!r} of domain {domain!r}; expected a-z, 0-9 and - and 1 or 2"
            )
        hu = as_int16(volume.hu)
        self._check_grid(volume, body)
        cell_shape, cells_grid, cells = body_cells(body, volume.spacing_mm)
        if not any(cells):
            raise IngestError(
                f"the body mask marks {np.count_nonzero(body)} of {body.size} voxels and fills no "
                "cell; expected a patient in the volume"
            )
        affine = tuple(float(v) + 0.0 for v in volume.affine.ravel())  # no negative zero
        row = Row(
            volume_id=volume_id,
            patient=patient,
            domain=domain,
            phase=phase,
            shape=volume.shape,
            spacing_mm=volume.spacing_mm,
            affine=affine,
            frame_origin=origin.index,
            frame_rule=origin.rule,
            hu_min=int(hu.min()),
            hu_max=int(hu.max()),
            body_box=_bounding_box(body),
            cell_shape=cell_shape,
            cells_grid=cells_grid,
            body_cells=cells,
            array_path=f"volumes/{volume_id}-{secrets.token_hex(4)}",
            digest=content_digest(hu, affine),
            source_digest=source_digest,
            ingest_version=ingest_version,
            provenance=json.dumps(provenance, sort_keys=True),
        )
        write_array(self.path, row.array_path, hu, _attributes(row), origin.index)
        array = ShardedArray.open(_Folder(self.path), row.array_path, hu.shape)
        if content_digest(array.read((0, 0, 0), hu.shape), affine) != row.digest:
            raise StoreCorrupt(f"{self.path / row.array_path}: reads back other HU than written")
        return row

    def commit(self, rows: Sequence[Row], *, removed: Sequence[str] = ()) -> None:
        """Make staged volumes exist, each in place of an older one of the same volume id, and
        volumes of the ids in `removed` not."""
        self.rows = self.rows.changed(rows, removed)
        write_catalogue(self.path / "catalogue.parquet", self.rows)

    def sweep(self) -> None:
        """Remove arrays that the catalogue does not name: an ingest died, or they were replaced."""
        kept = set(self.rows.column("array_path"))
        for entry in (self.path / "volumes").iterdir():
            if entry.is_dir() and f"volumes/{entry.name}" not in kept:
                shutil.rmtree(entry)

    def _check_grid(self, volume: Volume, body: np.ndarray) -> None:
        if body.shape != volume.shape:
            raise GeometryError(f"body mask {body.shape} for a volume of {volume.shape}")
        if self.spacing_mm is not None and not np.allclose(
            volume.spacing_mm, self.spacing_mm, rtol=0, atol=1e-3
        ):
            raise GeometryError(
                f"spacing {volume.spacing_mm} mm; this store's grid has {self.spacing_mm} mm: "
                "resample first"
            )


def _bounding_box(mask: np.ndarray) -> tuple[int, int, int, int, int, int]:
    lows, highs = [], []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        hit = np.flatnonzero(mask.any(axis=others))
        lows.append(int(hit[0]))
        highs.append(int(hit[-1]) + 1)
    return lows[0], lows[1], lows[2], highs[0], highs[1], highs[2]


def _attributes(row: Row) -> dict[str, Any]:
    """The row as JSON holds it, for whoever opens the array without the catalogue."""
    values = asdict(row) | {"body_cells": row.body_cells.hex()}
    values |= {"provenance": json.loads(row.provenance)}
    attributes: dict[str, Any] = json.loads(json.dumps(values))
    return attributes


def _read_attributes(path: Path) -> dict[str, Any]:
    try:
        attributes = json.loads((path / "zarr.json").read_bytes())["attributes"]["pmg"]
        version = attributes["version"]
    except FileNotFoundError as error:
        raise StoreError(f"{path}: no store here (no zarr.json); `pmg ingest` makes one") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreCorrupt(
            f"{path / 'zarr.json'}: not the root of a pmg store ({type(error).__name__}: {error})"
        ) from error
    if version != STORE_VERSION:
        raise StoreError(f"{path}: store version {version}; this program reads {STORE_VERSION}")
    return dict(attributes)


def _write_group(path: Path, attributes: Mapping[str, Any]) -> None:
    document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    replace_file(path / "zarr.json", json.dumps(document, indent=2).encode())


@contextmanager
def _naming(volume_id: str) -> Iterator[None]:
    """Put the volume's name before what is wrong with its files."""
    try:
        yield
    except StoreCorrupt as error:
        raise StoreCorrupt(f"volume {volume_id}: {error}; ingest it again") from error
