"""Tiles: every voxel covered, no seam, the result of the whole at once, and bounded memory."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SPACING_MM, shaken, stream_batch, tiny_config

from pmg.config import Config, DataConfig
from pmg.model import Translator
from pmg.reach import reach
from pmg.tiles import Tiling, blend, blended_slices, continued, tile_starts
from pmg.training import Training, build_modules, torch_engines
from pmg.where import Where
from pmg.window import window_of

EXAMPLES = settings(max_examples=60)


@st.composite
def tilings(draw):
    """A shape of 1 to 3 axes, and how to cut it."""
    axes = draw(st.integers(1, 3))
    stride = [draw(st.sampled_from([1, 2, 4])) for _ in range(axes)]
    tile = [s * draw(st.integers(1, 4)) for s in stride]
    shape = [draw(st.integers(1, 20)) for _ in range(axes)]
    margin = [draw(st.integers(0, 5)) for _ in range(axes)]
    overlap, batch = draw(st.floats(0, 1)), draw(st.integers(1, 9))
    return shape, Tiling(tuple(tile), tuple(margin), tuple(stride), overlap, batch)


@EXAMPLES
@given(cut=tilings())
def test_blend_of_the_identity_is_the_volume(cut):
    shape, tiling = cut
    volume = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 4000 - 1000
    (result,) = blend(lambda tiles, starts: tiles, volume, tiling)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, volume, rtol=1e-5, atol=1e-3)


@EXAMPLES
@given(cut=tilings())
def test_int16_of_numpy_is_taken_as_it_is(cut):
    shape, tiling = cut
    volume = np.random.default_rng(0).integers(-1000, 3000, shape).astype(np.int16)
    (result,) = blend(lambda tiles, starts: tiles, volume, tiling)
    np.testing.assert_allclose(result.numpy(), volume, atol=1e-2)


@EXAMPLES
@given(cut=tilings())
def test_function_is_told_where_each_tile_starts(cut):
    shape, tiling = cut
    axes = [torch.arange(n, dtype=torch.float32) * 100**k for k, n in enumerate(shape)]
    volume = sum(torch.meshgrid(*axes, indexing="ij"))

    def from_starts(tiles, starts):
        local = [torch.arange(t) for t in tiles.shape[2:]]
        outputs = []
        for start in starts.tolist():
            assert all(s % n == 0 for s, n in zip(start, tiling.stride, strict=True))
            grids = torch.meshgrid(
                *[a + s for a, s in zip(local, start, strict=True)], indexing="ij"
            )
            outputs.append(sum(g * 100.0**k for k, g in enumerate(grids)))
        return torch.stack(outputs).unsqueeze(1)

    torch.testing.assert_close(blend(from_starts, volume, tiling)[0], volume, rtol=1e-5, atol=1e-2)


@EXAMPLES
@given(cut=tilings())
def test_what_a_tile_makes_of_its_margin_does_not_count_inside_of_the_volume(cut):
    shape, tiling = cut

    def spoilt_at_the_rim(tiles, starts):
        tiles = tiles.clone()
        for tile, start in zip(tiles[:, 0], starts.tolist(), strict=True):
            for axis, (s, margin) in enumerate(zip(start, tiling.margin, strict=True)):
                stop = s + tile.shape[axis]
                if s > 0:
                    tile.narrow(axis, 0, margin).fill_(1e6)
                if stop < shape[axis] and margin:
                    tile.narrow(axis, tile.shape[axis] - margin, margin).fill_(1e6)
        return tiles

    volume = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        blend(spoilt_at_the_rim, volume, tiling)[0], volume, rtol=1e-5, atol=1e-5
    )


@EXAMPLES
@given(
    stride=st.integers(1, 8),
    tile=st.integers(1, 8),
    margin=st.integers(0, 3),
    extra=st.integers(0, 40),
    overlap=st.floats(0, 1),
)
def test_tiles_start_at_multiples_of_the_stride_and_give_every_voxel(
    stride, tile, margin, extra, overlap
):
    tile, margin = tile * stride, margin * stride
    seen = tile + 2 * margin
    length = seen + extra * stride
    starts = tile_starts(length, seen, tile, overlap, stride)
    assert all(s % stride == 0 for s in starts)
    assert starts == sorted(set(starts))
    given_by = {v for s in starts for v in range(s + margin, s + margin + tile)}
    assert given_by | set(range(margin)) | set(range(length - margin, length)) == set(range(length))


@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_neighbours_share_at_least_the_asked_part_of_what_they_give(overlap):
    starts = tile_starts(1000, 140, 100, overlap, 4)
    assert max(b - a for a, b in itertools.pairwise(starts)) <= 100 * (1 - overlap)


def test_a_volume_is_continued_by_its_border_to_whole_latent_positions():
    seen = []
    volume = torch.arange(6.0).view(2, 3)
    tiling = Tiling(tile=(64, 64), margin=(8, 8), stride=(2, 2))
    blend(lambda tiles, starts: seen.append(tiles) or tiles, volume, tiling)
    (tile,) = seen
    expected = torch.tensor([[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]).float()
    assert torch.equal(tile[0, 0], expected)
    assert torch.equal(continued(volume[None, None], 2)[0, 0], expected)


@pytest.mark.parametrize(("overlap", "smooth"), [(0.5, True), (0.0, False)])
def test_tiles_that_disagree_are_blended_without_a_seam(overlap, smooth):
    def brightness_of_the_tile(tiles, starts):
        step = 16 if smooth else 32
        return ((starts[:, 0] // step) % 2).view(-1, 1, 1).float().expand_as(tiles)

    tiling = Tiling(tile=(32,), margin=(0,), stride=(4,), overlap=overlap, batch=2)
    (result,) = blend(brightness_of_the_tile, torch.zeros(128), tiling)
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
        Tiling(tile=(1, 16), margin=(0, 0), stride=(1, 4), overlap=0.5, batch=4),
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(4, 12), (8, 12), (12, 12)]


class Counted:
    """A volume that is made where it is read, and knows how far that was."""

    def __init__(self, *shape: int) -> None:
        self.shape, self.read_to = shape, 0

    def __getitem__(self, box):
        extents = [range(*part.indices(n)) for part, n in zip(box, self.shape, strict=True)]
        self.read_to = max(self.read_to, extents[0].stop)
        return np.zeros([len(extent) for extent in extents], np.int16)


@pytest.mark.parametrize("slices", [50, 500])
def test_no_more_slices_are_held_than_one_batch_of_tiles_covers(slices):
    volume = Counted(slices, 20)
    tiling = Tiling(tile=(8, 8), margin=(6, 6), stride=(2, 2), overlap=0.25, batch=3)
    held = 0
    for done, _ in enumerate(blended_slices(lambda t, s: t, volume, tiling), start=1):
        held = max(held, volume.read_to - done)
    # Three tiles in a row start at three heights at most, 6 voxels apart; each sees 8 + 2 * 6.
    assert held <= 20 + 3 * 6


_MEASURED = """
import resource, sys, numpy as np, torch
sys.path.insert(0, {here!r})
from test_tiles import Counted
from pmg.tiles import Tiling, blended_slices
tiling = Tiling(tile=(1, 512, 512), margin=(0, 0, 0), stride=(1, 4, 4), batch=2)
for slices in (12, 240):
    for _ in blended_slices(lambda t, s: t + 1, Counted(slices, 512, 512), tiling):
        pass
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_20_times_the_slices_need_no_more_memory():
    code = _MEASURED.format(here=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    few, many = (int(line) for line in done.stdout.split())
    assert many - few < 24  # MiB; 240 slices in float32 are 240


def trained(config: Config, steps: int = 4) -> Translator:
    """After some steps at a high rate: weights as training leaves them, not as they are drawn."""
    translator, critic = build_modules(config)
    training = Training(
        config, *torch_engines(translator, critic, config), device=torch.device("cpu")
    )
    for step in range(steps):
        training.advance(stream_batch(config, step * config.train.batch))
    return translator.eval()


def fresh(config: Config) -> Translator:
    """As drawn, with the layers that start at zero at the size of a trained model's."""
    return shaken(Translator(config), seed=1, scale=0.05)


FAST = {"lr": 1e-2, "clip": 1.0}
SIZES = {
    "2D": tiny_config(optim=FAST),
    "2D, two halvings": tiny_config(
        model={"width": 8, "downsamplings": 2, "blocks": 1}, optim=FAST
    ),
    "3D": tiny_config(
        model={"blocks": 1, "shared_blocks": 1},
        data={"patch": (16, 16, 16)},
        translate={"tile": (16, 16, 16)},
        optim=FAST,
    ),
}
SHAPES = {2: (2, 117, 150), 3: (70, 58, 66)}


def translation(model: Translator, dims: int):
    """What the network makes of tiles [B, 1, *seen] in HU."""
    window = window_of(DataConfig())
    flat = dims == 2

    def translated(tiles, starts):
        where = Where(
            torch.tensor([[9.0, -90, -80]]) + starts * torch.tensor(SPACING_MM), SPACING_MM
        )
        x = window.to_unit(tiles)
        x, _ = model.translate(1, x.squeeze(2) if flat else x, where)
        return window.to_hu(x).unsqueeze(2) if flat else window.to_hu(x)

    return translated


def scan(*shape: int) -> torch.Tensor:
    """Noisy soft tissue beside fat, with calcium in it."""
    generator = torch.Generator().manual_seed(3)
    hu = 40 + 20 * torch.randn(shape, generator=generator)
    hu[..., : shape[-1] // 3] -= 140
    hu[..., 20:22, 30:32] = 900
    return hu


def at_once(function, hu: torch.Tensor, stride: int, dims: int) -> torch.Tensor:
    """The function of the whole volume, or of whole slices, with nothing of pmg.tiles' cutting."""
    if dims == 3:
        whole = function(continued(hu[None, None], stride), torch.zeros(1, 3))[0, 0]
    else:
        slices = [
            function(continued(one[None, None], stride).unsqueeze(2), torch.tensor([[z, 0, 0]]))
            for z, one in enumerate(hu)
        ]
        whole = torch.cat(slices)[:, 0, 0]
    return whole[tuple(slice(n) for n in hu.shape)]


@pytest.mark.parametrize("weights", [fresh, trained])
@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_tiles_of_any_size_and_overlap_give_what_the_whole_at_once_gives(size, weights):
    config = SIZES[size]
    dims = len(config.data.patch)
    with torch.inference_mode(mode=False):
        model = weights(config)
    function, hu = translation(model, dims), scan(*SHAPES[dims])
    far, stride = reach(model, 1, dims), model.stride

    def tiled(tile: int, margin: int, overlap: float = 0.0) -> torch.Tensor:
        flat = (1,) * (3 - dims)
        tiling = Tiling(
            (*flat, *(tile,) * dims),
            (*(0 for _ in flat), *(margin,) * dims),
            (*flat, *(stride,) * dims),
            overlap,
            batch=4,
        )
        return blend(function, hu, tiling)[0]

    whole = at_once(function, hu, stride, dims)
    assert (whole - hu).abs().mean() > 2  # HU: it does something
    for tile, overlap in ((16, 0.0), (24, 0.25), (32, 0.5)):
        assert (tiled(tile, far, overlap) - whole).abs().max() < 0.5
    # And the margin is what does it.
    assert (tiled(16, 0) - whole).abs().max() > 2


@pytest.mark.parametrize(("norm", "same"), [("none", True), ("group", False), ("instance", False)])
@torch.inference_mode()
def test_norms_that_see_the_tile_make_tiles_differ(norm, same):
    with torch.inference_mode(mode=False):
        model = fresh(tiny_config(model={"norm": norm}))
    tiling = Tiling((1, 32, 32), (0, *[reach(model, 1, 2)] * 2), (1, 2, 2), overlap=0.5, batch=4)
    function, hu = translation(model, 2), scan(1, 120, 150)
    whole = function(hu[None, None], torch.zeros(1, 3))[0, 0]
    difference = (blend(function, hu, tiling)[0] - whole).abs().max()
    assert difference < 0.5 if same else difference > 2
