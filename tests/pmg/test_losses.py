"""The loss terms, against the formulas of their papers and torch.distributions."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Laplace, Normal

from pmg.config import DataConfig
from pmg.losses import (
    ADVERSARIAL,
    LIKELIHOODS,
    calcium_weight,
    change,
    free_bits,
    gradient_change,
    gradient_penalty,
)
from pmg.window import window_of

WINDOW = window_of(DataConfig())

REAL = [[0.3, -0.7, 1.6], [2.0]]  # the scores of two scales
FAKE = [[-1.4, 0.2, 0.9], [0.5]]


def sigmoid(s: float) -> float:
    return 1 / (1 + math.exp(-s))


FORMULAS = {  # loss of a real score, of a translated score, and of the generator
    "lsgan": (lambda s: (s - 1) ** 2, lambda s: s**2, lambda s: (s - 1) ** 2),
    "log": (
        lambda s: -math.log(sigmoid(s)),
        lambda s: -math.log(1 - sigmoid(s)),
        lambda s: -math.log(sigmoid(s)),
    ),
    "hinge": (lambda s: max(0, 1 - s), lambda s: max(0, 1 + s), lambda s: -s),
}


def summed(scales: list[list[float]], formula) -> float:
    """Mean over a scale's scores, sum over the scales."""
    return sum(sum(map(formula, scale)) / len(scale) for scale in scales)


def maps(scales: list[list[float]]) -> list[torch.Tensor]:
    return [torch.tensor(scale).view(1, 1, -1) for scale in scales]


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_losses_follow_their_formulas(name):
    real, fake, generator = FORMULAS[name]
    loss = ADVERSARIAL[name]
    d = loss.discriminator(maps(REAL), maps(FAKE)).item()
    assert d == pytest.approx(summed(REAL, real) + summed(FAKE, fake), rel=1e-5)
    assert loss.generator(maps(FAKE)).item() == pytest.approx(summed(FAKE, generator), rel=1e-5)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_d_parts_real_from_translated_and_g_closes_the_gap(name):
    undecided = torch.zeros(1, 1, 4, requires_grad=True)
    loss = ADVERSARIAL[name]
    (to_real,) = torch.autograd.grad(
        loss.discriminator([undecided], [undecided.detach() - 0.5]), undecided
    )
    (to_fake,) = torch.autograd.grad(
        loss.discriminator([undecided.detach()], [undecided + 0.5]), undecided
    )
    (to_generator,) = torch.autograd.grad(loss.generator([undecided]), undecided)
    assert (to_real < 0).all()  # descent raises the score of real patches
    assert (to_fake > 0).all()  # and lowers that of translated ones
    assert (to_generator < 0).all()


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_a_confident_discriminator_leaves_losses_and_gradients_finite(name):
    scores = torch.tensor([[[-200.0, 200.0]]], requires_grad=True)
    total = ADVERSARIAL[name].discriminator([scores], [scores]) + ADVERSARIAL[name].generator(
        [scores]
    )
    (gradient,) = torch.autograd.grad(total, scores)
    assert total.isfinite()
    assert gradient.isfinite().all()


def test_generator_of_the_log_game_still_learns_where_d_is_sure():
    scores = torch.tensor([[[-30.0]]], requires_grad=True)
    (gradient,) = torch.autograd.grad(ADVERSARIAL["log"].generator([scores]), scores)
    assert gradient.item() == pytest.approx(-1)


def test_hinge_lets_scores_beyond_the_margin_be():
    real, fake = (torch.tensor([[[s]]], requires_grad=True) for s in (1.5, -1.5))
    loss = ADVERSARIAL["hinge"].discriminator([real], [fake])
    assert all(g.item() == 0 for g in torch.autograd.grad(loss, (real, fake)))


def test_real_and_translated_must_come_with_the_same_scales():
    with pytest.raises(ValueError, match="shorter"):
        ADVERSARIAL["lsgan"].discriminator(maps(REAL), maps(FAKE)[:1])


@pytest.mark.parametrize(
    ("name", "distribution", "constant"),
    [
        ("laplace", lambda mean: Laplace(mean, 1.0), math.log(2)),
        ("gaussian", lambda mean: Normal(mean, 1.0), 0.5 * math.log(2 * math.pi)),
    ],
)
def test_likelihoods_are_negative_log_densities_less_their_constant(name, distribution, constant):
    torch.manual_seed(0)
    x_hat, x = torch.randn(2, 3, 1, 5, 4)
    expected = -distribution(x_hat).log_prob(x).mean() - constant
    torch.testing.assert_close(LIKELIHOODS[name](x_hat, x), expected)


def test_bfloat16_patches_are_compared_in_float32():
    x = torch.full((1, 1, 4), 0.5)
    for likelihood in LIKELIHOODS.values():
        assert likelihood(x.bfloat16(), x + 1e-4).dtype == torch.float32
    assert LIKELIHOODS["laplace"](x.bfloat16(), x + 1e-4).item() == pytest.approx(1e-4, rel=1e-2)


def test_kl_below_the_free_bits_costs_the_minimum_and_has_no_gradient():
    kl = torch.tensor([0.1, 0.3], requires_grad=True)
    value = free_bits(kl, 0.5)
    value.backward()
    assert value.item() == 0.5
    assert torch.equal(kl.grad, torch.zeros(2))


def test_kl_above_the_free_bits_is_its_mean_with_full_gradient():
    kl = torch.tensor([0.2, 1.4], requires_grad=True)
    value = free_bits(kl, 0.5)
    value.backward()
    assert value.item() == pytest.approx(0.8)
    torch.testing.assert_close(kl.grad, torch.full((2,), 0.5))


def test_without_free_bits_a_sampled_kl_may_be_negative():
    kl = torch.tensor([-0.3, 0.1], requires_grad=True)
    value = free_bits(kl, 0.0)
    value.backward()
    assert value.item() == pytest.approx(-0.1)
    torch.testing.assert_close(kl.grad, torch.full((2,), 0.5))


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_weighted_voxels_count_as_often_and_the_others_as_before(name):
    likelihood = LIKELIHOODS[name]
    torch.manual_seed(0)
    x_hat, x = torch.randn(2, 3, 1, 6, 5)
    assert torch.equal(likelihood(x_hat, x, torch.ones_like(x)), likelihood(x_hat, x))
    weight = torch.ones_like(x)
    weight[1, 0, 2, 3] = 4
    alone = likelihood(x_hat[1, 0, 2, 3], x[1, 0, 2, 3]) / x.numel()
    torch.testing.assert_close(likelihood(x_hat, x, weight), likelihood(x_hat, x) + 3 * alone)


def test_calcium_is_what_lies_above_the_threshold_in_hu():
    hu = torch.tensor([[-1000.0, 40, 129, 131, 900, 3000]]).view(1, 1, 2, 3)
    weight = calcium_weight(WINDOW.to_unit(hu), WINDOW, 130, 5)
    assert weight.flatten().tolist() == [1, 1, 1, 5, 5, 5]
    assert calcium_weight(WINDOW.to_unit(hu), WINDOW, 130, 1) is None


def ramp_and_plaque(size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """HU of soft tissue with one bright voxel, and a smooth rise of 100 HU from end to end."""
    hu = torch.full((1, 1, size, size), 40.0)
    hu[..., size // 2, size // 2] = 400
    return hu, torch.linspace(0, 100, size).expand_as(hu)


def test_a_smooth_rise_of_contrast_costs_little_and_a_lost_plaque_its_height():
    hu, rise = ramp_and_plaque()
    x = WINDOW.to_unit(hu)

    def cost(changed: torch.Tensor) -> tuple[float, float]:
        translated = WINDOW.to_unit(changed)
        return gradient_change(translated, x, WINDOW).item(), change(translated, x, WINDOW).item()

    smooth_gradient, smooth_change = cost(hu + rise)
    # A rise of 100 HU over 63 steps along one of two axes; half of it on average.
    assert smooth_gradient == pytest.approx(1 / 63 / 2, rel=1e-3)
    assert smooth_change == pytest.approx(0.5, rel=1e-3)

    lost_gradient, _ = cost(torch.full_like(hu, 40.0))
    # Two steps of 360 HU along either axis, among 64 x 63.
    assert lost_gradient == pytest.approx(2 * 3.6 / (64 * 63), rel=1e-3)
    assert cost(hu + 30)[0] == pytest.approx(0, abs=1e-5)  # an even rise costs nothing


@pytest.mark.parametrize("dims", [2, 3])
def test_gradient_change_looks_along_every_axis_of_the_patch_and_not_across_patches(dims):
    for axis in range(dims):
        x = torch.zeros(2, 1, *[4] * dims)
        stripe = x.clone()
        stripe.select(2 + axis, 0).fill_(0.1)
        assert gradient_change(stripe, x, WINDOW).item() > 0
    batch = torch.zeros(2, 1, *[4] * dims)
    other = batch.clone()
    other[1] = 0.1
    assert gradient_change(other, batch, WINDOW).item() == pytest.approx(0, abs=1e-5)


def test_gradient_penalty_of_a_linear_discriminator_is_half_its_squared_norm():
    weight = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, 1, 4, 6, requires_grad=True)
    fine = x * weight  # [3, 1, 4, 6]: D(x) is the mean, its gradient weight / 24
    coarse = fine.sum(dim=(2, 3), keepdim=True)  # a second scale of one score
    expected = 0.5 * (weight / 24).square().sum()
    torch.testing.assert_close(gradient_penalty([fine], x), expected)
    both = 0.5 * (weight / 24 + weight).square().sum()
    torch.testing.assert_close(gradient_penalty([fine, coarse], x), both)


def test_gradient_penalty_flattens_d():
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.LeakyReLU(0.2), torch.nn.Conv2d(4, 1, 3)
    )
    x = torch.randn(2, 1, 9, 9, requires_grad=True)
    parameters = list(layers.parameters())
    before = gradient_penalty([layers(x)], x)
    gradients = torch.autograd.grad(before, parameters, allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:  # the last bias only shifts the scores
                parameter.sub_(0.1 * gradient)
    assert gradient_penalty([layers(x)], x) < before
