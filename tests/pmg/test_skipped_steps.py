"""A step that is not finite leaves no trace, and says what was wrong with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import shaken, stream_batch, tiny_config

from pmg.precision import LossScale
from pmg.training import Training, averaged_copy, build_modules, torch_engines

CPU = torch.device("cpu")


def start(config):
    modules = build_modules(config)
    for module in modules:
        shaken(module)
    averaged = averaged_copy(modules[0], config)
    return Training(config, *torch_engines(*modules, config), device=CPU, averaged=averaged)


def state(training):
    engines = {"translator": training.translator, "critic": training.critic}
    found = {
        f"{which}.{name}": value.clone()
        for which, engine in engines.items()
        for name, value in engine.tensors()
    }
    averaged = training.averaged.named_parameters()
    return found | {f"averaged.{name}": value.clone() for name, value in averaged}


def with_nan(batch, domain, sample):
    hu = getattr(batch, f"hu{domain}").astype(np.float32)
    hu[sample, ..., 3, 3] = np.nan
    return replace(batch, **{f"hu{domain}": hu})


@pytest.mark.parametrize(("domain", "sample"), [(1, 0), (2, 1)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_nan_in_a_batch_leaves_weights_moments_and_averages_bit_equal(domain, sample, accumulate):
    config = tiny_config(
        train={"accumulate": accumulate}, launch={"workers": 1}, optim={"clip": 0.5}
    )
    training, undisturbed = start(config), start(config)
    for _ in range(2):
        training.advance(stream_batch(config))
        undisturbed.advance(stream_batch(config))
    outcome = training.advance(with_nan(stream_batch(config), domain, sample))
    assert outcome.skipped == outcome.counted == 1
    bad = {n for n, b in zip(outcome.terms, outcome.bad_terms, strict=True) if b}
    assert f"vae{domain}.reconstruction" in bad
    assert f"gan{domain}.discriminator" in bad
    assert outcome.bad_samples.tolist() == [n == sample for n in range(2)]
    before, after = state(undisturbed), state(training)
    assert all(torch.equal(before[name], after[name]) for name in before)
    # And training goes on as if that batch had not been.
    undisturbed.step = training.step
    for each in (training, undisturbed):
        assert each.advance(stream_batch(config)).skipped == 0
    before, after = state(undisturbed), state(training)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_gradient_that_overflows_skips_both_updates_though_every_loss_is_finite():
    config = tiny_config()
    training = start(config)
    training.advance(stream_batch(config))
    before = state(training)
    hook = (
        training.critic.module.discriminators[0]
        .scales[0]
        .first.bias.register_hook(lambda gradient: gradient * torch.inf)
    )
    training.critic._watch = type(training.critic._watch)(training.critic.module)
    outcome = training.advance(stream_batch(config))
    hook.remove()
    assert outcome.skipped == 1
    assert outcome.bad_gradient
    assert not outcome.bad_terms.any()
    after = state(training)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_nan_where_the_prior_is_fitted_leaves_the_prior_to_the_sound_samples():
    config = tiny_config(prior={"fit_step": 1})
    training = start(config)
    training.advance(stream_batch(config))
    training.advance(with_nan(stream_batch(config), 1, 0))
    assert all(torch.isfinite(p).all() for p in training.translator.module.prior.parameters())


def test_micro_batches_train_what_one_batch_does():
    ends = []
    for accumulate in (1, 2):
        training = start(tiny_config(train={"accumulate": accumulate}, launch={"workers": 1}))
        for step in range(3):
            training.advance(stream_batch(training.config, 2 * step))
        ends.append(state(training))
    for name, value in ends[0].items():
        if "/" not in name:  # Adam's moments are as large as the gradients
            torch.testing.assert_close(ends[1][name], value, rtol=0, atol=2e-5, msg=name)


@pytest.mark.parametrize(("precision", "bits"), [("bf16", 8), ("fp16", 11)])
def test_lower_precision_changes_the_losses_by_its_rounding_and_no_more(precision, bits):
    losses = {}
    for which in ("float32", precision):
        training = start(tiny_config(train={"precision": which}))
        for _ in range(20):  # in fp16 the first gradients overflow, until the scale has fallen
            outcome = training.advance(stream_batch(training.config))
            if outcome.skipped == 0:
                break
            assert which == "fp16"
            assert outcome.counted == 0
        losses[which] = outcome.terms["total"].item()
        parameters = training.translator.module.parameters()
        assert {p.dtype for p in parameters} == {torch.float32}
    assert losses[precision] != losses["float32"]
    assert losses[precision] == pytest.approx(losses["float32"], rel=8 * 2.0**-bits)


def test_the_loss_scale_falls_on_overflow_rises_after_many_steps_and_changes_no_update():
    scale = LossScale(CPU, enabled=True)
    start_value = scale.value.item()
    scale.update(torch.ones(()))
    assert scale.value == start_value / 2
    for _ in range(2000):
        scale.update(torch.zeros(()))
    assert scale.value == start_value

    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    plain = torch.nn.Parameter(weight.detach().clone())
    for parameter, scaled in ((weight, scale), (plain, LossScale(CPU, enabled=False))):
        adam = torch.optim.Adam([parameter], lr=0.1, fused=True)
        scaled.scaled((parameter**3).sum()).backward()
        scaled.hand_over(adam, torch.zeros(()))
        adam.step()
    torch.testing.assert_close(weight, plain)


def test_an_engines_state_restores_another_engine_to_the_bit():
    config = tiny_config(
        train={"precision": "fp16"}, discriminator={"layers": 2, "spectral_norm": True}
    )
    training, fresh = start(config), start(config)
    for step in range(24):  # the first ones bring down the loss scale
        training.advance(stream_batch(config, 2 * step))
    assert dict(training.translator.tensors())["steps"] > 0
    for one, other in (
        (training.translator, fresh.translator),
        (training.critic, fresh.critic),
    ):
        assert other.restore((n, v.clone()) for n, v in one.tensors()) == set()
    fresh.averaged.load_state_dict(training.averaged.state_dict())
    fresh.step = training.step
    for each in (training, fresh):
        each.advance(stream_batch(config, 48))
    before, after = state(training), state(fresh)
    assert "critic.loss_scale" in before
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_state_of_other_networks_is_refused_by_the_parameters_name():
    training, other = start(tiny_config()), start(tiny_config(model={"width": 8}))
    with pytest.raises(ValueError, match=r"encoders\.0\.stem\.weight: saved as \[8, .* here"):
        training.translator.restore(other.translator.tensors())
    with pytest.raises(ValueError, match="no such parameter"):
        training.critic.restore([("scales.9.bias", torch.zeros(3))])
    assert "steps" in training.critic.restore([])
