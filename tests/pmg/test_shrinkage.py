"""The latent without the scan's noise: against quadrature, and better than the latent with it."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pmg.prior import Mixture
from pmg.shrinkage import latent_noise, shrunk


def mixture(weights, mean, std) -> Mixture:
    return Mixture(
        torch.tensor(weights).log(), torch.tensor(mean), torch.tensor(std).square().log()
    )


# A flat tissue, another beside it, and what is of many values: borders, vessels, plaques.
TISSUES = mixture(
    [0.5, 0.3, 0.2], [[0.0, 0.0], [1.0, 0.1], [0.5, 0.0]], [[0.06, 0.05]] * 2 + [[1.0, 0.8]]
)
NOISE = 0.05


def scans(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """z of TISSUES less the noise, and two scans of it: [1, 2, count] each."""
    rng = np.random.default_rng(seed)
    k = rng.choice(
        3,
        count,
        p=TISSUES.log_weights.exp().double().numpy()
        / TISSUES.log_weights.exp().double().sum().item(),
    )
    clean = (TISSUES.log_var.exp().numpy() - NOISE**2).clip(0) ** 0.5
    z = rng.normal(TISSUES.mean.numpy()[k], clean[k])
    both = [z + rng.normal(0, NOISE, z.shape) for _ in range(2)]
    z, m, beside = (torch.from_numpy(a.T[None]).float() for a in (z, *both))
    return z, m, beside


@settings(deadline=None, max_examples=50)
@given(
    mean=st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=3),
    std=st.lists(st.floats(0.25, 2, width=32), min_size=3, max_size=3),
    noise=st.floats(0.03125, 0.1875, width=32),
    m=st.floats(-3, 3, width=32),
)
def test_it_is_the_posterior_mean_by_quadrature(mean, std, noise, m):
    prior = mixture([0.2, 0.3, 0.5], [[a] for a in mean], [[s] for s in std])
    got = shrunk(torch.full((1, 1, 1), m), prior, torch.full((3, 1), noise**2)).item()

    z = np.linspace(-15, 15, 60_001)
    clean = np.sqrt(np.square(std) - noise**2)
    parts = [
        w * np.exp(-0.5 * ((z - a) / s) ** 2) / s
        for w, a, s in zip([0.2, 0.3, 0.5], mean, clean, strict=True)
    ]
    weight = np.sum(parts, axis=0) * np.exp(-0.5 * ((m - z) / noise) ** 2)
    assert math.isclose(got, (weight * z).sum() / weight.sum(), abs_tol=2e-4)


def test_without_noise_the_latent_stays_as_it_is():
    _, m, _ = scans(500)
    torch.testing.assert_close(shrunk(m, TISSUES, torch.zeros(3, 2)), m)


def test_it_comes_nearer_to_the_latent_than_the_scan_does_and_one_gaussian_hardly_does():
    z, m, _ = scans(20_000)
    noise = torch.full((3, 2), NOISE**2)
    one = Mixture(torch.zeros(1), m.mean(dim=2), m.var(dim=2).log())

    def error(a: torch.Tensor) -> float:
        return (a - z).square().mean().item()

    assert error(shrunk(m, TISSUES, noise)) < 0.6 * error(m)
    assert error(shrunk(m, one, noise[:1])) > 0.9 * error(m)


def test_what_stands_out_of_its_tissue_keeps_its_height():
    plaque = torch.tensor([[[0.5], [0.8]]])
    kept = shrunk(plaque, TISSUES, torch.full((3, 2), NOISE**2))
    assert ((kept - plaque).abs() < 0.01).all()


def test_the_noise_is_found_in_neighbours_whatever_lies_between_a_few_of_them():
    _, m, beside = scans(20_000)
    beside[:, :, ::10] += 0.3  # a border that one of them lies behind
    found = latent_noise(m, beside, TISSUES).sqrt()
    assert ((found[:2] - NOISE).abs() < 0.12 * NOISE).all()


def test_a_component_that_explains_hardly_anything_has_no_noise():
    _, m, beside = scans(30)
    assert not latent_noise(m, beside, TISSUES).any()
