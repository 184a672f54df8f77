"""Blended tiles: every voxel covered, no seam, and the same result as without tiles."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SPACING_MM, shaken, tiny_config

from pmg.config import DataConfig
from pmg.model import Translator
from pmg.tiles import blend, tile_starts
from pmg.where import Where
from pmg.window import window_of

EXAMPLES = settings(max_examples=60, deadline=None)


@st.composite
def tilings(draw):
    """shape, tile, stride and overlap, from 1 to 3 axes."""
    axes = draw(st.integers(1, 3))
    stride = [draw(st.sampled_from([1, 2, 4])) for _ in range(axes)]
    tile = [s * draw(st.integers(1, 4)) for s in stride]
    shape = [draw(st.integers(1, 20)) for _ in range(axes)]
    return shape, tile, stride, draw(st.floats(0, 1))


@EXAMPLES
@given(tiling=tilings(), batch=st.integers(1, 9))
def test_blend_of_the_identity_is_the_volume(tiling, batch):
    shape, tile, stride, overlap = tiling
    volume = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 4000 - 1000
    result = blend(
        lambda tiles, starts: tiles,
        volume,
        tile=tile,
        overlap=overlap,
        batch=batch,
        stride=stride,
    )
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, volume, rtol=1e-5, atol=1e-3)


@EXAMPLES
@given(tiling=tilings())
def test_function_is_told_where_each_tile_starts(tiling):
    shape, tile, stride, overlap = tiling
    axes = [torch.arange(n, dtype=torch.float32) * 100**k for k, n in enumerate(shape)]
    volume = sum(torch.meshgrid(*axes, indexing="ij"))

    def from_starts(tiles, starts):
        local = [torch.arange(t) for t in tile]
        outputs = []
        for start in starts.tolist():
            grids = torch.meshgrid(
                *[a + s for a, s in zip(local, start, strict=True)], indexing="ij"
            )
            outputs.append(sum(g * 100.0**k for k, g in enumerate(grids)))
        assert tiles.shape == (len(starts), 1, *tile)
        return torch.stack(outputs).unsqueeze(1)

    result = blend(from_starts, volume, tile=tile, overlap=overlap, batch=3, stride=stride)
    torch.testing.assert_close(result, volume, rtol=1e-5, atol=1e-3)


@EXAMPLES
@given(
    stride=st.integers(1, 8),
    tile=st.integers(1, 8),
    extra=st.integers(0, 40),
    overlap=st.floats(0, 1),
)
def test_tiles_start_at_multiples_of_the_stride_and_leave_no_gap(stride, tile, extra, overlap):
    length, tile = (tile + extra) * stride, tile * stride
    starts = tile_starts(length, tile, overlap, stride)
    assert all(s % stride == 0 for s in starts)
    assert starts == sorted(set(starts))
    covered = {v for s in starts for v in range(s, s + tile)}
    assert covered == set(range(length))


@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_neighbours_overlap_by_at_least_the_asked_share(overlap):
    starts = tile_starts(1000, 100, overlap, 4)
    assert max(b - a for a, b in itertools.pairwise(starts)) <= 100 * (1 - overlap)


def test_a_volume_smaller_than_a_tile_is_continued_by_its_border():
    seen = []
    volume = torch.arange(6.0).view(2, 3)
    blend(
        lambda tiles, starts: seen.append(tiles) or tiles,
        volume,
        tile=(4, 4),
        overlap=0.5,
        batch=1,
        stride=(2, 2),
    )
    (tile,) = seen
    expected = torch.tensor([[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]).float()
    assert torch.equal(tile[0, 0], expected)


@pytest.mark.parametrize(("overlap", "smooth"), [(0.5, True), (0.0, False)])
def test_tiles_that_disagree_are_blended_without_a_seam(overlap, smooth):
    def brightness_of_the_tile(tiles, starts):
        step = 16 if smooth else 32
        return ((starts[:, 0] // step) % 2).view(-1, 1, 1).float().expand_as(tiles)

    result = blend(
        brightness_of_the_tile, torch.zeros(128), tile=(32,), overlap=overlap, batch=2, stride=(4,)
    )
    steepest = result.diff().abs().max()
    assert steepest < 0.15 if smooth else steepest == 1
    assert result.min() >= 0
    assert result.max() <= 1
    assert result.max() - result.min() > 0.5


def test_progress_counts_tiles_up_to_all_of_them():
    calls = []
    blend(
        lambda tiles, starts: tiles,
        torch.zeros(3, 40),
        tile=(1, 16),
        overlap=0.5,
        batch=4,
        stride=(1, 4),
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(4, 12), (8, 12), (12, 12)]


@pytest.mark.parametrize(("norm", "same"), [("none", True), ("instance", False)])
@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_tiles_and_the_whole_slice_agree_within_1_hu_unless_norms_see_the_tile(norm, same, seed):
    torch.manual_seed(seed)
    model = shaken(Translator(tiny_config(model={"norm": norm})), seed=seed, scale=0.02)
    window = window_of(DataConfig())
    hu = 40 + 30 * torch.randn(1, 160, 160)
    hu[:, :, :50] -= 140  # fat beside organs: tiles with other statistics
    start_mm = torch.tensor([[10.0, -100.0, -80.0]])

    def change(tiles, starts):
        """What the network adds to the HU of tiles [B, 1, 1, h, w]."""
        where = Where(start_mm + starts * torch.tensor(SPACING_MM), SPACING_MM)
        x, _ = model.translate(1, window.to_unit(tiles).squeeze(2), where)
        return window.to_hu(x).unsqueeze(2) - tiles

    whole = change(hu[None, None], torch.zeros(1, 3))[0, 0]
    tiled = blend(change, hu, tile=(1, 96, 96), overlap=0.5, batch=4, stride=(1, 2, 2))
    gain = 5 / whole.abs().mean()  # as if it changed 5 HU on average
    difference = gain * (tiled - whole).abs().max()
    assert difference < 1 if same else difference > 8
