"""The store: a Zarr v3 hierarchy of int16 HU volumes beside the catalogue that vouches for them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.array import as_int16, content_digest, write_array
from storage.catalogue import Catalogue, Row, body_cells, hu_histogram, mask_cells
from storage.catalogue_file import CATALOGUE, read_catalogue, write_catalogue
from storage.errors import GeometryError, IngestError, StoreCorrupt, StoreError, StoreMissing
from storage.layout import CHUNK
from storage.place import Place
from storage.shard import ShardedArray
from storage.volume import Volume

if TYPE_CHECKING:  # SciPy, which it needs, takes a third of a second to import
    from storage.body import FrameOrigin

__all__ = [
    "STORE_VERSION",
    "Measured",
    "Spacing",
    "Store",
    "Writer",
    "measuring",
    "stage_volume",
]

STORE_VERSION = 3

Spacing = tuple[float, float, float]

_ROOT, _VOLUMES = "zarr.json", "volumes/zarr.json"
_THREADS = 2  # beside the one that stages a volume
# What the smallest chunk takes: its entry in the shard's index, Blosc's header, the checksum.
_CHUNK_BYTES = 16 + 16 + 4

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


class Store:
    """A store opened for reading, as it was at that moment. Safe to share between threads.

    spacing_mm: the grid that all its volumes have, z, y, x; None when each keeps its own.
    """

    def __init__(self, place: Place, attributes: Mapping[str, Any], rows: Catalogue) -> None:
        self.place = place
        self.rows = rows
        spacing = attributes["spacing_mm"]
        self.spacing_mm: Spacing | None = spacing and tuple(spacing)
        self._positions = {name: index for index, name in enumerate(rows.column("volume_id"))}
        # Opening costs a millisecond, and a stream comes back to the same volumes.
        self._array = lru_cache(maxsize=1024)(self._open_array)

    @classmethod
    def create(cls, where: str | os.PathLike[str] | Place, spacing_mm: Spacing | None) -> Store:
        """An empty store at a path or URL that is new or empty. Raises StoreError otherwise."""
        place = Place.of(where)
        if spacing_mm is not None and not all(np.isfinite(s) and s > 0 for s in spacing_mm):
            raise GeometryError(
                f"{place}: spacing {spacing_mm} mm; expected three positive numbers"
            )
        # What a creation that was killed may have left; zarr.json comes last and makes the store.
        unfinished = {"lock", "volumes/", CATALOGUE, f".{CATALOGUE}.new", f".{_ROOT}.new"}
        for name in place.list():
            if name not in unfinished:
                raise StoreError(f"{place} holds {name!r}; expected nothing there for a new store")
        with place.locked():
            place.replace(_VOLUMES, _group({}))
            write_catalogue(place, Catalogue.of([]))
            place.replace(_ROOT, _root({"version": STORE_VERSION, "spacing_mm": spacing_mm}))
        return cls.open(place)

    @classmethod
    def open(cls, where: str | os.PathLike[str] | Place) -> Store:
        """The store at a path or URL.

        Raises StoreError where there is none of this version, StoreCorrupt for damage.
        """
        place = Place.of(where)
        attributes, _ = _read_root(place)
        return cls(place, attributes, read_catalogue(place)[0])

    @classmethod
    def open_or_create(
        cls, where: str | os.PathLike[str] | Place, spacing_mm: Spacing | None
    ) -> Store:
        """Raises StoreError when the store there has another grid than `spacing_mm`.

        Without `spacing_mm` an existing store keeps the grid it has.
        """
        place = Place.of(where)
        if _ROOT not in place.list():
            return cls.create(place, spacing_mm)
        store = cls.open(place)
        if spacing_mm is not None and store.spacing_mm != tuple(spacing_mm):
            raise StoreError(
                f"{place} was made with spacing {store.spacing_mm} mm, asked for {spacing_mm} mm; "
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
            raise StoreError(f"{self.place} has no volume {volume_id!r} among its {len(self.rows)}")
        return position

    def row(self, volume_id: str) -> Row:
        return self.rows[self.require(volume_id)]

    def read(self, volume_id: str) -> Volume:
        """The whole volume, int16. Raises StoreCorrupt when its digest is not the catalogue's."""
        affine, digest, path, shape, stored_bytes = self.rows.get(
            self.require(volume_id), "affine", "digest", "array_path", "shape", "stored_bytes"
        )
        with _naming(volume_id):
            if math.prod(shape) * _CHUNK_BYTES > stored_bytes * math.prod(CHUNK):
                raise StoreCorrupt(
                    f"{self.place}/{path}: shape {tuple(shape)} cannot come from the "
                    f"{stored_bytes} bytes that the catalogue states"
                )
            hu = self._array(volume_id).read((0, 0, 0), shape)
            if content_digest(hu, affine) != digest:
                raise StoreCorrupt(f"{self.place}/{path}: has another BLAKE3 than stated")
        return Volume(hu, np.reshape(affine, (4, 4)))

    def read_box(self, volume_id: str, start: Sequence[int], shape: Sequence[int]) -> np.ndarray:
        """int16 HU of `shape` from voxel `start` on, z, y, x.

        Checks every chunk that it touches, not the volume's digest. Raises StoreCorrupt for a
        damaged or missing chunk, StoreError for a box that reaches out of the volume.
        """
        with _naming(volume_id):
            return self._array(volume_id).read(start, shape)

    def cut(
        self,
        volume_id: str,
        starts: np.ndarray,
        shape: Sequence[int],
        outs: Sequence[np.ndarray],
    ) -> None:
        """Copy int16 HU of several boxes of one shape into `outs`, as `read_box` reads one.

        starts: [N, 3], first voxel of each. A chunk that many of them touch is decoded once.
        """
        with _naming(volume_id):
            self._array(volume_id).cut(starts, shape, outs)

    def verify(
        self, threads: int = 1, progress: Callable[[int, int], None] | None = None
    ) -> list[str]:
        """One sentence for each volume that is not what the catalogue says; empty when all are.

        Reads every byte of every volume, one volume per thread at a time. progress: called with
        (volumes done, volumes in all).
        """
        problems = []
        if self.place.read(_VOLUMES) != _group({}):
            problems.append(f"{self.place}/{_VOLUMES}: altered; expected an empty Zarr group")
        ids = self.rows.column("volume_id").tolist()
        with ThreadPoolExecutor(threads, thread_name_prefix="verify") as pool:
            for done, problem in enumerate(pool.map(self._problem, ids), start=1):
                problems += [problem] if problem else []
                if progress is not None:
                    progress(done, len(ids))
        return problems

    def _problem(self, volume_id: str) -> str:
        try:
            self.read(volume_id)
        except StoreError as error:
            return str(error)
        return ""

    @contextmanager
    def writer(self) -> Iterator[Writer]:
        """The only way to write. Raises StoreError at once while another process does."""
        with self.place.locked():
            writer = Writer(self.place)
            writer.sweep()
            yield writer

    def _open_array(self, volume_id: str) -> ShardedArray:
        path, digest, shape = self.rows.get(
            self.require(volume_id), "array_path", "metadata_digest", "shape"
        )
        with _naming(volume_id):
            name = f"{path}/zarr.json"
            metadata = self.place.read(name)
            if hashlib.sha256(metadata).hexdigest() != digest:
                raise StoreCorrupt(f"{self.place}/{name}: has another SHA-256 than stated")
            return ShardedArray(self.place, path, metadata, shape)


class Writer:
    """Writes volumes under the store's lock; made by `Store.writer`.

    `stage` writes a volume that does not exist yet, `commit` makes staged volumes exist, all in
    the same instant. A crash between the two leaves arrays that nobody refers to: `sweep` removes
    them.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        attributes, self._root_version = _read_root(place)
        self.rows, self._version = read_catalogue(place)
        self._fenced = False
        self._attributes = attributes
        spacing = attributes["spacing_mm"]
        self.spacing_mm: Spacing | None = spacing and tuple(spacing)

    def bind_key(self, check: str) -> None:
        """Tie the store to the key of its pseudonyms by a keyed hash of a constant.

        Under another key every patient would enter a second time, as a stranger. Raises StoreError
        when the store is tied to another one.
        """
        bound = self._attributes.get("key_check")
        if bound is None:
            self._attributes["key_check"] = check
            self._root_version = self.place.replace(
                _ROOT, _root(self._attributes), expected=self._root_version
            )
        elif bound != check:
            raise StoreError(
                f"{self.place}: the key is not the one that this store's pseudonyms were made "
                "with; give the first ingest's key file, or choose a new store"
            )

    def stage(self, volume: Volume, body: np.ndarray, origin: FrameOrigin, **fields: Any) -> Row:
        """`stage_volume` into this store."""
        return stage_volume(self.place, self.spacing_mm, volume, body, origin, **fields)

    def commit(self, rows: Sequence[Row], *, removed: Sequence[str] = ()) -> None:
        """Make staged volumes exist, each in place of an older one of the same volume id, and
        volumes of the ids in `removed` not.

        Raises StoreError, and changes nothing, when another writer has committed since: on an
        object store a writer that was taken for dead can wake up again.
        """
        changed = self.rows.changed(rows, removed)
        self._version = write_catalogue(self.place, changed, expected=self._version)
        self.rows = changed
        self._fenced = True

    def sweep(self) -> None:
        """Remove arrays that the catalogue does not name: an ingest died, or they were replaced."""
        kept = {f"{path}/" for path in self.rows.column("array_path")}
        orphans = [
            name for name in self.place.list("volumes") if name.endswith("/") and name not in kept
        ]
        if orphans and not self._fenced:
            # A writer that was taken for dead may still want to commit these: with another version
            # of the catalogue it can't.
            self.commit([])
        for name in orphans:
            self.place.remove_tree(name.rstrip("/"))


@dataclass(frozen=True)
class Measured:
    """What threads find out about a volume's voxels; see `measuring`."""

    pool: ThreadPoolExecutor
    digest: Future[str]
    histogram: Future[tuple[int, ...]]


@contextmanager
def measuring(volume: Volume) -> Iterator[Measured]:
    """Hash and count the voxels (of `as_int16`) while the block runs: neither needs to know where
    the body is, which can be looked for meanwhile."""
    with ThreadPoolExecutor(_THREADS) as pool:
        digest = pool.submit(content_digest, volume.hu, _affine(volume))
        yield Measured(pool, digest, pool.submit(hu_histogram, volume.hu))


def stage_volume(
    place: Place,
    spacing_mm: Spacing | None,
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
    mask: np.ndarray | None = None,
    source_stat: str = "",
    measured: Measured | None = None,
) -> Row:
    """Write an array at a fresh path, check what was written, and return the row that would commit
    it.

    It needs no lock, and may run in any process while a `Writer` holds it; only `Writer.commit`
    makes the volume exist.

    spacing_mm: the store's grid. body: bool [Z, Y, X], true inside of the patient. mask: bool
    [Z, Y, X], voxels that a stream may prefer, such as calcium. measured: of this volume, where it
    was begun before.
    Raises IngestError for HU that int16 cannot hold or a volume without body, GeometryError for
    another spacing than the store's, StoreError when it cannot be written (disk full).
    """
    if not _NAME.fullmatch(volume_id) or domain not in (1, 2):
        raise StoreError(
            f"volume {volume_id!r} of domain {domain!r}; expected a-z, 0-9 and - and 1 or 2"
        )
    volume = as_int16(volume)
    _check_grid(
        volume, spacing_mm, {"body mask": body} | ({"mask": mask} if mask is not None else {})
    )
    cell_shape, cells_grid, cells = body_cells(body, volume.spacing_mm)
    if not any(cells):
        raise IngestError(
            f"the body mask marks {np.count_nonzero(body)} of {body.size} voxels and fills no "
            "cell; expected a patient in the volume"
        )
    described: dict[str, Any] = {
        "volume_id": volume_id,
        "patient": patient,
        "domain": domain,
        "phase": phase,
        "shape": volume.shape,
        "spacing_mm": volume.spacing_mm,
        "affine": _affine(volume),
        "frame_origin": origin.index,
        "frame_rule": origin.rule,
        "provenance": provenance,
    }
    array_path = f"volumes/{volume_id}-{secrets.token_hex(8)}"
    # No stream reads volumes of different grids: nothing is gained by the padding there.
    corner = (0, 0, 0) if spacing_mm is None else origin.index
    with measuring(volume) if measured is None else nullcontext(measured) as threads:
        found = {
            "hu_min": int(volume.hu_range[0]),
            "hu_max": int(volume.hu_range[1]),
            "body_box": _bounding_box(body),
            "cell_shape": cell_shape,
            "cells_grid": cells_grid,
            "body_cells": cells,
            "mask_cells": b"" if mask is None else mask_cells(mask, cell_shape),
            "hu_histogram": threads.histogram.result(),
        }
        digest = threads.digest.result()
        attributes = described | {"digest": digest}
        written = write_array(place, array_path, volume.hu, attributes, corner, threads.pool)
    return Row(
        **(described | found | {"provenance": json.dumps(provenance, sort_keys=True)}),
        array_path=array_path,
        **asdict(written),
        digest=digest,
        source_digest=source_digest,
        source_stat=source_stat,
        ingest_version=ingest_version,
    )


def _affine(volume: Volume) -> tuple[float, ...]:
    return tuple(float(v) + 0.0 for v in volume.affine.ravel())  # no negative zero


def _check_grid(
    volume: Volume, spacing_mm: Spacing | None, masks: Mapping[str, np.ndarray]
) -> None:
    for name, mask in masks.items():
        if mask.shape != volume.shape:
            raise GeometryError(f"{name} {mask.shape} for a volume of {volume.shape}")
    if spacing_mm is not None and not np.allclose(volume.spacing_mm, spacing_mm, rtol=0, atol=1e-3):
        raise GeometryError(
            f"spacing {volume.spacing_mm} mm; this store's grid has {spacing_mm} mm: resample first"
        )


def _bounding_box(mask: np.ndarray) -> tuple[int, int, int, int, int, int]:
    plane = np.asarray(mask.any(axis=0))
    lows, highs = [], []
    for along in (mask.any(axis=(1, 2)), plane.any(axis=1), plane.any(axis=0)):
        hit = np.flatnonzero(along)
        lows.append(int(hit[0]))
        highs.append(int(hit[-1]) + 1)
    return lows[0], lows[1], lows[2], highs[0], highs[1], highs[2]


def _read_root(place: Place) -> tuple[dict[str, Any], str]:
    """The store's attributes and the mark of their version."""
    try:
        data, mark = place.read_version(_ROOT)
        attributes = json.loads(data)["attributes"]["pmg"]
        version = attributes["version"]
    except StoreMissing as error:
        raise StoreError(
            f"{place}: no store here (no zarr.json); `pmg ingest` makes one"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreCorrupt(
            f"{place}/{_ROOT}: not the root of a pmg store ({type(error).__name__}: {error})"
        ) from error
    if version != STORE_VERSION:
        raise StoreError(f"{place}: store version {version}; this program reads {STORE_VERSION}")
    stated = attributes.pop("sha256", None)
    if stated != _attributes_digest(attributes) or data != _root(attributes):
        raise StoreCorrupt(f"{place}/{_ROOT}: altered; it has another SHA-256 than it states")
    return attributes, mark


def _root(attributes: Mapping[str, Any]) -> bytes:
    return _group({"pmg": {**attributes, "sha256": _attributes_digest(attributes)}})


def _attributes_digest(attributes: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(attributes, sort_keys=True).encode()).hexdigest()


def _group(attributes: Mapping[str, Any]) -> bytes:
    document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return json.dumps(document, indent=2).encode()


@contextmanager
def _naming(volume_id: str) -> Iterator[None]:
    """Put the volume's name before what is wrong with its files."""
    try:
        yield
    except StoreCorrupt as error:
        raise StoreCorrupt(f"volume {volume_id}: {error}; ingest it again") from error
