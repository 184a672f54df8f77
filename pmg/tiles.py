"""Whole volumes through a patch network: tiles that see past their borders, blended slice by slice.

A tile shows the network `margin` more voxels on every side than it gives. With the margin that
`pmg.reach` states, every voxel that counts is what the network makes of the whole volume at once,
so that tiles of any size and overlap give one result and no seam can show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Progress", "Tiling", "blend", "blended_slices", "continued", "tile_starts"]

TileFunction = Callable[[Tensor, Tensor], Tensor]
Progress = Callable[[int, int], None]
HU = NDArray[np.floating] | NDArray[np.integer]


@dataclass(frozen=True)
class Tiling:
    """How a volume is cut, along each of its axes.

    tile: voxels that a tile gives. margin: voxels more that it sees on every side and that do not
    count, except where the volume ends. overlap: share of a tile over which it is blended with its
    neighbour. stride: the network's down-sampling; tiles start at its multiples, so that all of
    them see the same latent grid. batch: tiles at once.
    """

    tile: tuple[int, ...]
    margin: tuple[int, ...]
    stride: tuple[int, ...]
    overlap: float = 0.0
    batch: int = 1


@dataclass(frozen=True)
class _Axis:
    """One axis of a volume: first voxels of the tiles, voxels that each sees, weights of each."""

    starts: list[int]
    seen: int
    weights: list[Tensor]


def blend(
    function: TileFunction, volume: HU | Tensor, tiling: Tiling, progress: Progress | None = None
) -> Tensor:
    """All of `blended_slices` in one tensor: [N, *volume's shape], float32."""
    return torch.stack(list(blended_slices(function, volume, tiling, progress)), dim=1)


def blended_slices(
    function: TileFunction, volume: HU | Tensor, tiling: Tiling, progress: Progress | None = None
) -> Iterator[Tensor]:
    """Apply `function` to tiles of `volume`; yield its blended output one slice after another.

    volume: [Z, *S], with as many axes as the tiling. function: (tiles [B, 1, *seen] float32, starts
    [B, axes], the index of each tile's first voxel) -> [B, N, *seen], N images at once. The volume
    is continued by its border values to a multiple of the stride.
    progress is called with (tiles done, tiles in all).
    Yields Z times [N, *S], float32. No more is held than the slices that a batch of tiles covers,
    however many slices there are.
    """
    shape = tuple(volume.shape)
    axes = [
        _axis(n, tile, margin, tiling.overlap, stride)
        for n, tile, margin, stride in zip(
            shape, tiling.tile, tiling.margin, tiling.stride, strict=True
        )
    ]
    choices = list(product(*(range(len(axis.starts)) for axis in axes)))
    sums: dict[int, Tensor] = {}
    inside = (slice(None), *(slice(n) for n in shape[1:]))
    for first in range(0, len(choices), tiling.batch):
        chosen = choices[first : first + tiling.batch]
        starts = [[axis.starts[k] for axis, k in zip(axes, c, strict=True)] for c in chosen]
        tiles = torch.stack([_cut(volume, start, axes) for start in starts]).unsqueeze(1)
        outputs = function(tiles, torch.tensor(starts))
        for choice, start, output in zip(chosen, starts, outputs, strict=True):
            _add(sums, output.float(), start, choice, axes, shape)
        done = first + len(chosen)
        if progress is not None:
            progress(done, len(choices))
        # Tiles come in the order of their first slice: what lies before the next one is complete.
        following = axes[0].starts[choices[done][0]] if done < len(choices) else shape[0]
        for z in sorted(z for z in sums if z < following):
            yield sums.pop(z)[inside]


def continued(x: Tensor, stride: int) -> Tensor:
    """x [B, 1, *S] continued by its border to multiples of the stride, two strides at least."""
    padding: list[int] = []
    for n in reversed(x.shape[2:]):
        padding += [0, _latent_extent(n, stride) - n]
    return F.pad(x, padding, mode="replicate") if any(padding) else x


def tile_starts(length: int, seen: int, tile: int, overlap: float, stride: int) -> list[int]:
    """First voxels of the tiles that cover `length` voxels (a multiple of stride, >= seen).

    A tile sees `seen` voxels, of which `tile` count; neighbours share `overlap` of the latter.
    """
    step = max(stride, int(tile * (1 - overlap)) // stride * stride)
    starts = list(range(0, length - seen + 1, step))
    if starts[-1] + seen < length:
        starts.append(length - seen)
    return starts


def _axis(n: int, tile: int, margin: int, overlap: float, stride: int) -> _Axis:
    margin = -(-margin // stride) * stride
    length = _latent_extent(n, stride)
    seen = min(length, tile + 2 * margin)
    starts = tile_starts(length, seen, tile, overlap, stride)
    ramp = max(1, int(tile * overlap))
    weights = torch.zeros(len(starts), length)
    for row, start in zip(weights, starts, strict=True):
        before, after = margin * (start > 0), margin * (start + seen < length)
        row[start + before : start + seen - after] = _rise(seen - before - after, ramp)
    weights /= weights.sum(dim=0)
    return _Axis(
        starts,
        seen,
        [row[start : start + seen] for row, start in zip(weights, starts, strict=True)],
    )


def _latent_extent(n: int, stride: int) -> int:
    """The least multiple of the stride; two strides: a network may reflect two border voxels."""
    return max(-(-n // stride), 2 if stride > 1 else 1) * stride


def _rise(length: int, ramp: int) -> Tensor:
    """Weights that rise smoothly from both ends over `ramp` voxels: [length]."""
    position = torch.arange(length, dtype=torch.float32)
    rise = ((torch.minimum(position, length - 1 - position) + 0.5) / ramp).clamp(max=1)
    return (rise.square() * (3 - 2 * rise)).clamp_min(1e-6)


def _cut(volume: HU | Tensor, start: Sequence[int], axes: Sequence[_Axis]) -> Tensor:
    """A tile, float32; what lies beyond the volume's end is its border."""
    box = tuple(
        slice(min(s, n - 1), s + axis.seen)
        for s, n, axis in zip(start, volume.shape, axes, strict=True)
    )
    part = torch.as_tensor(volume[box]).float()
    padding: list[int] = []
    for axis, n in zip(reversed(axes), reversed(part.shape), strict=True):
        padding += [0, axis.seen - n]
    if not any(padding):
        return part
    return F.pad(part[None, None], padding, mode="replicate")[0, 0]


def _add(
    sums: dict[int, Tensor],
    output: Tensor,
    start: Sequence[int],
    choice: Sequence[int],
    axes: Sequence[_Axis],
    shape: Sequence[int],
) -> None:
    """Add a tile's output times its weights to the slices that it touches."""
    window = torch.ones(())
    for axis, k in zip(axes[1:], choice[1:], strict=True):
        window = window.unsqueeze(-1) * axis.weights[k]
    box = [slice(s, s + axis.seen) for s, axis in zip(start[1:], axes[1:], strict=True)]
    extents = [axis.starts[-1] + axis.seen for axis in axes[1:]]
    for depth, weight in enumerate(axes[0].weights[choice[0]]):
        z = start[0] + depth
        if weight == 0 or z >= shape[0]:
            continue
        if z not in sums:
            sums[z] = torch.zeros(len(output), *extents)
        sums[z][:, *box] += output[:, depth].cpu() * (window * weight)
