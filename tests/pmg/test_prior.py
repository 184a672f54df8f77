"""The mixture and its KL estimators, against torch.distributions, sampling and autograd."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    Normal,
    kl_divergence,
)
from torch.utils._python_dispatch import TorchDispatchMode

from pmg.prior import (
    KL_ESTIMATORS,
    Mixture,
    MixturePrior,
    active_channels,
    effective_components,
    kl_bound,
    kl_min,
    kl_monte_carlo,
    kl_vade,
    mean_responsibilities,
    responsibilities,
)

SEEDS = st.integers(0, 2**32)
EXAMPLES = settings(max_examples=40)


def random_mixture(
    components: int, channels: int, seed: int, dtype: torch.dtype = torch.float64
) -> Mixture:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return Mixture(
        torch.log_softmax(normal(components), dim=0),
        2 * normal(components, channels),
        normal(components, channels),
    )


def random_posterior(
    *shape: int, seed: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed + 1)
    mean = 2 * torch.randn(shape, generator=generator, dtype=dtype)
    return mean, torch.randn(shape, generator=generator, dtype=dtype) - 1


def component(mixture: Mixture, k: int) -> Independent:
    return Independent(Normal(mixture.mean[k], (0.5 * mixture.log_var[k]).exp()), 1)


def posterior_vectors(mean: Tensor, log_var: Tensor) -> Independent:
    """The posterior of every position, channels last."""
    return Independent(Normal(mean.movedim(1, -1), (0.5 * log_var).exp().movedim(1, -1)), 1)


def as_distribution(mixture: Mixture) -> MixtureSameFamily:
    return MixtureSameFamily(
        Categorical(logits=mixture.log_weights),
        Independent(Normal(mixture.mean, (0.5 * mixture.log_var).exp()), 1),
    )


@EXAMPLES
@given(
    channels=st.integers(1, 8),
    spatial=st.lists(st.integers(1, 4), min_size=0, max_size=3),
    seed=SEEDS,
)
def test_bound_of_one_component_is_the_exact_kl_at_every_position(channels, spatial, seed):
    prior = random_mixture(1, channels, seed)
    mean, log_var = random_posterior(2, channels, *spatial, seed=seed)
    exact = kl_divergence(posterior_vectors(mean, log_var), component(prior, 0))
    torch.testing.assert_close(kl_bound(mean, log_var, prior), exact / channels)


@EXAMPLES
@given(channels=st.integers(1, 16), seed=SEEDS)
def test_fixed_prior_of_one_component_is_the_standard_normal_of_unit(channels, seed):
    prior = MixturePrior(1, channels, learned=False).mixture()
    mean, log_var = random_posterior(3, channels, 2, 2, seed=seed, dtype=torch.float32)
    closed = 0.5 * (mean**2 + log_var.exp() - log_var - 1).mean(dim=1)
    torch.testing.assert_close(kl_bound(mean, log_var, prior), closed)
    torch.testing.assert_close(
        kl_bound(mean, torch.zeros_like(mean), prior), 0.5 * (mean**2).mean(dim=1)
    )


def test_fixed_prior_has_no_trainable_parameter():
    assert not any(p.requires_grad for p in MixturePrior(1, 4, learned=False).parameters())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("components", [1, 2, 5, 16])
def test_bound_is_not_below_the_sampled_kl(components, seed):
    channels, samples = 3, 100_000
    prior = random_mixture(components, channels, seed)
    mean, log_var = random_posterior(2, channels, seed=seed)
    torch.manual_seed(seed)
    q = posterior_vectors(mean, log_var)
    z = q.sample((samples,))
    ratio = q.log_prob(z) - as_distribution(prior).log_prob(z)
    estimate, error = ratio.mean(dim=0), ratio.std(dim=0) / math.sqrt(samples)
    bound = channels * kl_bound(mean, log_var, prior)
    assert (bound >= estimate - 4 * error).all()
    if components == 1:
        assert (bound <= estimate + 4 * error).all()


@EXAMPLES
@given(components=st.integers(1, 8), channels=st.integers(1, 6), seed=SEEDS)
def test_bound_is_between_the_best_component_and_it_less_log_k(components, channels, seed):
    prior = random_mixture(components, channels, seed)
    mean, log_var = random_posterior(2, channels, 3, seed=seed)
    bound, best = kl_bound(mean, log_var, prior), kl_min(mean, log_var, prior)
    assert (bound <= best + 1e-9).all()
    assert (bound >= best - math.log(components) / channels - 1e-9).all()


@EXAMPLES
@given(components=st.integers(1, 8), channels=st.integers(1, 6), seed=SEEDS)
def test_bound_is_never_above_vade(components, channels, seed):
    prior = random_mixture(components, channels, seed)
    mean, log_var = random_posterior(2, channels, 3, seed=seed)
    torch.manual_seed(seed)
    assert (kl_bound(mean, log_var, prior) <= kl_vade(mean, log_var, prior) + 1e-9).all()


def test_monte_carlo_and_vade_agree_with_torch_distributions_on_average():
    components, channels, samples = 4, 3, 40_000
    prior = random_mixture(components, channels, 3)
    mean, log_var = random_posterior(1, channels, 2, seed=3)
    q = posterior_vectors(mean, log_var)
    torch.manual_seed(0)
    z = q.sample((samples,))  # [N, 1, 2, C]
    p = as_distribution(prior)
    log_ratio = q.log_prob(z) - p.log_prob(z)

    joint = torch.stack([component(prior, k).log_prob(z) for k in range(components)], dim=-1)
    gamma = torch.softmax(joint + prior.log_weights, dim=-1)
    kl = torch.stack([kl_divergence(q, component(prior, k)) for k in range(components)], dim=-1)
    vade = (gamma * (kl + gamma.log() - prior.log_weights)).sum(dim=-1)

    for estimator, reference in ((kl_monte_carlo, log_ratio), (kl_vade, vade)):
        many = [t.expand(samples, -1, -1) for t in (mean, log_var)]
        ours = channels * estimator(*many, prior)
        error = ((ours.var(dim=0) + reference[:, 0].var(dim=0)) / samples).sqrt()
        assert ((ours.mean(dim=0) - reference[:, 0].mean(dim=0)).abs() <= 4 * error).all()
        torch.testing.assert_close(ours.std(dim=0), reference[:, 0].std(dim=0), rtol=0.05, atol=0)


def test_more_samples_make_monte_carlo_less_noisy_and_do_not_move_it():
    prior = random_mixture(3, 2, 0)
    mean, log_var = (t.expand(4000, -1) for t in random_posterior(1, 2, seed=0))
    torch.manual_seed(0)
    one, nine = (kl_monte_carlo(mean, log_var, prior, samples=n) for n in (1, 9))
    assert nine.std() == pytest.approx(float(one.std()) / 3, rel=0.1)
    assert nine.mean() == pytest.approx(float(one.mean()), abs=4 * float(one.std()) / 4000**0.5)


@EXAMPLES
@given(components=st.integers(2, 8), seed=SEEDS)
def test_order_of_the_components_does_not_matter(components, seed):
    prior = random_mixture(components, 3, seed)
    mean, log_var = random_posterior(2, 3, 4, seed=seed)
    order = torch.randperm(components, generator=torch.Generator().manual_seed(seed))
    shuffled = Mixture(prior.log_weights[order], prior.mean[order], prior.log_var[order])
    for name, estimator in KL_ESTIMATORS.items():
        values = []
        for mixture in (prior, shuffled):
            torch.manual_seed(seed)
            values.append(estimator(mean, log_var, mixture))
        torch.testing.assert_close(values[0], values[1], msg=lambda m, name=name: f"{name}: {m}")
    torch.testing.assert_close(
        responsibilities(mean, log_var, shuffled), responsibilities(mean, log_var, prior)[:, order]
    )


@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_gradients_are_those_of_finite_differences(name):
    estimator = KL_ESTIMATORS[name]
    prior = random_mixture(3, 2, 1)
    mean, log_var = random_posterior(2, 2, 2, seed=1)

    def value(mean, log_var, logits, component_mean, component_log_var):
        torch.manual_seed(0)
        mixture = Mixture(torch.log_softmax(logits, 0), component_mean, component_log_var)
        return estimator(mean, log_var, mixture)

    inputs = (mean, log_var, prior.log_weights, prior.mean, prior.log_var)
    assert torch.autograd.gradcheck(value, [t.clone().requires_grad_() for t in inputs])


def test_gradient_to_the_log_weights_is_minus_the_responsibilities():
    prior = random_mixture(4, 3, 2)
    mean, log_var = random_posterior(5, 3, seed=2)
    log_weights = prior.log_weights.clone().requires_grad_()
    free = Mixture(log_weights, prior.mean, prior.log_var)
    (gradient,) = torch.autograd.grad(3 * kl_bound(mean, log_var, free).sum(), log_weights)
    torch.testing.assert_close(gradient, -responsibilities(mean, log_var, prior).sum(dim=0))


@EXAMPLES
@given(
    components=st.sampled_from([1, 2, 16, 64]),
    channels=st.sampled_from([1, 8, 64]),
    low=st.floats(-6, 6),
    high=st.floats(-6, 6),
    seed=SEEDS,
)
def test_variances_from_1e_minus_6_to_1e6_stay_finite_with_their_gradients(
    components, channels, low, high, seed
):
    generator = torch.Generator().manual_seed(seed)

    def log_variances(*shape: int) -> Tensor:
        exponents = low + (high - low) * torch.rand(shape, generator=generator)
        return (exponents * math.log(10)).requires_grad_()

    prior = Mixture(
        torch.full((components,), -math.log(components)),
        (10 * torch.randn(components, channels, generator=generator)).requires_grad_(),
        log_variances(components, channels),
    )
    mean = (10 * torch.randn(2, channels, 2, generator=generator)).requires_grad_()
    log_var = log_variances(2, channels, 2)
    leaves = (mean, log_var, prior.mean, prior.log_var)
    for name, estimator in KL_ESTIMATORS.items():
        value = estimator(mean, log_var, prior)
        gradients = torch.autograd.grad(value.sum(), leaves)
        assert all(t.isfinite().all() for t in (value, *gradients)), name
    share = responsibilities(mean, log_var, prior)
    torch.testing.assert_close(share.sum(dim=1), torch.ones(2, 2))


@EXAMPLES
@given(
    components=st.sampled_from([1, 5, 64]),
    channels=st.sampled_from([1, 16, 64]),
    least=st.floats(-6, 0),
    near=st.booleans(),
    seed=SEEDS,
)
def test_float32_figures_and_gradients_are_those_of_float64_at_the_smallest_variances(
    components, channels, least, near, seed
):
    generator = torch.Generator().manual_seed(seed)

    def log_variances(*shape: int) -> Tensor:
        return math.log(10) * least * torch.rand(shape, generator=generator)

    centre = 10 * torch.randn(components, channels, generator=generator)
    # On a component, terms of 1e8 nats must cancel to nothing.
    mean = 10 * torch.randn(3, channels, 2, generator=generator)
    if near:
        mean[:] = centre[0][:, None]
    log_weights = torch.full((components,), -math.log(components))
    mixture = Mixture(log_weights, centre, log_variances(components, channels))
    log_var = log_variances(3, channels, 2)

    leaves = [t.requires_grad_() for t in (mean, log_var, mixture.mean, mixture.log_var)]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    prior = Mixture(log_weights.double(), exact[2], exact[3])
    q = posterior_vectors(*exact[:2])
    parts = [kl_divergence(q, component(prior, k)) for k in range(components)]
    expected = torch.stack(parts, dim=1)
    torch.testing.assert_close(
        mixture.kl_to_components(*leaves[:2]), expected.float(), rtol=1e-6, atol=1e-5
    )
    torch.testing.assert_close(
        mixture.log_prob(mean),
        as_distribution(prior).log_prob(exact[0].movedim(1, -1)).float(),
        rtol=1e-6,
        atol=1e-5,
    )
    bound = -torch.logsumexp(prior.log_weights[:, None] - expected, dim=1).sum() / channels
    gradients = torch.autograd.grad(kl_bound(*leaves[:2], mixture).sum(), leaves)
    for ours, theirs in zip(gradients, torch.autograd.grad(bound, exact), strict=True):
        scale = theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-4 * scale + 1e-6)


class _Largest(TorchDispatchMode):
    """The most numbers that any operation put out."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.untyped_storage().nbytes() // value.itemsize)
        return result


@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_memory_grows_with_the_latent_and_not_with_its_product_with_the_components(name):
    batch, channels, components, side = 1, 64, 64, 16
    prior = MixturePrior(components, channels)
    mean, log_var = (torch.randn(batch, channels, side, side).requires_grad_() for _ in range(2))
    with _Largest() as largest:
        KL_ESTIMATORS[name](mean, log_var, prior.mixture()).sum().backward()
        responsibilities(mean, log_var, prior.mixture())
    assert mean.numel() <= largest.numel <= 2 * mean.numel()


@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_bfloat16_networks_get_float32_figures(name):
    prior = MixturePrior(3, 4).to(torch.bfloat16).mixture()
    assert {prior.log_weights.dtype, prior.mean.dtype, prior.log_var.dtype} == {torch.float32}
    mean, log_var = (t.bfloat16() for t in random_posterior(2, 4, 3, seed=0))
    torch.manual_seed(0)
    low = KL_ESTIMATORS[name](mean, log_var, prior)
    torch.manual_seed(0)
    full = KL_ESTIMATORS[name](mean.float(), log_var.float(), prior)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, full)
    assert prior.log_prob(mean).dtype == torch.float32
    assert responsibilities(mean, log_var, prior).dtype == torch.float32


@EXAMPLES
@given(components=st.integers(1, 9), channels=st.integers(1, 5), seed=SEEDS)
def test_log_prob_is_that_of_torch_distributions(components, channels, seed):
    prior = random_mixture(components, channels, seed)
    z, _ = random_posterior(2, channels, 3, 2, seed=seed)
    expected = as_distribution(prior).log_prob(z.movedim(1, -1))
    torch.testing.assert_close(prior.log_prob(z), expected)


@EXAMPLES
@given(components=st.integers(1, 9), channels=st.integers(1, 5), seed=SEEDS)
def test_responsibilities_sum_to_one_and_follow_the_kl_to_each_component(
    components, channels, seed
):
    prior = random_mixture(components, channels, seed)
    mean, log_var = random_posterior(2, channels, 3, seed=seed)
    q = posterior_vectors(mean, log_var)
    kl = torch.stack([kl_divergence(q, component(prior, k)) for k in range(components)], dim=1)
    share = responsibilities(mean, log_var, prior)
    torch.testing.assert_close(share, torch.softmax(prior.log_weights[:, None] - kl, dim=1))
    torch.testing.assert_close(share.sum(dim=1), torch.ones(2, 3, dtype=torch.float64))


@EXAMPLES
@given(
    components=st.integers(1, 64),
    min_weight=st.floats(0, 0.015),
    min_std=st.floats(0.01, 0.9),
    seed=SEEDS,
)
def test_weights_and_spreads_respect_their_floors(components, min_weight, min_std, seed):
    prior = MixturePrior(components, 3, min_weight=min_weight, min_std=min_std)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.copy_(50 * torch.randn(parameter.shape, generator=generator))
    mixture = prior.mixture()
    assert mixture.log_weights.exp().sum().item() == pytest.approx(1, abs=1e-5)
    if components > 1 and min_weight > 0:
        assert mixture.log_weights.min().item() >= math.log(min_weight) - 1e-5
    assert 0.5 * mixture.log_var.min().item() >= math.log(min_std) - 1e-5


def test_without_a_floor_a_vanishing_weight_stays_finite_with_its_gradient():
    prior = MixturePrior(2, 1, min_weight=0.0)
    with torch.no_grad():
        prior.logits.copy_(torch.tensor([0.0, 500.0]))
    log_weights = prior.mixture().log_weights
    (gradient,) = torch.autograd.grad(log_weights[0], prior.logits)
    torch.testing.assert_close(log_weights, torch.tensor([-500.0, 0.0]))
    torch.testing.assert_close(gradient, torch.tensor([1.0, -1.0]))


def test_floors_that_leave_no_weight_are_refused():
    with pytest.raises(ValueError, match=r"min_weight 0\.25 times prior\.components 4"):
        MixturePrior(4, 2, min_weight=0.25)


@pytest.mark.parametrize("components", [1, 4])
def test_a_new_prior_has_even_weights_and_unit_variance(components):
    mixture = MixturePrior(components, 5, min_std=0.3).mixture()
    torch.testing.assert_close(mixture.log_weights.exp(), torch.full((components,), 1 / components))
    torch.testing.assert_close(mixture.log_var, torch.zeros(components, 5))


@EXAMPLES
@given(components=st.integers(1, 9), seed=SEEDS)
def test_raw_values_of_a_prior_give_the_same_mixture_again(components, seed):
    generator = torch.Generator().manual_seed(seed)
    prior, again = MixturePrior(components, 3), MixturePrior(components, 3)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        for name, value in prior.raw_from(prior.mixture()).items():
            again.get_parameter(name).copy_(value)
    for name in ("log_weights", "mean", "log_var"):
        torch.testing.assert_close(
            getattr(again.mixture(), name), getattr(prior.mixture(), name), rtol=1e-3, atol=1e-4
        )


def test_raw_values_of_a_mixture_below_the_floors_give_the_floors():
    prior = MixturePrior(2, 1, min_weight=0.1, min_std=0.5)
    wanted = Mixture(
        torch.log(torch.tensor([1e-4, 1 - 1e-4])), torch.zeros(2, 1), -torch.ones(2, 1) * 9
    )
    with torch.no_grad():
        for name, value in prior.raw_from(wanted).items():
            prior.get_parameter(name).copy_(value)
    torch.testing.assert_close(prior.mixture().log_weights.exp(), torch.tensor([0.1, 0.9]))
    torch.testing.assert_close((0.5 * prior.mixture().log_var).exp(), torch.full((2, 1), 0.5))


def test_effective_components_count_those_in_use():
    balanced = torch.full((2, 5, 3), 0.2)
    one_hot = torch.zeros(2, 5, 3)
    one_hot[:, 2] = 1
    each_in_turn = torch.eye(5)[None]  # [1, K, 5]: every position its own component
    half = torch.tensor([0.5, 0.5, 0, 0, 0]).view(1, 5, 1)
    for shares, count in ((balanced, 5), (one_hot, 1), (each_in_turn, 5), (half, 2)):
        mean_share = mean_responsibilities(shares)
        assert mean_share.sum().item() == pytest.approx(1)
        assert effective_components(mean_share).item() == pytest.approx(count)


def test_a_channel_is_active_if_its_posterior_mean_differs_between_positions():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(4, 5, 30, 30, generator=generator)
    mean *= torch.tensor([1.0, 0.11, 0.09, 0.0, 0.0])[:, None, None]
    mean[:, 4] = 7.0  # constant, if far from zero
    assert active_channels(mean).item() == pytest.approx(2 / 5)
    # Variance between the patches of a batch counts as that between positions of a patch.
    assert active_channels(torch.tensor([[0.0], [1.0]]).view(2, 1, 1, 1)).item() == 1
