"""The fixed linear path through the latent, against scipy's cosine transform."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from tiny import patches

from pmg.cosine import CosineSkip


@pytest.mark.parametrize(("dims", "stride"), [(2, 2), (2, 4), (2, 8), (3, 2), (3, 4)])
def test_cosine_basis_is_orthonormal_and_complete(dims, stride):
    skip = CosineSkip(stride**dims, stride, dims)
    basis = skip.basis.flatten(1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(stride**dims), atol=1e-5, rtol=0)
    x = patches(2, 1, *(2 * stride,) * dims)
    torch.testing.assert_close(skip.synthesise(skip.analyse(x)), x, atol=1e-5, rtol=0)


def test_a_stack_of_slices_is_a_block_of_the_transform():
    x = patches(2, 3, 8, 8)
    skip = CosineSkip(3 * 16, 4, 2, slices=3)
    z = skip.analyse(x)
    torch.testing.assert_close(skip.synthesise(z), x, atol=1e-5, rtol=0)
    transform = dctn(x[0, :, 4:, :4].numpy(), norm="ortho")
    order = sorted(np.ndindex(3, 4, 4), key=lambda f: (sum(f), f))
    np.testing.assert_allclose(z[0, :, 1, 0], [transform[f] for f in order], atol=1e-5)
    assert torch.equal(CosineSkip(9, 4, 2, slices=1).basis, CosineSkip(9, 4, 2).basis)


@pytest.mark.parametrize(("dims", "stride"), [(2, 4), (3, 2)])
def test_cosine_path_is_the_transform_of_scipy_lowest_frequencies_first(dims, stride):
    x = patches(1, 1, *(stride,) * dims)
    transform = dctn(x[0, 0].numpy(), norm="ortho")
    order = sorted(np.ndindex(*(stride,) * dims), key=lambda f: (sum(f), f))
    expected = [transform[f] for f in order[:5]]
    z = CosineSkip(5, stride, dims).analyse(x)
    np.testing.assert_allclose(z.flatten(), expected, atol=1e-5)


def test_fewer_channels_keep_the_lowest_frequencies():
    skip = CosineSkip(3, 4, 2)
    flat = torch.full((1, 1, 8, 8), 0.3)
    torch.testing.assert_close(skip.synthesise(skip.analyse(flat)), flat)
    x = patches(1, 1, 8, 8)
    once = skip.synthesise(skip.analyse(x))
    assert (once - x).abs().max() > 0.1
    torch.testing.assert_close(skip.synthesise(skip.analyse(once)), once, atol=1e-5, rtol=0)


def test_channels_beyond_the_frequencies_are_left_to_the_networks():
    skip = CosineSkip(6, 2, 2)
    x = patches(1, 1, 8, 8)
    z = skip.analyse(x)
    assert torch.equal(z[:, 4:], torch.zeros(1, 2, 4, 4))
    torch.testing.assert_close(skip.synthesise(z), x, atol=1e-5, rtol=0)
