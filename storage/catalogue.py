"""The catalogue's rows: all that is known of each volume, as columns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = [
    "HU_EDGES",
    "SCHEMA",
    "SELDOM",
    "Catalogue",
    "Row",
    "body_cells",
    "hu_histogram",
    "mask_cells",
]

# 512 bytes a volume: cells of about 3 cm in a CT of the trunk, 51 MB for 100,000 volumes.
_MAX_CELLS = 4096

_COUNTED_VOXELS = 1 << 24

# Edges of the bins of a volume's histogram; the first and the last bin have no outer bound.
HU_EDGES = np.arange(-1024, 3077, 50)
HU_EDGES.flags.writeable = False

Index = tuple[int, int, int]


@dataclass(frozen=True)
class Row:
    """All that the stream and `pmg info` need to know of one volume. Axes are z, y, x.

    affine: 4x4, row by row; (z, y, x, 1) to LPS mm.
    frame_origin: the voxel that is the origin of the body-centred frame; frame_rule says how it
    was found.
    body_box: first voxel of the body and the voxel after its last one, z0 y0 x0 z1 y1 x1.
    body_cells: one bit per cell of `cell_shape` voxels, C order over `cells_grid`, lowest bit
    first; see `body_cells`.
    mask_cells: the same cells, those with a voxel of the user's mask (calcium, say) in them; empty
    when there was no mask.
    hu_histogram: voxels by HU, see `hu_histogram`.
    stored_bytes: size of the array's files.
    digest: BLAKE3 of voxels, shape and affine. metadata_digest: SHA-256 of the array's zarr.json.
    source_digest: keyed hash of the source's files and of the labels they came with. source_stat:
    keyed hash of their relative paths, sizes and mtimes; empty when unknown.
    provenance: JSON, free of whatever identifies a person.
    """

    volume_id: str
    patient: str
    domain: int
    phase: str
    shape: Index
    spacing_mm: tuple[float, float, float]
    affine: tuple[float, ...]
    frame_origin: Index
    frame_rule: str
    hu_min: int
    hu_max: int
    body_box: tuple[int, int, int, int, int, int]
    cell_shape: Index
    cells_grid: Index
    body_cells: bytes
    mask_cells: bytes
    hu_histogram: tuple[int, ...]
    array_path: str
    stored_bytes: int
    digest: str
    metadata_digest: str
    source_digest: str
    source_stat: str
    ingest_version: int
    provenance: str


# Texts that many rows share: in memory once, however often they occur in the file.
_SHARED_TEXT = pa.dictionary(pa.int32(), pa.string())
_ARROW_TYPES: dict[str, pa.DataType] = {
    "volume_id": pa.string(),
    "patient": pa.string(),
    "domain": pa.int8(),
    "phase": _SHARED_TEXT,
    "shape": pa.list_(pa.int32(), 3),
    "spacing_mm": pa.list_(pa.float64(), 3),
    "affine": pa.list_(pa.float64(), 16),
    "frame_origin": pa.list_(pa.int32(), 3),
    "frame_rule": _SHARED_TEXT,
    "hu_min": pa.int16(),
    "hu_max": pa.int16(),
    "body_box": pa.list_(pa.int32(), 6),
    "cell_shape": pa.list_(pa.int32(), 3),
    "cells_grid": pa.list_(pa.int32(), 3),
    "body_cells": pa.binary(),
    "mask_cells": pa.binary(),
    "hu_histogram": pa.list_(pa.int32(), len(HU_EDGES) - 1),
    "array_path": pa.string(),
    "stored_bytes": pa.int64(),
    "digest": pa.string(),
    "metadata_digest": pa.string(),
    "source_digest": pa.string(),
    "source_stat": pa.string(),
    "ingest_version": pa.int32(),
    "provenance": _SHARED_TEXT,
}
SCHEMA = pa.schema(
    [pa.field(field.name, _ARROW_TYPES[field.name], nullable=False) for field in fields(Row)]
)


# What a stream does not ask for.
SELDOM = (
    "hu_min",
    "hu_max",
    "hu_histogram",
    "source_digest",
    "source_stat",
    "ingest_version",
    "provenance",
)


class Catalogue(Sequence[Row]):
    """An immutable list of rows kept as Arrow columns: 100,000 rows are a few arrays.

    A `Row` is made when it is asked for; code that looks at every volume takes `column`, code that
    needs a field or two of one volume takes `get`.
    """

    def __init__(self, table: pa.Table, rest: Callable[[], pa.Table] | None = None) -> None:
        """rest: gives the columns that `table` lacks, when they are asked for."""
        self._table = table.combine_chunks()
        self._rest = rest

    @cached_property
    def table(self) -> pa.Table:
        """All columns."""
        if self._rest is None:
            return self._table
        both = dict(zip(self._table.column_names, self._table.columns, strict=True))
        rest = self._rest().combine_chunks()
        both |= dict(zip(rest.column_names, rest.columns, strict=True))
        return pa.table([both[name] for name in SCHEMA.names], schema=SCHEMA)

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Catalogue:
        if isinstance(rows, Catalogue):
            return rows
        columns = {name: [getattr(row, name) for row in rows] for name in SCHEMA.names}
        return cls(pa.table(columns, schema=SCHEMA))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Catalogue: ...
    def __getitem__(self, index: int | slice) -> Row | Catalogue:
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        position = range(len(self))[index]
        return _row(self.table.slice(position, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Row]:
        for batch in self.table.to_batches(max_chunksize=1024):
            yield from map(_row, batch.to_pylist())

    def get(self, index: int, *names: str) -> tuple[Any, ...]:
        """Some fields of one row: cheaper than the whole of it."""
        return tuple(self.array(name)[index].as_py() for name in names)

    def select(self, chosen: np.ndarray) -> Catalogue:
        """The rows at these indices, in their order, or where a mask of booleans is true."""
        indices = pa.array(np.flatnonzero(chosen) if chosen.dtype == bool else chosen, pa.int64())
        rest = self._rest
        return Catalogue(self._table.take(indices), rest and (lambda: rest().take(indices)))

    def column(self, name: str) -> np.ndarray:
        """[N], or [N, k] where a row holds k numbers; strings as objects."""
        values = self.array(name)
        if pa.types.is_fixed_size_list(values.type):
            flat: np.ndarray = values.flatten().to_numpy()
            return flat.reshape(len(self), values.type.list_size)
        plain: np.ndarray = values.to_numpy(zero_copy_only=False)
        return plain

    def codes(self, name: str) -> tuple[list[str], np.ndarray]:
        """(different values, [N] which of them a row has) of a column of strings.

        Numbered by their first rows, whatever Arrow's own dictionary of them is.
        """
        values = self.array(name)
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        coded = values.dictionary_encode()
        return coded.dictionary.to_pylist(), coded.indices.to_numpy()

    def bitmaps(self, name: str = "body_cells") -> tuple[np.ndarray, np.ndarray]:
        """A column of bitmaps, end to end: row i owns bytes[offsets[i] : offsets[i + 1]].

        Returns (offsets [N + 1], bytes).
        """
        values = self.array(name)
        if not len(values):
            return np.zeros(1, np.int32), np.zeros(0, np.uint8)
        _, offsets, data = values.buffers()
        ends = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1]
        return ends, np.frombuffer(data or b"", np.uint8)  # no buffer where all are empty

    def changed(self, added: Sequence[Row], removed: Sequence[str] = ()) -> Catalogue:
        """With `added`, each in place of an older row of its volume id, and without `removed`.

        Sorted by volume id.
        """
        gone = {*removed, *(row.volume_id for row in added)}
        ids = self.column("volume_id").tolist()
        kept = [index for index, name in enumerate(ids) if name not in gone]
        ids += [row.volume_id for row in added]
        order = sorted([*kept, *range(len(self), len(ids))], key=ids.__getitem__)
        both = Catalogue(pa.concat_tables([self.table, Catalogue.of(added).table]))
        return both.select(np.array(order, np.int64))

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides which patches a run sees; array paths do not."""
        names = [
            "volume_id",
            "patient",
            "domain",
            "digest",
            "frame_origin",
            "frame_rule",
            "body_cells",
            "mask_cells",
        ]
        sha = hashlib.sha256()
        for name in names:
            sha.update(f"{name} {len(self)} ".encode())
            for part in _bytes_of(self.array(name)):
                sha.update(part)
        return sha.hexdigest()

    def array(self, name: str) -> Any:
        """A column as Arrow holds it: no Python object for each of its strings."""
        table = self._table if name in self._table.column_names else self.table
        chunks = table.column(name).chunks or [pa.array([], _ARROW_TYPES[name])]
        (values,) = chunks
        return values


def _bytes_of(values: pa.Array) -> Iterator[bytes | memoryview]:
    """What an array says, as bytes that do not depend on how Arrow holds it."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_binary(values.type) or pa.types.is_string(values.type):
        lengths = pc.binary_length(values).to_numpy()
        yield lengths.astype("<i4").tobytes()
        _, offsets, data = values.buffers()
        if lengths.any():
            start = int(np.frombuffer(offsets, np.int32)[values.offset])
            yield memoryview(data)[start : start + int(lengths.sum())]
    else:
        numbers = values.flatten() if pa.types.is_fixed_size_list(values.type) else values
        plain = numbers.to_numpy()
        yield plain.astype(plain.dtype.newbyteorder("<")).tobytes()


def _row(values: dict[str, Any]) -> Row:
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Row(**plain)


def body_cells(
    mask: np.ndarray, spacing_mm: tuple[float, float, float]
) -> tuple[Index, Index, bytes]:
    """Which cells hold body: (cell_shape in voxels, grid of cells, bitmap), at most 4096 cells.

    A cell holds body when at least half of its voxels lie in `mask` (bool [Z, Y, X]), so that a
    patch centred in it shows the patient rather than the air beside. Cells are about cubes in mm.
    """
    extent_mm = np.array(mask.shape) * spacing_mm
    side_mm = float(np.prod(extent_mm) / _MAX_CELLS) ** (1 / 3)
    cell = [1, 1, 1]
    while np.prod(_cells_grid(mask.shape, cell)) > _MAX_CELLS:
        cell = [max(1, round(side_mm / step)) for step in spacing_mm]
        side_mm *= 1.05
    starts = [np.arange(0, size, step) for size, step in zip(mask.shape, cell, strict=True)]
    z, y, x = (np.diff(s, append=size) for s, size in zip(starts, mask.shape, strict=True))
    voxels = z[:, None, None] * y[:, None] * x
    bits = _bitmap(2 * _voxels_inside(mask, starts) >= voxels)
    return _index(cell), _cells_grid(mask.shape, cell), bits


def mask_cells(mask: np.ndarray, cell_shape: Index) -> bytes:
    """Bitmap of the cells (see `body_cells`) with at least one voxel of `mask`, bool [Z, Y, X]."""
    starts = [np.arange(0, size, step) for size, step in zip(mask.shape, cell_shape, strict=True)]
    return _bitmap(_voxels_inside(mask, starts) > 0)


def hu_histogram(hu: np.ndarray) -> tuple[int, ...]:
    """How many voxels (int16 [Z, Y, X]) lie in each bin between HU_EDGES, 50 HU wide.

    The first bin counts whatever is below its upper edge, the last one whatever is above its lower.
    Of more than 2^24 voxels every fourth row is counted, four times: to count all of them takes as
    long as to compress them, and would move no bin of a thousandth of them by more than 1 %.
    """
    step = 4 if hu.size > _COUNTED_VOXELS else 1
    counts = np.zeros(1 << 16, np.int64)
    for plane in hu:  # one after the other: bincount makes 64-bit numbers of its argument
        counts += np.bincount(plane[::step].ravel().view(np.uint16), minlength=len(counts))
    counts *= step
    sorted_counts = np.roll(counts, 1 << 15)  # from -32768 on
    starts = [0, *(HU_EDGES[1:-1] + (1 << 15))]
    return tuple(np.add.reduceat(sorted_counts, starts).tolist())


def _voxels_inside(mask: np.ndarray, starts: Sequence[np.ndarray]) -> np.ndarray:
    """How many voxels of each cell are true."""
    # Whole planes of bytes are added ten times as fast as anything else.
    slabs = np.split(mask.view(np.uint8), starts[0][1:])
    few = max(map(len, slabs)) < 256
    inside = np.stack([slab.sum(axis=0, dtype=np.uint8 if few else np.int32) for slab in slabs])
    for axis in (2, 1):
        inside = np.add.reduceat(inside, starts[axis], axis=axis, dtype=np.int32)
    return inside


def _bitmap(cells: np.ndarray) -> bytes:
    return np.packbits(cells.ravel(), bitorder="little").tobytes()


def _cells_grid(shape: tuple[int, ...], cell: Sequence[int]) -> Index:
    return _index([-(-size // step) for size, step in zip(shape, cell, strict=True)])


def _index(values: Sequence[int]) -> Index:
    z, y, x = values
    return z, y, x
