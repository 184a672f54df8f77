"""Whole volumes through a patch network: overlapping tiles, blended so that no seam shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Progress", "blend", "tile_starts"]

TileFunction = Callable[[Tensor, Tensor], Tensor]
Progress = Callable[[int, int], None]


def blend(
    function: TileFunction,
    volume: Tensor,
    *,
    tile: Sequence[int],
    overlap: float,
    batch: int,
    stride: Sequence[int],
    progress: Progress | None = None,
) -> Tensor:
    """Apply `function` to overlapping tiles of `volume` and blend its outputs.

    volume: [*S] with as many axes as `tile`. function: (tiles [B, 1, *tile], starts [B, axes],
    the index of each tile's first voxel) -> [B, 1, *tile]. Weights rise smoothly from a tile's
    border over the overlap, so that a voxel is decided by the tiles it lies well inside of.
    Tiles start at multiples of `stride`, the network's down-sampling along each axis: then every
    tile sees the same latent grid. The volume is continued by its border values where it is
    smaller than a tile.
    progress is called with (tiles done, tiles in all).
    Returns [*S], float32.
    """
    shape = volume.shape
    padded = _pad(volume, tile, stride)
    axes = zip(padded.shape, tile, stride, strict=True)
    starts = list(product(*(tile_starts(n, t, overlap, s) for n, t, s in axes)))
    total = torch.zeros(padded.shape, device=volume.device)
    weight = torch.zeros_like(total)
    window = _window(tile, overlap, volume.device)
    done = 0
    for chosen in _chunks(starts, batch):
        boxes = [
            tuple(slice(s, s + t) for s, t in zip(start, tile, strict=True)) for start in chosen
        ]
        tiles = torch.stack([padded[box] for box in boxes]).unsqueeze(1)
        outputs = function(tiles, torch.tensor(chosen, device=volume.device))
        for box, output in zip(boxes, outputs[:, 0].float(), strict=True):
            total[box] += output * window
            weight[box] += window
        done += len(chosen)
        if progress is not None:
            progress(done, len(starts))
    return (total / weight)[tuple(slice(n) for n in shape)]


def tile_starts(length: int, tile: int, overlap: float, stride: int) -> list[int]:
    """First voxels of the tiles that cover `length` voxels (a multiple of stride, >= tile)."""
    step = max(stride, int(tile * (1 - overlap)) // stride * stride)
    starts = list(range(0, length - tile + 1, step))
    if starts[-1] + tile < length:
        starts.append(length - tile)
    return starts


def _pad(volume: Tensor, tile: Sequence[int], stride: Sequence[int]) -> Tensor:
    padding: list[int] = []
    for n, t, s in reversed(list(zip(volume.shape, tile, stride, strict=True))):
        padding += [0, max(t, -(-n // s) * s) - n]
    return F.pad(volume[None, None].float(), padding, mode="replicate")[0, 0]


def _window(tile: Sequence[int], overlap: float, device: torch.device) -> Tensor:
    """Outer product of smooth ramps over the overlap at both ends of each axis."""
    window = torch.ones((), device=device)
    for t in tile:
        ramp = max(1, int(t * overlap))
        position = torch.arange(t, device=device, dtype=torch.float32)
        rise = ((torch.minimum(position, t - 1 - position) + 0.5) / ramp).clamp(max=1)
        profile = rise.square() * (3 - 2 * rise)
        window = window.unsqueeze(-1) * profile
    return window.clamp_min(1e-6)


def _chunks(starts: Sequence[tuple[int, ...]], size: int) -> Iterator[Sequence[tuple[int, ...]]]:
    for first in range(0, len(starts), size):
        yield starts[first : first + size]
