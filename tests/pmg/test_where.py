"""Places of patches and their Fourier features."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SPACING_MM, places

from pmg.where import POSITION_FEATURES, Where


@settings(max_examples=40)
@given(
    dims=st.sampled_from([2, 3]),
    stride=st.sampled_from([1, 2, 4]),
    first=st.integers(0, 3),
    size=st.integers(1, 3),
    seed=st.integers(0, 100),
)
def test_place_of_a_crop_is_the_crop_of_the_place(dims, stride, first, size, seed):
    whole = places(2, seed)
    offset = torch.zeros(3)
    offset[3 - dims :] = first * stride
    crop = Where(whole.start_mm + offset * torch.tensor(SPACING_MM), SPACING_MM)
    inside = (..., *[slice(first, first + size)] * dims)
    torch.testing.assert_close(
        crop.features([size] * dims, stride),
        whole.features([6] * dims, stride)[inside],
        atol=1e-5,
        rtol=0,
    )


def test_place_features_are_waves_of_the_blocks_centres_along_z_y_x():
    where = Where(torch.tensor([[30.0, -40.0, 10.0]]), (5.0, 2.0, 1.0))
    features = where.features([3, 2], stride=4)[0].numpy()
    z, y, x = 30.0, -40 + (1 * 4 + 1.5) * 2, 10 + (0 * 4 + 1.5) * 1  # of block [1, 0]
    expected = []
    for coordinate in (z, y, x):
        angles = [2 * math.pi * coordinate / wave for wave in (800, 400, 200, 100)]
        expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    np.testing.assert_allclose(features[:, 1, 0], expected, atol=1e-5)


def test_every_block_has_all_features_and_a_2d_patch_one_z():
    features = places(3).features([2, 4], stride=4)
    assert features.shape == (3, POSITION_FEATURES, 2, 4)
    assert features.dtype == torch.float32
    z = features[:, : POSITION_FEATURES // 3]
    assert torch.equal(z, z[..., :1, :1].expand_as(z))
