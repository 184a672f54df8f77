"""The guards of the prior: EM against scikit-learn's, and the re-seeding of dead components."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.mixture import GaussianMixture

from pmg.mixture import fit_mixture, reseed_dead
from pmg.prior import Mixture

WEIGHTS = np.array([0.5, 0.3, 0.2])
MEANS = np.array([[-3.0, 0.0], [2.0, 2.0], [2.0, -3.0]])
STDS = np.array([[0.5, 1.0], [1.0, 0.4], [0.6, 0.6]])


def known_sample(count: int = 4000, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    chosen = rng.choice(3, count, p=WEIGHTS)
    return rng.normal(MEANS[chosen], STDS[chosen])


def log_likelihood(mixture: Mixture, z: np.ndarray) -> float:
    """Mean log-likelihood by scikit-learn's formulas."""
    oracle = GaussianMixture(mixture.mean.shape[0], covariance_type="diag")
    oracle.weights_ = mixture.log_weights.double().exp().numpy()
    oracle.means_ = mixture.mean.double().numpy()
    oracle.covariances_ = mixture.log_var.double().exp().numpy()
    oracle.precisions_cholesky_ = oracle.covariances_**-0.5
    return float(oracle.score(z))


def equal(a: Mixture, b: Mixture) -> bool:
    names = ("log_weights", "mean", "log_var")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


@pytest.mark.parametrize("seed", range(5))
def test_fit_recovers_a_known_mixture(seed):
    fitted = fit_mixture(torch.as_tensor(known_sample()), 3, iterations=100, seed=seed)
    distance = np.linalg.norm(MEANS[:, None] - fitted.mean.numpy()[None], axis=2)
    _, order = linear_sum_assignment(distance)
    np.testing.assert_allclose(fitted.mean.numpy()[order], MEANS, atol=0.1)
    np.testing.assert_allclose((0.5 * fitted.log_var).exp().numpy()[order], STDS, rtol=0.1)
    np.testing.assert_allclose(fitted.log_weights.exp().numpy()[order], WEIGHTS, atol=0.03)


@pytest.mark.parametrize("components", [1, 2, 3, 6])
def test_fit_is_as_likely_as_that_of_scikit_learn(components):
    z = known_sample()
    ours = log_likelihood(fit_mixture(torch.as_tensor(z), components, iterations=100), z)
    theirs = GaussianMixture(components, covariance_type="diag", random_state=0).fit(z).score(z)
    assert ours >= theirs - 0.02


def test_fit_is_a_function_of_its_seed_alone():
    z = torch.as_tensor(known_sample(25_000), dtype=torch.float32)  # more than it looks at
    torch.manual_seed(1)
    first = fit_mixture(z, 3, iterations=3, seed=7)
    torch.manual_seed(2)
    assert equal(first, fit_mixture(z, 3, iterations=3, seed=7))
    assert not equal(first, fit_mixture(z, 3, iterations=3, seed=8))
    assert first.mean.dtype == torch.float32


def test_fit_of_narrow_clusters_far_from_zero_keeps_their_variance():
    rng = np.random.default_rng(0)
    z = torch.as_tensor(rng.normal([[1000.0, -500.0]], [[0.1, 0.02]], (2000, 2)))
    std = (0.5 * fit_mixture(z, 1).log_var).exp()
    np.testing.assert_allclose(std.numpy(), [[0.1, 0.02]], rtol=0.05)


def test_fit_of_identical_vectors_is_that_vector_with_the_least_variance():
    fitted = fit_mixture(torch.tensor([[1.5, -2.0]]).repeat(50, 1), 4, min_var=0.01)
    torch.testing.assert_close(fitted.mean, torch.tensor([[1.5, -2.0]]).repeat(4, 1))
    torch.testing.assert_close(fitted.log_var.exp(), torch.full((4, 2), 0.01))
    assert fitted.log_weights.exp().sum().item() == pytest.approx(1)


@pytest.mark.parametrize("count", [1, 3])
def test_fit_of_fewer_vectors_than_components_is_finite(count):
    z = torch.as_tensor(known_sample(count))
    fitted = fit_mixture(z, 5)
    assert all(t.isfinite().all() for t in (fitted.log_weights, fitted.mean, fitted.log_var))
    assert fitted.log_weights.exp().sum().item() == pytest.approx(1)


def two_of_three_alive() -> tuple[Mixture, torch.Tensor, torch.Tensor]:
    """A mixture whose component 1 is far from all data, its shares, and the data."""
    z = torch.as_tensor(known_sample(1000), dtype=torch.float32)
    mean = torch.as_tensor(MEANS, dtype=torch.float32).clone()
    mean[1] = torch.tensor([80.0, 80.0])
    mixture = Mixture(
        torch.log(torch.tensor([0.6, 0.05, 0.35])),
        mean,
        2 * torch.log(torch.as_tensor(STDS, dtype=torch.float32)),
    )
    return mixture, torch.tensor([0.65, 0.0, 0.35]), z


def test_only_the_dead_component_moves_to_where_the_mixture_explains_least():
    mixture, share, z = two_of_three_alive()
    moved = reseed_dead(mixture, share, z)
    assert moved is not None
    alive = [0, 2]
    assert torch.equal(moved.mean[alive], mixture.mean[alive])
    assert torch.equal(moved.log_var[alive], mixture.log_var[alive])
    ratio = moved.log_weights[alive] - mixture.log_weights[alive]
    torch.testing.assert_close(ratio[0], ratio[1])

    likelihood = mixture.log_prob(z)
    chosen = torch.nonzero((z == moved.mean[1]).all(dim=1)).flatten()
    assert len(chosen) == 1
    assert likelihood[chosen[0]] <= likelihood.quantile(0.05)
    torch.testing.assert_close(moved.log_var[1].exp(), z.var(dim=0, correction=0))
    weights = moved.log_weights.exp()
    assert weights.sum().item() == pytest.approx(1)
    assert weights[1].item() == pytest.approx((1 / 3) / (1 / 3 + 0.95))
    assert moved.log_prob(z).mean() > likelihood.mean()


def test_components_that_died_together_go_to_different_places():
    mixture, _, z = two_of_three_alive()
    moved = reseed_dead(mixture, torch.tensor([1.0, 0.0, 0.0]), z)
    assert moved is not None
    assert not torch.equal(moved.mean[1], moved.mean[2])
    assert torch.equal(moved.mean[0], mixture.mean[0])


def test_reseeding_is_a_function_of_its_seed_alone():
    mixture, share, z = two_of_three_alive()
    torch.manual_seed(1)
    first = reseed_dead(mixture, share, z, seed=3)
    torch.manual_seed(2)
    again = reseed_dead(mixture, share, z, seed=3)
    assert first is not None
    assert again is not None
    assert equal(first, again)


@pytest.mark.parametrize("share", [[0.5, 0.3, 0.2], [0.9, 0.05, 0.05]])
def test_nothing_is_reseeded_while_every_component_has_a_tenth_of_its_share(share):
    mixture, _, z = two_of_three_alive()
    assert reseed_dead(mixture, torch.tensor(share), z) is None


def test_a_single_component_is_never_reseeded():
    mixture = Mixture(torch.zeros(1), torch.zeros(1, 2), torch.zeros(1, 2))
    assert reseed_dead(mixture, torch.zeros(1), torch.randn(10, 2)) is None
