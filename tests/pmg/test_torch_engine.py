"""The engine of plain torch, its parameter groups, and the schedules."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tiny import patches, places, shaken, tiny_config

from pmg.engine import TorchEngine, adam, learning_rate_factor, parameter_groups
from pmg.model import Translator


def loss_of(model: Translator) -> torch.Tensor:
    return model.translate(1, patches(1, 1, 16, 16), places(1))[0].square().mean()


def test_updates_are_those_of_adam_by_hand():
    config = tiny_config(optim={"weight_decay": 0.0})
    model = shaken(Translator(config))
    plain = copy.deepcopy(model)
    groups = parameter_groups(model, config.optim)
    engine = TorchEngine(model, torch.optim.Adam(groups, betas=(0.5, 0.999), fused=True))
    for lr in (1e-2, 1e-3):
        engine.backward(engine.run(loss_of))
        engine.step(lr, torch.zeros(()))

    name = "generators.1.out.2.weight"
    parameter = plain.get_parameter(name)
    others = torch.optim.Adam(
        [p for n, p in plain.named_parameters() if n != name], betas=(0.5, 0.999)
    )
    first, second = torch.zeros_like(parameter), torch.zeros_like(parameter)
    for t, lr in enumerate((1e-2, 1e-3), start=1):
        plain.zero_grad()
        loss_of(plain).backward()
        g = parameter.grad
        first, second = 0.5 * first + 0.5 * g, 0.999 * second + 0.001 * g**2
        unbiased = (second / (1 - 0.999**t)).sqrt() + 1e-8
        with torch.no_grad():
            parameter -= lr * (first / (1 - 0.5**t)) / unbiased
        others.param_groups[0]["lr"] = lr
        others.step()
    torch.testing.assert_close(model.get_parameter(name), parameter, rtol=1e-4, atol=1e-6)


def test_weights_decay_but_the_prior_does_not():
    config = tiny_config(optim={"weight_decay": 0.3})
    model = Translator(config)
    decay = {}
    for group in parameter_groups(model, config.optim):
        decay |= {id(p): group["weight_decay"] for p in group["params"]}
    by_name = {name: decay[id(p)] for name, p in model.named_parameters()}
    assert {by_name[n] for n in by_name if n.startswith("prior.")} == {0.0}
    assert {by_name[n] for n in by_name if not n.startswith("prior.")} == {0.3}


def test_groups_hold_shared_parameters_once_and_fixed_ones_not_at_all():
    config = tiny_config(prior={"components": 1, "learned": False})
    model = Translator(config)
    grouped = [p for g in parameter_groups(model, config.optim) for p in g["params"]]
    assert len({id(p) for p in grouped}) == len(grouped)
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters() if p.requires_grad}


def test_assigned_values_are_the_modules_parameters():
    config = tiny_config()
    model = Translator(config)
    engine = TorchEngine(model, adam(model, config.optim, 1e-3))
    values = {"prior.mean": torch.full((3, 4), 2.5), "prior.logits": torch.tensor([1.0, 2.0, 3.0])}
    engine.assign(values)
    assert all(torch.equal(model.get_parameter(n), v) for n, v in values.items())
    assert model.prior.mean.requires_grad


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("halve", [1, 1, 0.5, 0.125]),
        ("cosine", [1, (1 + math.cos(math.pi / 4)) / 2, 0.5, 0]),
    ],
)
def test_schedules_follow_their_formulas(schedule, expected):
    config = tiny_config(optim={"schedule": schedule, "halve_every": 40}).optim
    factors = [learning_rate_factor(step, 160, config) for step in (0, 39, 79, 159)]
    if schedule == "cosine":
        factors = [learning_rate_factor(step, 160, config) for step in (0, 40, 80, 160)]
        assert learning_rate_factor(200, 160, config) == pytest.approx(0)
    assert factors == pytest.approx(expected, abs=1e-6)
