"""The catalogue's file: one Parquet file that vouches for itself; what it lacks does not exist."""

from __future__ import annotations

import hashlib
import io
import re
import secrets
from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.catalogue import SCHEMA, SELDOM, Catalogue
from storage.errors import StoreCorrupt, StoreError, StoreMissing
from storage.place import Place

__all__ = ["CATALOGUE", "CATALOGUE_VERSION", "read_catalogue", "write_catalogue"]

CATALOGUE = "catalogue.parquet"
CATALOGUE_VERSION = 2

# The digest of the whole file stands inside it, over a placeholder: a Parquet file may not be
# followed by other bytes, and a second file beside it could not be replaced in the same instant.
_DIGEST_KEY = "pmg.sha256"
_VERSION_KEY = "pmg.catalogue_version"
_NO_DIGEST = b"0" * 64
_STATED = re.compile(rb"(?s:.*)pmg\.sha256[^0-9a-f]{1,4}([0-9a-f]{64})")

# What a file may ask of its reader. A volume's row has about 1.5 kB, its SHA-256s alone 128 bytes.
_MAX_BYTES = 2 * 2**30
_MAX_ROWS = 1_000_000
_ROWS_AT_ONCE = 8192
_MAX_ROW_BYTES = 64 * 2**10
_MAX_VOXELS = 2**33  # of one volume; a CT of the trunk has 2^26

_SHARED = [field.name for field in SCHEMA if pa.types.is_dictionary(field.type)]
_ARRAY_PATH = r"^volumes/[a-z0-9][a-z0-9-]*$"


def write_catalogue(place: Place, catalogue: Catalogue, *, expected: str | None = None) -> str:
    """Replace the place's catalogue in one instant and return the mark of its version.

    Raises StoreError when the version there is not `expected` any more.
    """
    buffer = io.BytesIO()
    with pq.ParquetWriter(
        buffer, SCHEMA, compression="zstd", write_statistics=False, use_dictionary=_SHARED
    ) as writer:
        writer.write_table(catalogue.table)
        writer.add_key_value_metadata(
            {
                # The same rows written again are another version.
                "pmg.written": secrets.token_hex(16),
                _VERSION_KEY: str(CATALOGUE_VERSION),
                _DIGEST_KEY: _NO_DIGEST.decode(),
            }
        )
    data = buffer.getvalue()
    stated = _STATED.match(data)
    assert stated is not None
    digest = _sha256(data, stated).encode()
    signed = data[: stated.start(1)] + digest + data[stated.end(1) :]
    return place.replace(CATALOGUE, signed, expected=expected)


def read_catalogue(place: Place) -> tuple[Catalogue, str]:
    """The rows and the mark of their version.

    Raises StoreCorrupt when any byte differs from what was written, or when the file asks for more
    memory than a catalogue needs; StoreError when another version of the program wrote it.
    """
    path = f"{place}/{CATALOGUE}"
    try:
        data, mark = place.read_version(CATALOGUE, limit=_MAX_BYTES)
    except StoreMissing as error:
        raise StoreCorrupt(f"{path}: the catalogue is missing, so no volume exists") from error
    # Checked before Parquet sees it: an altered footer can ask its reader for any amount of memory.
    stated = _STATED.match(data)
    if stated is None:
        raise StoreCorrupt(f"{path}: truncated or altered; it does not state its SHA-256")
    expected, actual = stated[1].decode(), _sha256(data, stated)
    if actual != expected:
        raise StoreCorrupt(
            f"{path}: altered after writing; SHA-256 is {actual[:12]}..., "
            f"it states {expected[:12]}..."
        )
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            version = int(file.metadata.metadata[_VERSION_KEY.encode()])
            if version != CATALOGUE_VERSION:
                raise StoreError(
                    f"{path}: catalogue version {version}; this program reads {CATALOGUE_VERSION}"
                )
            _refuse_large(path, file)
            names = [name for name in SCHEMA.names if name not in SELDOM]
            catalogue = Catalogue(_read(file, names), partial(_read_seldom, data))
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise StoreCorrupt(
            f"{path}: not a catalogue ({type(error).__name__}: {str(error)[:200]})"
        ) from error
    _refuse_absurd(path, catalogue)
    return catalogue, mark


def _read_seldom(data: bytes) -> pa.Table:
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        return _read(file, SELDOM)


def _read(file: pq.ParquetFile, names: Sequence[str]) -> pa.Table:
    """Columns one after the other, a few rows at a time: at once they would take twice the memory,
    which matters for large cohorts."""
    columns = []
    for name in names:
        batches = file.iter_batches(_ROWS_AT_ONCE, columns=[name], use_threads=False)
        column = pa.Table.from_batches(batches, pa.schema([SCHEMA.field(name)]))
        columns.append(column.unify_dictionaries().column(0).combine_chunks())
    return pa.table(columns, schema=pa.schema([SCHEMA.field(name) for name in names]))


def _sha256(data: bytes, stated: re.Match[bytes]) -> str:
    """Digest of the file with the placeholder where it states its digest."""
    view = memoryview(data)
    digest = hashlib.sha256(view[: stated.start(1)])
    digest.update(_NO_DIGEST)
    digest.update(view[stated.end(1) :])
    return digest.hexdigest()


def _refuse_large(path: str, file: pq.ParquetFile) -> None:
    """Refuse a small file that would become large in memory, before any row is decoded.

    Columns of shared texts stay dictionaries in memory; in the others a dictionary could repeat one
    long value for every row, which no size that the file states would tell.
    """
    if not file.schema_arrow.remove_metadata().equals(SCHEMA):
        raise StoreCorrupt(f"{path}: has other columns than catalogue {CATALOGUE_VERSION}")
    rows, size = file.metadata.num_rows, 0
    for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            size += column.total_uncompressed_size
            coded = any("DICTIONARY" in encoding for encoding in column.encodings)
            if coded and column.path_in_schema not in _SHARED:
                raise StoreCorrupt(f"{path}: column {column.path_in_schema} has a dictionary")
    if rows > _MAX_ROWS or size > _MAX_ROW_BYTES * (rows + 1):
        raise StoreCorrupt(
            f"{path}: {rows} rows of {size} bytes; expected at most {_MAX_ROWS} rows of "
            f"{_MAX_ROW_BYTES} bytes each"
        )


def _refuse_absurd(path: str, rows: Catalogue) -> None:
    """Refuse rows that no writer writes: what follows relies on them."""
    shape, cell, grid = (
        rows.column(n).astype(float) for n in ("shape", "cell_shape", "cells_grid")
    )
    bits = np.diff(rows.bitmaps()[0])
    masked = np.diff(rows.bitmaps("mask_cells")[0])
    expected = np.ceil(grid.prod(axis=1) / 8)
    names = rows.array("volume_id")
    inside = pc.match_substring_regex(rows.array("array_path"), _ARRAY_PATH)
    outside = ~inside.to_numpy(zero_copy_only=False).astype(bool)
    for wrong, what in (
        (outside, "an array path that leads out of the store"),
        ((shape < 1).any(axis=1) | (shape.prod(axis=1) > _MAX_VOXELS), "an impossible shape"),
        ((cell < 1).any(axis=1), "an impossible cell shape"),
        ((grid != np.ceil(shape / np.maximum(cell, 1))).any(axis=1), "cells that do not fit"),
        ((bits != expected) | ((masked != 0) & (masked != expected)), "a bitmap of another size"),
        (~np.isin(rows.column("domain"), (1, 2)), "a domain other than 1 and 2"),
    ):
        if wrong.any():
            raise StoreCorrupt(
                f"{path}: volume {names[int(np.argmax(wrong))].as_py()!r:.80} has {what}"
            )
    if pc.count_distinct(names).as_py() != len(names):
        raise StoreCorrupt(f"{path}: names a volume twice")
