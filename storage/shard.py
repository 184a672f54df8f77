"""The direct reader: boxes of a sharded array from the byte ranges of the chunks that they touch.

Zarr writes these arrays and is the oracle of this reader's tests. It is not used to read them: it
fetches a shard's index again on every read and awaits chunk after chunk in one event loop. This
reader keeps the indexes, fetches neighbouring chunks in one range, and spends its time in calls
that do not hold the GIL.
"""

from __future__ import annotations

import itertools
import json
import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import ArrayLike

from storage.errors import StoreCorrupt, StoreError
from storage.layout import CHUNK, Index
from storage.place import LocalPlace, Place

__all__ = ["ShardedArray"]

_CHECKSUM = 4  # bytes
_BLOSC_HEADER = 16  # bytes, which is also what blosc may add to data that it cannot compress
_ENTRY = 16  # bytes of a chunk in the shard's index: offset and length, uint64 each
_NO_CHUNK = 2**64 - 1

# Stored bytes that are fetched before they are decoded: from a disk what a core's cache holds, for
# more costs a sixth of the speed; from an object store enough to be worth its latency.
_DISK_BYTES = 2**20
_REMOTE_BYTES = 8 * 2**20
# NumPy asks the kernel for huge pages from here on: fewer misses while a chunk is decoded.
_HUGE_BYTES = 4 * 2**20
# Chunks with a smaller gap between them are read in one range.
_GAP_BYTES = 16 * 2**10

_CRC32C = {"name": "crc32c"}
_LITTLE_ENDIAN = {"name": "bytes", "configuration": {"endian": "little"}}
_COMPRESSORS = ("lz4", "lz4hc", "zstd")


class ShardedArray:
    """One volume's int16 voxels, z, y, x. Safe to share between threads.

    Keeps the indexes of the shards that it has read, 16 bytes for each chunk, and nothing else.
    """

    def __init__(self, place: Place, path: str, metadata: bytes, shape: Sequence[int]) -> None:
        """The array at `path` whose last `shape` voxels along each axis are the volume.

        metadata: its zarr.json. Raises StoreCorrupt unless that describes what this program
        writes: int16, one level of shards with their index at the start, chunks of blosc with a
        CRC-32C, and padding of less than a chunk before the volume. All sizes are then bounded by
        `shape`.
        """
        self.shape = _index(shape)
        self._place = place
        self._path = path
        try:
            self._lead, self.chunk, shard = _understood(json.loads(metadata), self.shape)
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise StoreCorrupt(
                f"{place}/{path}/zarr.json: not of a pmg store ({type(error).__name__}: {error})"
            ) from error
        self._grid = _index([s // c for s, c in zip(shard, self.chunk, strict=True)])
        self._largest = 2 * math.prod(self.chunk) + _BLOSC_HEADER + _CHECKSUM
        self._on_disk = isinstance(place, LocalPlace)
        self._group_bytes = _DISK_BYTES if self._on_disk else _REMOTE_BYTES
        self._indexes: dict[str, np.ndarray] = {}

    @staticmethod
    def working_bytes(tallest: int) -> int:
        """Most memory that one thread in `cut` takes where volumes have up to `tallest` slices.

        A decoded column of chunks, and the stored bytes of a group of columns or of one column.
        """
        n, rows, voxels = CHUNK
        column = 2 * (-(-tallest // n) + 1) * n * rows * voxels
        return max(_HUGE_BYTES, column) + max(_REMOTE_BYTES, column)

    def read(self, start: Sequence[int], shape: Sequence[int]) -> np.ndarray:
        """HU of `shape` from voxel `start` on. Raises what `cut` raises."""
        out = np.empty(shape, np.int16)
        self.cut([start], shape, [out])
        return out

    def cut(self, starts: ArrayLike, shape: Sequence[int], outs: Sequence[np.ndarray]) -> None:
        """Copy several boxes of one shape into `outs`; a chunk that many touch is decoded once.

        starts: [N, 3], the first voxel of each. In memory at once are one column of decoded
        chunks, one under the other, and a few MiB of stored bytes: see `working_bytes`.
        Raises StoreError for a box that reaches out of the volume, StoreCorrupt when a chunk of it
        is missing or does not have its checksum.
        """
        first = np.asarray(starts, np.int64).reshape(-1, 3)
        outside = (first < 0) | (first + shape > self.shape)
        if outside.any():
            box = first[outside.any(axis=1)][0].tolist()
            raise StoreError(
                f"{self._place}/{self._path} has shape {self.shape}; box {tuple(shape)} at "
                f"{tuple(box)} reaches out of it"
            )
        columns = _columns((first + self._lead).tolist(), shape, self.chunk)
        for group in self._groups(columns):
            stored = self._fetch([entry for _, entries in group for entry in entries])
            for column, _ in group:
                self._copy(column, stored, outs)

    def _copy(
        self, column: _Column, stored: Mapping[Index, np.ndarray], outs: Sequence[Any]
    ) -> None:
        """Decode a column of chunks, one under the other, and copy what each box has of it."""
        levels = sorted(column.levels)
        bottom, n = levels[0], self.chunk[0]
        shape = ((levels[-1] + 1 - bottom) * n, *self.chunk[1:])
        voxels = _SCRATCH.memory("decoded", 2 * math.prod(shape))
        decoded = np.frombuffer(voxels, np.int16).reshape(shape)
        for level in levels:
            place = (level, column.y, column.x)
            z = (level - bottom) * n
            self._decode(place, stored[place], decoded[z : z + n])
        for box, z, (to_y, from_y), (to_x, from_x) in column.pieces:
            out = outs[box]
            low = z - bottom * n
            out[:, to_y, to_x] = decoded[low : low + len(out), from_y, from_x]

    def _groups(self, columns: Iterable[_Column]) -> Iterator[list[tuple[_Column, list[_Entry]]]]:
        """Columns, with their chunks' entries, that are fetched together: few enough for memory."""
        group: list[tuple[_Column, list[_Entry]]] = []
        size = 0
        for column in columns:
            entries = [self._entry((z, column.y, column.x)) for z in column.levels]
            length = sum(entry.length for entry in entries)
            if group and size + length > self._group_bytes:
                yield group
                group, size = [], 0
            group.append((column, entries))
            size += length
        if group:
            yield group

    def _fetch(self, entries: list[_Entry]) -> dict[Index, np.ndarray]:
        """The stored bytes of chunks, those that lie next to each other in one range.

        They may be overwritten when this thread fetches again.
        """
        stored = {}
        used = 0
        entries.sort()
        for name, of_shard in itertools.groupby(entries, key=lambda entry: entry.name):
            runs = _runs(of_shard)
            starts = [run[0].offset for run in runs]
            lengths = [run[-1].end - start for run, start in zip(runs, starts, strict=True)]
            scratch = None
            if self._on_disk:
                scratch = _SCRATCH.memory("stored", used + sum(lengths))[used:]
                used += sum(lengths)
            buffers = self._place.read_ranges(name, starts, lengths, scratch)
            for run, start, buffer in zip(runs, starts, buffers, strict=True):
                data = np.frombuffer(buffer, np.uint8)
                for entry in run:
                    stored[entry.place] = data[entry.offset - start : entry.end - start]
        return stored

    def _entry(self, place: Index) -> _Entry:
        """Where a chunk's bytes lie. Raises StoreCorrupt for one that has none."""
        (z, y, x), (nz, ny, nx) = place, self._grid
        name = f"{self._path}/c/{z // nz}/{y // ny}/{x // nx}"
        index = self._indexes.get(name)
        if index is None:
            index = self._indexes[name] = self._read_index(name)
        offset, length = index[z % nz, y % ny, x % nx].tolist()
        if offset == _NO_CHUNK:
            raise StoreCorrupt(f"{self._where(place)} is missing")
        if not _BLOSC_HEADER + _CHECKSUM <= length <= self._largest:
            raise StoreCorrupt(
                f"{self._where(place)} has {length} bytes; expected at most {self._largest}"
            )
        return _Entry(name, offset, length, place)

    def _read_index(self, name: str) -> np.ndarray:
        """[z, y, x, 2] uint64 offset and length of a shard's chunks."""
        size = _ENTRY * math.prod(self._grid)
        (buffer,) = self._place.read_ranges(name, [0], [size + _CHECKSUM])
        data = np.frombuffer(buffer, np.uint8)
        if google_crc32c.value(data[:size]) != int.from_bytes(data[size:].tobytes(), "little"):
            raise StoreCorrupt(f"{self._place}/{name}: its index is damaged: not its CRC-32C")
        return data[:size].view("<u8").reshape(*self._grid, 2)

    def _decode(self, place: Index, data: np.ndarray, out: np.ndarray) -> None:
        body = data[:-_CHECKSUM]
        if google_crc32c.value(body) != int.from_bytes(data[-_CHECKSUM:], "little"):
            raise StoreCorrupt(f"{self._where(place)} is damaged: not its CRC-32C")
        # Blosc writes as many bytes as its header says, and leaves the rest of `out` as it was.
        size = int.from_bytes(body[4:8], "little")
        if size != out.nbytes:
            raise StoreCorrupt(
                f"{self._where(place)} decodes to {size} bytes; expected {out.nbytes}"
            )
        try:
            blosc.decompress(body, out)
        except (RuntimeError, ValueError) as error:
            raise StoreCorrupt(f"{self._where(place)} is damaged: {error}") from error

    def _where(self, place: Index) -> str:
        return f"{self._place}/{self._path}: chunk {place}"


class _Scratch(threading.local):
    """Memory that a thread reads and decodes into again and again: what is fresh costs as much as
    the decoding, for none of it is in the core's cache."""

    def __init__(self) -> None:
        self._memory: dict[str, memoryview] = {}

    def memory(self, use: str, size: int) -> memoryview:
        """`size` bytes that are this thread's until it asks for the same use again."""
        memory = self._memory.get(use)
        if memory is None or len(memory) < size:
            memory = self._memory[use] = np.empty(max(size, _HUGE_BYTES), np.uint8).data
        return memory[:size]


_SCRATCH = _Scratch()


class _Entry(NamedTuple):
    """Where the bytes of the chunk at `place` of the array's grid lie."""

    name: str
    offset: int
    length: int
    place: Index

    @property
    def end(self) -> int:
        return self.offset + self.length


def _runs(entries: Iterable[_Entry]) -> list[list[_Entry]]:
    """Entries of one shard, by offset, in parts that are each read in one range."""
    runs: list[list[_Entry]] = []
    end = -1
    for entry in entries:
        if not runs or entry.offset > end + _GAP_BYTES:
            runs.append([])
        runs[-1].append(entry)
        end = entry.end
    return runs


# Where an axis of a box lies in one chunk: as a slice of the box, and as one of the chunk.
_Part = tuple[slice, slice]


class _Column(NamedTuple):
    """Chunks one under the other, and what the boxes take of them.

    levels: places in the grid along z. pieces: number of a box, its first voxel's z, its parts
    along y and x.
    """

    y: int
    x: int
    levels: set[int]
    pieces: list[tuple[int, int, _Part, _Part]]


def _columns(starts: list[list[int]], shape: Sequence[int], chunk: Index) -> list[_Column]:
    columns: dict[tuple[int, int], _Column] = {}
    for box, (z, y, x) in enumerate(starts):
        levels = range(z // chunk[0], (z + shape[0] - 1) // chunk[0] + 1)
        along_x = _parts(x, shape[2], chunk[2])
        for row, part_y in _parts(y, shape[1], chunk[1]):
            for place, part_x in along_x:
                column = columns.get((row, place))
                if column is None:
                    column = columns[row, place] = _Column(row, place, set(), [])
                column.levels.update(levels)
                column.pieces.append((box, z, part_y, part_x))
    return list(columns.values())


@lru_cache(maxsize=4096)
def _parts(start: int, size: int, chunk: int) -> list[tuple[int, _Part]]:
    """The chunks that an axis of a box touches, and where in each it lies."""
    parts = []
    end = start + size
    for place in range(start // chunk, -(-end // chunk)):
        low, high = max(start, place * chunk), min(end, (place + 1) * chunk)
        shift = place * chunk
        parts.append((place, (slice(low - start, high - start), slice(low - shift, high - shift))))
    return parts


def _understood(document: Any, shape: Index) -> tuple[Index, Index, Index]:
    """(lead, chunk, shard) of a zarr.json. Raises ValueError for one that differs from ours."""
    array = _index(document["shape"])
    shard = _index(document["chunk_grid"]["configuration"]["chunk_shape"])
    (sharding,) = document["codecs"]
    chunk = _index(sharding["configuration"]["chunk_shape"])
    inner = sharding["configuration"]["codecs"]
    compressor = inner[1]["configuration"]
    ours = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(array),
        "data_type": "int16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shard)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": list(chunk),
                    "codecs": [
                        _LITTLE_ENDIAN,
                        {"name": "blosc", "configuration": compressor},
                        _CRC32C,
                    ],
                    "index_codecs": [_LITTLE_ENDIAN, _CRC32C],
                    "index_location": "start",
                },
            }
        ],
        "storage_transformers": [],
    }
    free = {"attributes", "fill_value", "dimension_names"}
    for key in sorted(ours.keys() | document.keys() - free):
        if document.get(key, [] if key == "storage_transformers" else None) != ours.get(key):
            raise ValueError(f"{key} is {document.get(key)}; expected {ours.get(key)}")
    if compressor["typesize"] != 2 or compressor["cname"] not in _COMPRESSORS:
        raise ValueError(f"blosc is {compressor}; expected typesize 2 by one of {_COMPRESSORS}")
    lead = _index([n - size for n, size in zip(array, shape, strict=True)])
    for before, size, of_chunk, of_shard in zip(lead, array, chunk, shard, strict=True):
        if not 0 <= before < of_chunk <= size:
            raise ValueError(f"shape {array} in chunks of {chunk}; the catalogue says {shape}")
        if of_shard % of_chunk or not of_chunk <= of_shard < size + of_chunk:
            raise ValueError(f"shards of {shard} for {array} in chunks of {chunk}")
    return lead, chunk, shard


def _index(values: Sequence[int]) -> Index:
    z, y, x = (int(v) for v in values)
    return z, y, x
