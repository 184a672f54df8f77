"""Where in two volumes a patch may lie: their common extent, bodies, and masks such as calcium."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from storage.catalogue import Catalogue
from storage.layout import Index

__all__ = ["Foreground"]

# What is needed of a volume: 18 integers, which `_Place` takes apart.
_COLUMNS = ("shape", "frame_origin", "body_box", "cell_shape", "cells_grid")


class _Place(NamedTuple):
    extent: list[int]
    origin: list[int]
    body_low: list[int]
    body_high: list[int]
    cell: list[int]
    grid: list[int]


class Foreground:
    """Looks patches of one shape up in the catalogue's boxes and bitmaps of cells.

    Places u are voxels of the body-centred frame, z, y, x, at which a patch begins. A patch lies in
    a cell when its centre does.
    """

    def __init__(self, rows: Catalogue, patch_shape: Index) -> None:
        self._places = np.hstack([rows.column(name) for name in _COLUMNS]).reshape(-1, 6, 3)
        self._patch_shape = patch_shape
        self._half = np.array(patch_shape, np.int64) // 2
        self._body = rows.bitmaps("body_cells")
        self._mask = rows.bitmaps("mask_cells")

    def origin(self, volume: int) -> list[int]:
        return self._place(volume).origin

    def extent(self, volume: int) -> list[int]:
        return self._place(volume).extent

    def has_mask(self) -> np.ndarray:
        """bool [N]: volumes of which at least one cell is masked."""
        starts, data = self._mask
        marked = np.append(0, np.cumsum(data != 0, dtype=np.int64))
        found: np.ndarray = np.diff(marked[starts]) > 0
        return found

    def common_extent(self, pair: tuple[int, int]) -> tuple[list[int], list[int]] | None:
        """Lowest and highest u with the patch inside both arrays; None when there is none."""
        low, high = [], []
        places = [self._place(volume) for volume in pair]
        for axis, size in enumerate(self._patch_shape):
            low.append(max(-p.origin[axis] for p in places))
            high.append(min(p.extent[axis] - size - p.origin[axis] for p in places))
        return (low, high) if all(a <= b for a, b in zip(low, high, strict=True)) else None

    def common_body(self, pair: tuple[int, int]) -> tuple[list[int], list[int]] | None:
        """As `common_extent`, and with the patch's centre in the boxes round both bodies."""
        extent = self.common_extent(pair)
        if extent is None:
            return None
        low, high = extent
        for volume in pair:
            p = self._place(volume)
            for axis, size in enumerate(self._patch_shape):
                shift = size // 2 + p.origin[axis]
                low[axis] = max(low[axis], p.body_low[axis] - shift)
                high[axis] = min(high[axis], p.body_high[axis] - 1 - shift)
        return (low, high) if all(a <= b for a, b in zip(low, high, strict=True)) else None

    def in_bodies(self, pair: tuple[int, int], u: np.ndarray) -> np.ndarray:
        """bool [N]: whether patches at u [N, 3] lie in both bodies."""
        one, two = (self._marked(self._body, volume, u) for volume in pair)
        both: np.ndarray = np.logical_and(one, two)
        return both

    def in_masks(self, pair: tuple[int, int], u: np.ndarray) -> np.ndarray:
        """bool [N]: whether patches at u [N, 3] lie in a masked cell of at least one volume."""
        one, two = (self._marked(self._mask, volume, u) for volume in pair)
        either: np.ndarray = np.logical_or(one, two)
        return either

    def masked_cell(self, volume: int, number: int) -> tuple[list[int], list[int]]:
        """Lowest and highest u with the patch in one of the volume's masked cells, counted from 0
        and modulo how many there are."""
        starts, data = self._mask
        place = self._place(volume)
        own = data[int(starts[volume]) : int(starts[volume + 1])]
        cells = np.flatnonzero(np.unpackbits(own, bitorder="little"))
        cell = np.unravel_index(int(cells[number % len(cells)]), place.grid)
        low = [
            int(i) * n - o - size // 2
            for i, n, o, size in zip(cell, place.cell, place.origin, self._patch_shape, strict=True)
        ]
        return low, [a + n - 1 for a, n in zip(low, place.cell, strict=True)]

    def _place(self, volume: int) -> _Place:
        return _Place._make(self._places[volume].tolist())

    def _marked(
        self, bitmaps: tuple[np.ndarray, np.ndarray], volume: int, u: np.ndarray
    ) -> np.ndarray:
        starts, data = bitmaps
        begin, end = int(starts[volume]), int(starts[volume + 1])
        if begin == end:
            return np.zeros(len(u), bool)
        # As arrays: this is most of the work of drawing a visit.
        _, origin, _, _, cell, (_, rows, columns) = self._places[volume]
        z, y, x = ((u + (origin + self._half)) // cell).T
        bit = (z * rows + y) * columns + x
        found: np.ndarray = data[begin + (bit >> 3)] >> (bit & 7) & 1 != 0
        return found
