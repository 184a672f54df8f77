"""How a volume's voxels are cut into chunks and shards: pure arithmetic, without any I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["CHUNK", "Layout", "layout_of"]

Index = tuple[int, int, int]

# Voxels z, y, x. Flat, so that single slices decode little beside them; wide, so that a patch lies
# in few chunks; 256 KiB, which a core's cache holds and beside which a call from Python is cheap.
CHUNK: Index = (8, 128, 128)

_SHARD_BYTES = 512 * 2**20  # a shard is encoded in memory as a whole


@dataclass(frozen=True)
class Layout:
    """Axes are z, y, x, all in voxels.

    lead: voxels of padding before the volume's first one. The array on disk is that much larger
    than the volume, and begins with it.
    chunk: what is compressed and checked alone. shard: what is one file; whole chunks.
    """

    lead: Index
    chunk: Index
    shard: Index


def layout_of(shape: Sequence[int], origin: Sequence[int]) -> Layout:
    """The layout of a volume whose body-centred frame has its origin at voxel `origin`.

    The padding puts the frame's origin on a chunk's corner, so that the chunks of all volumes have
    their borders at the same places of the frame: two volumes read at one place of the body then
    need the same few chunks each, where chance would add about one along every axis. An axis no
    longer than a chunk is one chunk and needs no padding.
    """
    lead, chunk, counts = [], [], []
    for size, at, whole in zip(shape, origin, CHUNK, strict=True):
        n = min(size, whole)
        before = -at % n if size > n else 0
        lead.append(before)
        chunk.append(n)
        counts.append(-(-(before + size) // n))
    while 2 * _product(counts) * _product(chunk) > _SHARD_BYTES:
        longest = counts.index(max(counts))
        counts[longest] = -(-counts[longest] // 2)
    shard = [count * n for count, n in zip(counts, chunk, strict=True)]
    return Layout(_index(lead), _index(chunk), _index(shard))


def _product(values: Sequence[int]) -> int:
    z, y, x = values
    return z * y * x


def _index(values: Sequence[int]) -> Index:
    z, y, x = values
    return z, y, x
