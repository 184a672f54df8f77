"""Noise for the latent of whole volumes: a pure function of seed, sample and place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["PlaceNoise"]

_BLOCK = 16  # latent positions along y and x that are drawn together


class PlaceNoise:
    """Standard normal noise at every latent position of an endless grid, from a seed.

    Tiles that overlap, tiles of any size, and a volume at once see the same numbers at the same
    place, so that a sample of a volume is one sample however it is cut.
    """

    def __init__(self, seed: int, channels: int) -> None:
        self._seed, self._channels = seed, channels

    def at(self, sample: int, start: Sequence[int], extent: Sequence[int]) -> Tensor:
        """[C, d, h, w] float32, from latent position `start` (z, y, x) on; all of it >= 0."""
        (z, y, x), (depth, height, width) = start, extent
        rows = range(y // _BLOCK, -(-(y + height) // _BLOCK))
        columns = range(x // _BLOCK, -(-(x + width) // _BLOCK))
        noise = np.empty(
            (self._channels, depth, len(rows) * _BLOCK, len(columns) * _BLOCK), np.float32
        )
        for slice_index in range(depth):
            for j, row in enumerate(rows):
                for i, column in enumerate(columns):
                    block = self._block(sample, z + slice_index, row, column)
                    at_y, at_x = j * _BLOCK, i * _BLOCK
                    noise[:, slice_index, at_y : at_y + _BLOCK, at_x : at_x + _BLOCK] = block
        top, left = y - rows.start * _BLOCK, x - columns.start * _BLOCK
        return torch.from_numpy(noise[..., top : top + height, left : left + width])

    def _block(self, sample: int, z: int, row: int, column: int) -> np.ndarray:
        # A generator counts in the first word alone: every block has a stream of its own.
        philox = np.random.Philox(key=[self._seed, sample], counter=[0, column, row, z])
        shape = (self._channels, _BLOCK, _BLOCK)
        return np.random.Generator(philox).standard_normal(shape, dtype=np.float32)
