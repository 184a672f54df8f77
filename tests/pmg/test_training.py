"""A run in progress: reproducible, with averaged weights and a guarded prior."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import shaken, stream_batch, tiny_config
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from pmg.config import Config
from pmg.mixture import fit_mixture
from pmg.patches import to_pair
from pmg.training import Training, averaged_copy, build_modules, torch_engines

CPU = torch.device("cpu")


def start(config: Config) -> Training:
    translator, critic = build_modules(config)
    shaken(translator)  # so that encodings and translations are not those of fresh, zero layers
    engines = torch_engines(translator, critic, config)
    averaged = averaged_copy(translator, config)
    return Training(config, *engines, device=CPU, averaged=averaged)


def advance(training: Training, steps: int) -> list[dict[str, Tensor]]:
    size = training.config.train.batch
    return [
        training.advance(stream_batch(training.config, training.step * size)).terms
        for _ in range(steps)
    ]


def state(training: Training) -> dict[str, Tensor]:
    modules: dict[str, nn.Module] = {
        "translator": training.translator.module,
        "critic": training.critic.module,
        "averaged": training.translating_model,
    }
    return {
        f"{which}.{name}": value.detach().clone()
        for which, module in modules.items()
        for name, value in module.state_dict().items()
    }


def frozen(**prior) -> Config:
    """A run whose updates are too small to see, so that only the prior's guards move it."""
    return tiny_config(optim={"lr": 1e-30, "weight_decay": 0.0}, prior=prior)


@pytest.mark.parametrize("estimator", ["bound", "monte_carlo"])
def test_the_same_seed_gives_the_same_run_bit_for_bit(estimator):
    config = tiny_config(loss={"kl": estimator}, prior={"fit_step": 1, "reseed_every": 2})
    runs = []
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)
        training = start(config)
        terms = []
        for _ in range(4):
            torch.randn(disturbance)  # what else draws random numbers must not matter
            terms += advance(training, 1)
        runs.append((state(training), terms))
    (first, first_terms), (second, second_terms) = runs
    assert all(torch.equal(first[name], second[name]) for name in first)
    for a, b in zip(first_terms, second_terms, strict=True):
        assert {name: value.item() for name, value in a.items()} == {
            name: value.item() for name, value in b.items()
        }


def test_another_seed_gives_another_model_and_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    one, _ = build_modules(tiny_config(train={"seed": 1}))
    two, _ = build_modules(tiny_config(train={"seed": 2}))
    assert torch.equal(torch.randn(4), expected)
    assert not torch.equal(one.prior.mean, two.prior.mean)
    assert not torch.equal(one.encoders[0].stem.weight, two.encoders[0].stem.weight)


def test_steps_are_counted():
    training = start(tiny_config())
    advance(training, 3)
    assert training.step == 3


def encodings(training: Training, batch) -> Tensor:
    """Samples of both domains' posteriors at every position, by the noise of their samples."""
    pair = to_pair(batch, training.config, CPU)
    z = {}
    for i in (1, 2):
        q = training.translator.module.encode(i, pair.x[i], pair.where[i])
        z[i] = q.mean + torch.exp(q.log_var / 2) * pair.noise[i - 1]
    places = [(b, i, y, x) for b in range(2) for i in (1, 2) for y in range(8) for x in range(8)]
    return torch.stack([z[i][b, :, y, x] for b, i, y, x in places]).detach()


def test_prior_is_fitted_to_the_encodings_at_the_fit_step_and_only_there():
    training = start(frozen(fit_step=2))
    with torch.no_grad():
        training.translator.module.prior.mean.add_(3)
    before = copy.deepcopy(training.translator.module.prior).mixture()
    advance(training, 2)
    torch.testing.assert_close(training.translator.module.prior.mixture().mean, before.mean)

    z = encodings(training, stream_batch(training.config, 4))
    advance(training, 1)
    fitted = copy.deepcopy(training.translator.module.prior).mixture()
    expected = fit_mixture(z, 3, seed=training.config.train.seed + 2)
    torch.testing.assert_close(fitted.mean, expected.mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        fitted.log_weights.exp(), expected.log_weights.exp(), rtol=0, atol=0.01
    )
    assert log_likelihood(fitted, z) > log_likelihood(before, z) + 1

    advance(training, 1)
    torch.testing.assert_close(training.translator.module.prior.mixture().mean, fitted.mean)


def log_likelihood(mixture, z: Tensor) -> float:
    components = Independent(Normal(mixture.mean, torch.exp(mixture.log_var / 2)), 1)
    weights = Categorical(logits=mixture.log_weights)
    return MixtureSameFamily(weights, components).log_prob(z).mean().item()


def test_a_dead_component_is_reseeded_at_its_step_and_the_others_stay():
    training = start(frozen(fit_step=0, reseed_every=3))
    prior = training.translator.module.prior
    with torch.no_grad():
        prior.mean.copy_(torch.tensor([0.0, 0.5, 300.0])[:, None].expand(3, 4))
    before = prior.mean.detach().clone()
    advance(training, 3)
    torch.testing.assert_close(prior.mean, before)
    advance(training, 1)
    torch.testing.assert_close(prior.mean[:2], before[:2])
    assert prior.mean[2].abs().max() < 20


def test_what_a_step_samples_depends_on_the_runs_seed():
    terms = []
    for seed in (5, 6):
        config = tiny_config(loss={"kl": "monte_carlo"}, train={"seed": seed})
        engines = torch_engines(*build_modules(tiny_config()), config)
        terms.append(Training(config, *engines, device=CPU).advance(stream_batch(config)).terms)
    assert terms[0]["vae1.kl"] != terms[1]["vae1.kl"]


def test_a_date_is_a_seed():
    training = start(tiny_config(train={"seed": 20260801}, prior={"fit_step": 1}))
    advance(training, 2)
    assert training.step == 2


@pytest.mark.parametrize(
    "prior", [{"learned": False, "fit_step": 1}, {"components": 1, "fit_step": 0}]
)
def test_a_fixed_component_is_left_to_itself_and_a_single_one_is_never_reseeded(prior):
    training = start(frozen(reseed_every=2, **prior))
    before = copy.deepcopy(training.translator.module.prior.state_dict())
    advance(training, 4)
    for name, value in training.translator.module.prior.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_a_single_learned_component_is_fitted_as_a_mixture_is():
    training = start(frozen(fit_step=1, reseed_every=0, components=1))
    advance(training, 1)
    z = encodings(training, stream_batch(training.config, 2))
    advance(training, 1)
    fitted = training.translator.module.prior.mixture()
    torch.testing.assert_close(fitted.mean[0], z.mean(dim=0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        fitted.log_var[0].exp(), z.var(dim=0, correction=0), rtol=1e-2, atol=1e-3
    )


def test_averaged_weights_are_the_exponential_moving_average():
    training = start(tiny_config(optim={"ema": 0.4, "lr": 1e-2}))
    advance(training, 1)
    name = "encoders.0.stem.weight"
    expected = training.translator.module.get_parameter(name).detach().clone()
    for decay in (2 / 6, 0.4, 0.4):  # ema is reached at step 2
        advance(training, 1)
        now = training.translator.module.get_parameter(name).detach()
        expected = decay * expected + (1 - decay) * now
    translating = training.translating_model
    torch.testing.assert_close(translating.get_parameter(name), expected)
    assert not torch.allclose(translating.get_parameter(name), now)
    shared = {id(p) for p in translating.encoders[0].parameters()}
    assert shared & {id(p) for p in translating.encoders[1].parameters()}  # sharing survives


def test_without_averaging_the_trained_model_translates():
    training = start(tiny_config(optim={"ema": 0.0}))
    assert training.averaged is None
    assert training.translating_model is training.translator.module


def test_a_fit_of_the_prior_is_also_that_of_the_averaged_model():
    training = start(tiny_config(prior={"fit_step": 2}, optim={"lr": 1e-30, "ema": 0.999}))
    advance(training, 4)
    trained = training.translator.module.prior.mixture()
    translating = training.translating_model.prior.mixture()
    torch.testing.assert_close(translating.mean, trained.mean, rtol=1e-3, atol=1e-3)
