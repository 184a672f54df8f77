"""How far a network sees, against its gradients and against crops of its input."""

from __future__ import annotations

import pytest
import torch
from tiny import SPACING_MM, shaken, tiny_config
from torch import nn

from pmg.config import load_config
from pmg.model import Translator
from pmg.reach import reach
from pmg.where import Where

SHAPES = {
    "2D": ({}, (16, 16)),
    "two halvings": ({"downsamplings": 2, "blocks": 1}, (16, 16)),
    "nothing shared": ({"shared_blocks": 0, "blocks": 1}, (16, 16)),
    "no skip": ({"skip": False, "position": False}, (16, 16)),
    "3D": ({"blocks": 1}, (16, 16, 16)),
}


def model_of(shape: str, **fields) -> Translator:
    model, patch = SHAPES[shape]
    config = tiny_config(model=model | fields, data={"patch": patch}, translate={"tile": patch})
    return Translator(config)


def all_positive(model: Translator) -> Translator:
    """Weights that can't cancel: what an output can see, its gradient shows."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                module.weight.copy_(torch.rand_like(module.weight) + 0.5)
                module.weight /= module.weight[0].numel() / 4
                module.bias.zero_()
    return model


def origin() -> Where:
    return Where(torch.zeros(1, 3), SPACING_MM)


@pytest.mark.parametrize("shape", SHAPES)
def test_reach_is_the_farthest_voxel_with_a_gradient_wherever_the_voxel_lies_in_its_block(shape):
    torch.manual_seed(0)
    dims = len(SHAPES[shape][1])
    model = all_positive(model_of(shape))
    stated = reach(model, 1, dims)
    stride = model.stride
    length = -(-2 * (stated + 2 * stride) // stride) * stride
    x = torch.full((1, 1, length, *[2 * stride] * (dims - 1)), 0.1)
    x.requires_grad_(True)
    y, _ = model.translate(1, x, origin())
    middle = length // 2 // stride * stride
    tainted = []
    for voxel in range(middle, middle + stride):
        (gradient,) = torch.autograd.grad(y[0, 0, voxel].sum(), x, retain_graph=True)
        seen = gradient[0, 0].flatten(1).amax(dim=1).nonzero().flatten()
        # The tiles with most of the voxel's surroundings that leave some of what it sees out.
        start = (int(seen.min()) // stride + 1) * stride
        stop = int(seen.max()) // stride * stride
        tainted += [voxel - start + 1, stop - voxel]
    assert max(tainted) == stated


@pytest.mark.parametrize("shape", ["2D", "two halvings", "3D"])
@torch.no_grad()
def test_voxels_within_reach_of_a_border_are_the_only_ones_that_a_crop_changes(shape):
    dims = len(SHAPES[shape][1])
    model = shaken(model_of(shape), scale=0.1)
    stated, stride = reach(model, 1, dims), model.stride
    cut = 2 * stride
    length = cut + -(-(stated + 4 * stride) // stride) * stride
    x = torch.rand((1, 1, length, *[2 * stride] * (dims - 1)))
    whole, _ = model.translate(1, x, origin())
    place = Where(torch.tensor([[0.0, 0, 0]]), SPACING_MM)
    axis = 3 - dims
    place.start_mm[0, axis] = cut * SPACING_MM[axis]
    cropped, _ = model.translate(1, x[:, :, cut:], place)
    apart = (whole[:, :, cut:] - cropped).flatten(3).abs().amax(dim=3).flatten()
    assert apart[stated:].max() < 1e-5
    assert apart[:stride].min() > 1e-4


def test_presets_reach_as_far_as_their_layers_sum_to():
    # Stem 2; each halving ceil((n + 1) / 2); two 3-wide layers a block; each doubling 2 n + 1
    # and 1; the last 1.
    assert reach(Translator(load_config("faithful")), 1, 2) == 79
    assert reach(Translator(load_config("demo")), 1, 2) == 47
    # Stem 3; halvings as above; 8 blocks; each doubling 2 n and 2; the last 3.
    assert reach(Translator(load_config("unit")), 1, 2) == 81
