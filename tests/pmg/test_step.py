"""One training step, against the equations written out with plain functions."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import shaken, stream_batch, tiny_config
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence

from pmg.config import Config, LossConfig, load_config, preset_names
from pmg.engine import TorchEngine
from pmg.model import Critic, Translator
from pmg.networks import Posterior
from pmg.patches import to_pair
from pmg.prior import Mixture, kl_monte_carlo, kl_vade
from pmg.step import Pair, train_step
from pmg.training import compile_networks, torch_engines

CPU = torch.device("cpu")
TERMS = {
    "kl": "vae{i}.kl",
    "reconstruction": "vae{i}.reconstruction",
    "cycle kl": "cycle{i}.kl",
    "cycle kl of the translated": "cycle{i}.kl_translated",
    "cycle reconstruction": "cycle{i}.reconstruction",
    "generator": "gan{i}.generator",
    "discriminator": "gan{i}.discriminator",
}
DOCUMENTED = {name.format(i=i) for name in TERMS.values() for i in (1, 2)}
HEALTH = {"prior.effective_components", "latent.active_channels"} | {
    f"prior.responsibility{k}" for k in (1, 2, 3)
}


def prepared(config: Config) -> tuple[Translator, Critic, Pair]:
    torch.manual_seed(0)
    translator = shaken(Translator(config), seed=0, scale=0.05)
    critic = shaken(Critic(config), seed=1, scale=0.05)
    return translator, critic, to_pair(stream_batch(config), config, CPU)


def step_on_copies(
    config: Config, translator: Translator, critic: Critic, pair: Pair, step: int = 0
) -> tuple[dict[str, Tensor], Translator, Critic]:
    """Terms and the modules after the step, which still hold the gradients of their update."""
    translator, critic = copy.deepcopy(translator), copy.deepcopy(critic)
    engines = torch_engines(translator, critic, config)
    return train_step(*engines, pair, step, config).terms, translator, critic


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    return {
        name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()
    }


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(
        a[n] is b[n] or (a[n] is not None and b[n] is not None and torch.equal(a[n], b[n]))
        for n in a
    )


# The step once more, as the equations stand in the paper: nothing shared, nothing batched.

GENERATOR_SIDE = {
    "lsgan": lambda s: ((s - 1) ** 2).mean(),
    "log": lambda s: -torch.log(torch.sigmoid(s.double())).mean(),
    "hinge": lambda s: -s.mean(),
}
DISCRIMINATOR_SIDE = {
    "lsgan": lambda real, fake: ((real - 1) ** 2).mean() + (fake**2).mean(),
    "log": lambda real, fake: (
        -torch.log(torch.sigmoid(real.double())).mean()
        - torch.log(1 - torch.sigmoid(fake.double())).mean()
    ),
    "hinge": lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(),
}


def kl(q: Posterior, prior: Mixture, minimum: float) -> Tensor:
    def vectors(mean: Tensor, log_var: Tensor) -> Independent:
        return Independent(Normal(mean, torch.exp(log_var / 2)), 1)

    posterior = vectors(q.mean.movedim(1, -1), q.log_var.movedim(1, -1))
    scores = [
        prior.log_weights[k] - kl_divergence(posterior, vectors(prior.mean[k], prior.log_var[k]))
        for k in range(len(prior.log_weights))
    ]
    value = -torch.logsumexp(torch.stack(scores), dim=0).mean() / q.mean.shape[1]
    return torch.clamp(value, min=minimum) if minimum else value


def to_hu(x: Tensor, scale: float = 150.0) -> Tensor:
    """The window from intensities to HU, by its definition."""
    low, high = (torch.asinh(torch.tensor((hu - 50.0) / scale)) for hu in (-1024, 3071))
    return 50 + scale * torch.sinh(x.clamp(-1, 1) * (high - low) / 2 + (high + low) / 2)


def negative_log_likelihood(loss: LossConfig, x_hat: Tensor, x: Tensor) -> Tensor:
    error = (x_hat - x).abs() if loss.likelihood == "laplace" else (x_hat - x) ** 2 / 2
    calcium = to_hu(x) > loss.calcium_hu
    return torch.where(calcium, loss.calcium_weight * error, error).mean()


def plain_step(
    config: Config, translator: Translator, critic: Critic, pair: Pair, kl_scale: float
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The terms, and the two losses that are minimised over E, G, prior and over D."""
    loss, prior = config.loss, translator.prior.mixture()
    terms: dict[str, Tensor] = {}
    total, total_d = torch.zeros(()), torch.zeros(())
    second = loss.lambda_cycle_kl if loss.cycle_kl_weight == "lambda3" else loss.lambda_cycle
    q, z = {}, {}
    for i in (1, 2):
        q[i] = translator.encode(i, pair.x[i], pair.where[i])
        z[i] = q[i].mean + torch.exp(q[i].log_var / 2) * pair.noise[i - 1]
    for i, j in ((1, 2), (2, 1)):
        own = terms[f"vae{i}.kl"] = terms[f"cycle{i}.kl"] = kl(q[i], prior, loss.free_bits)
        x_self = translator.decode(i, z[i], pair.where[i])
        reconstruction = negative_log_likelihood(loss, x_self, pair.x[i])
        terms[f"vae{i}.reconstruction"] = reconstruction
        vae = kl_scale * loss.lambda_kl * own + loss.lambda_reconstruction * reconstruction

        x_ij = translator.decode(j, z[i], pair.where[i])
        q_j = translator.encode(j, x_ij, pair.where[i])
        z_j = q_j.mean + torch.exp(q_j.log_var / 2) * pair.noise[1 + i]
        x_back = translator.decode(i, z_j, pair.where[i])
        translated = terms[f"cycle{i}.kl_translated"] = kl(q_j, prior, loss.free_bits)
        back = negative_log_likelihood(loss, x_back, pair.x[i])
        terms[f"cycle{i}.reconstruction"] = back
        cycle = kl_scale * (loss.lambda_cycle_kl * own + second * translated)
        cycle = cycle + loss.lambda_cycle * back

        if loss.lambda_identity:
            unchanged = translator.decode(
                j, translator.encode(i, pair.x[j], pair.where[j]).mean, pair.where[j]
            )
            terms[f"identity{j}"] = negative_log_likelihood(loss, unchanged, pair.x[j])
            total = total + loss.lambda_identity * terms[f"identity{j}"]

        x_ji = translator.decode(i, z[j], pair.where[j])
        game = sum(
            GENERATOR_SIDE[loss.adversarial](s) for s in critic.scores(i, x_ji, pair.where[j])
        )
        terms[f"gan{i}.generator"] = game
        total = total + vae + cycle + loss.lambda_gan * game
        if loss.lambda_gradient:
            changed = (to_hu(x_ij) - to_hu(pair.x[i])) / 100
            rows = (changed[..., 1:, :] - changed[..., :-1, :]).abs().mean()
            columns = (changed[..., 1:] - changed[..., :-1]).abs().mean()
            terms[f"gradient{i}"] = (rows + columns) / 2
            total = total + loss.lambda_gradient * terms[f"gradient{i}"]
        if loss.lambda_change:
            scale = config.data.scale_hu
            moved = to_hu(x_ij, scale) - to_hu(pair.x[i], scale)
            terms[f"change{i}"] = moved.abs().mean() / 100
            total = total + loss.lambda_change * terms[f"change{i}"]

        real = critic.scores(i, pair.x[i], pair.where[i])
        fake = critic.scores(i, x_ji.detach(), pair.where[j])
        sides = zip(real, fake, strict=True)
        d = sum(DISCRIMINATOR_SIDE[loss.adversarial](r, f) for r, f in sides)
        terms[f"gan{i}.discriminator"] = d
        total_d = total_d + loss.lambda_gan * d
        if loss.r1:
            x = pair.x[i].clone().requires_grad_()
            d_of_x = sum(s.mean(dim=(1, 2, 3)) for s in critic.scores(i, x, pair.where[i]))
            (slope,) = torch.autograd.grad(d_of_x.sum(), x, create_graph=True)
            penalty = loss.r1 / 2 * (slope**2).sum(dim=(1, 2, 3)).mean()
            terms[f"gan{i}.r1"] = loss.r1_every * penalty
            total_d = total_d + terms[f"gan{i}.r1"]
    unused = [] if loss.lambda_kl or loss.lambda_cycle_kl else ["kl", "kl_translated"]
    unused += [] if loss.lambda_reconstruction else ["vae1.reconstruction", "vae2.reconstruction"]
    terms = {name: value for name, value in terms.items() if not name.endswith(tuple(unused))}
    return terms | {"total": total}, total, total_d


def assert_gradients_are_those_of(
    loss: Tensor, plain: nn.Module, stepped: nn.Module, clip: float = 0.0
) -> None:
    names = [name for name, p in plain.named_parameters() if p.requires_grad]
    parameters = [plain.get_parameter(name) for name in names]
    expected = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
    norm = torch.stack([gradient.norm() for gradient in expected]).norm().item()
    if clip and norm > clip:
        expected = tuple(gradient * (clip / norm) for gradient in expected)
    for name, gradient in zip(names, expected, strict=True):
        error = (stepped.get_parameter(name).grad - gradient).abs().max()
        # Rounding: the two add up the same thousands of terms in another order.
        assert error <= 1e-4 * max(1, gradient.abs().max()), name


VARIANTS = {
    "defaults": {},
    "lambda4 as printed": {"loss": {"cycle_kl_weight": "lambda4"}},
    "hinge and gaussian": {"loss": {"adversarial": "hinge", "likelihood": "gaussian"}},
    "log": {"loss": {"adversarial": "log", "lambda_gan": 0.7}},
    "all weights differ": {
        "loss": {
            "lambda_gan": 0.5,
            "lambda_kl": 0.2,
            "lambda_reconstruction": 3.0,
            "lambda_cycle_kl": 0.7,
            "lambda_cycle": 2.0,
        }
    },
    "free bits": {"loss": {"free_bits": 5.0}},
    "fine structure": {
        "loss": {"lambda_gradient": 0.3, "calcium_weight": 4.0, "calcium_hu": 120.0}
    },
    "change of HU": {"loss": {"lambda_change": 0.5}},
    "gradient penalty": {"loss": {"r1": 50.0, "r1_every": 4}},
    "unit": {
        "model": {
            "architecture": "unit",
            "latent_channels": 8,
            "posterior": "unit",
            "norm": "instance",
            "skip": False,
            "position": False,
        },
        "prior": {"components": 1, "learned": False},
    },
    "2.5d": {"data": {"slices": 3}},
    "3d": {"data": {"patch": (8, 8, 8)}, "translate": {"tile": (8, 8, 8)}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_gradients_are_those_of_the_equations(variant):
    config = tiny_config(**VARIANTS[variant])
    translator, critic, pair = prepared(config)
    terms, stepped, stepped_critic = step_on_copies(config, translator, critic, pair)
    expected, total, total_d = plain_step(config, translator, critic, pair, kl_scale=1.0)
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-6), name
    assert_gradients_are_those_of(total, translator, stepped)
    assert_gradients_are_those_of(total_d, critic, stepped_critic)


_SMALL = (
    "data.patch=[16, 16]",
    "translate.tile=[16, 16]",
    "model.width=4",
    "model.downsamplings=1",
    "discriminator.width=4",
    "discriminator.layers=2",
    "discriminator.scales=2",
    "train.batch=2",
)


@pytest.mark.parametrize("preset", preset_names())
def test_a_step_of_every_preset_is_that_of_the_equations(preset):
    baseline = load_config(preset).model.architecture != "pmg"
    channels = f"model.latent_channels={8 if baseline else 4}"
    larger = ["data.patch=[32, 32]"] if baseline else []
    config = load_config(preset, [*_SMALL, channels, *larger])
    translator, critic, pair = prepared(config)
    terms, stepped, stepped_critic = step_on_copies(config, translator, critic, pair, step=30)
    warmup = config.loss.kl_warmup_steps
    expected, total, total_d = plain_step(
        config, translator, critic, pair, 31 / warmup if warmup else 1.0
    )
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-6), name
    clip = config.optim.clip
    assert_gradients_are_those_of(total, translator, stepped, clip)
    assert_gradients_are_those_of(total_d, critic, stepped_critic, clip)


@pytest.mark.slow
@pytest.mark.parametrize("r1", [0.0, 5.0])
def test_a_compiled_step_is_the_step(r1):
    # Captured and differentiated as on a GPU; what writes machine code takes minutes on a CPU.
    config = tiny_config(
        model={"blocks": 1}, discriminator={"scales": 1}, train={"compile": True}, loss={"r1": r1}
    )
    translator, critic, pair = prepared(config)
    eager = config.model_copy(update={"train": config.train.model_copy(update={"compile": False})})
    terms, *stepped = step_on_copies(eager, translator, critic, pair)
    compile_networks(translator, critic, config, backend="aot_eager")
    expected = {name: p.clone() for name, p in translator.named_parameters()}
    engines = torch_engines(translator, critic, eager)
    other_terms = train_step(*engines, pair, 0, eager).terms
    for name, value in terms.items():
        assert other_terms[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-5), name
    for one, other in zip(stepped, (translator, critic), strict=True):
        assert one.state_dict().keys() == other.state_dict().keys()
        for name, parameter in one.named_parameters():
            if parameter.grad is not None:
                error = (other.get_parameter(name).grad - parameter.grad).abs().max()
                assert error <= 1e-4 * max(1, parameter.grad.abs().max()), name
    assert any(not torch.equal(p, expected[n]) for n, p in translator.named_parameters())
    networks = [*translator.encoders, *translator.generators]
    assert all(network._compiled_call_impl is not None for network in networks)
    assert all((d._compiled_call_impl is None) == (r1 > 0) for d in critic.discriminators)


@pytest.mark.parametrize(("step", "kl_scale"), [(0, 0.1), (4, 0.5), (9, 1.0), (50, 1.0)])
def test_warm_up_raises_the_weight_of_every_kl_to_one(step, kl_scale):
    config = tiny_config(loss={"kl_warmup_steps": 10, "lambda_kl": 1.0, "lambda_cycle_kl": 2.0})
    translator, critic, pair = prepared(config)
    terms, stepped, _ = step_on_copies(config, translator, critic, pair, step)
    expected, total, _ = plain_step(config, translator, critic, pair, kl_scale)
    torch.testing.assert_close(terms["total"], total.detach())
    torch.testing.assert_close(terms["vae1.kl"], expected["vae1.kl"].detach())  # unscaled
    assert_gradients_are_those_of(total, translator, stepped)


def test_the_printed_weight_makes_the_translated_kl_a_thousand_times_heavier():
    totals = {}
    for choice in ("lambda3", "lambda4"):
        config = tiny_config(loss={"cycle_kl_weight": choice})
        terms, *_ = step_on_copies(config, *prepared(config))
        totals[choice] = terms["total"].item()
        translated = sum(terms[f"cycle{i}.kl_translated"].item() for i in (1, 2))
    assert totals["lambda4"] - totals["lambda3"] == pytest.approx(
        (10 - 0.01) * translated, rel=1e-3
    )


@pytest.mark.parametrize("estimator", ["bound", "monte_carlo", "vade", "min"])
def test_every_term_is_reported_by_its_name(estimator):
    config = tiny_config(loss={"kl": estimator})
    terms, *_ = step_on_copies(config, *prepared(config))
    assert terms.keys() == DOCUMENTED | HEALTH | {"total"}
    assert all(value.dim() == 0 and value.isfinite() for value in terms.values())
    assert not any(value.requires_grad for value in terms.values())
    assert 1 <= terms["prior.effective_components"] <= 3 + 1e-4
    assert 0 <= terms["latent.active_channels"] <= 1
    shares = [terms[f"prior.responsibility{k}"].item() for k in (1, 2, 3)]
    assert sum(shares) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "estimator"), [("monte_carlo", kl_monte_carlo), ("vade", kl_vade)]
)
def test_estimators_that_sample_take_as_many_samples_as_asked(name, estimator):
    config = tiny_config(loss={"kl": name, "kl_samples": 7, "kl_warmup_steps": 0})
    translator, critic, pair = prepared(config)
    torch.manual_seed(11)
    terms, *_ = step_on_copies(config, translator, critic, pair)
    q = {i: translator.encode(i, pair.x[i], pair.where[i]) for i in (1, 2)}
    torch.manual_seed(11)
    values = []
    for i in (1, 2):
        j = 3 - i
        x_ij = translator.decode(j, q[i].sample(pair.noise[i - 1]), pair.where[i])
        q_cycle = translator.encode(j, x_ij, pair.where[i])
        values += [
            estimator(one.mean, one.log_var, translator.prior.mixture(), samples=7).mean()
            for one in (q[i], q_cycle)
        ]
    got = [terms[term] for i in (1, 2) for term in (f"vae{i}.kl", f"cycle{i}.kl_translated")]
    torch.testing.assert_close(torch.stack(got), torch.stack(values).detach(), rtol=1e-4, atol=1e-4)


def test_the_change_of_hu_is_a_term_only_where_it_is_weighed():
    config = tiny_config(loss={"lambda_change": 0.5})
    terms, *_ = step_on_copies(config, *prepared(config))
    assert terms.keys() == DOCUMENTED | HEALTH | {"total", "change1", "change2"}


def test_the_gradient_penalty_is_taken_seldom_and_reported_always():
    config = tiny_config(loss={"r1": 50.0, "r1_every": 3})
    without = tiny_config()
    translator, critic, pair = prepared(config)
    for step in range(5):
        terms, _, penalised = step_on_copies(config, translator, critic, pair, step)
        _, _, plain = step_on_copies(without, translator, critic, pair, step)
        due = step in (0, 3)
        assert (terms["gan1.r1"].item() > 0, terms["gan2.r1"].item() > 0) == (due, due)
        assert equal(gradients(penalised), gradients(plain)) is not due


def test_spectral_norm_bounds_every_layer_of_d_by_one():
    config = tiny_config(discriminator={"spectral_norm": True})
    translator, critic, pair = prepared(config)
    engines = torch_engines(translator, critic, config)
    for step in range(20):
        train_step(*engines, pair, step, config)
    layers = [m for m in critic.modules() if isinstance(m, nn.Conv2d)]
    assert len(layers) == 2 * 2 * 4  # domains, scales, and the layers of each with that of place
    for layer in layers:
        largest = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
        assert largest.item() == pytest.approx(1, abs=0.05)


def test_one_step_changes_every_parameter_of_e_g_prior_and_d():
    config = tiny_config(optim={"weight_decay": 0.0})
    translator, critic, pair = prepared(config)
    _, *stepped = step_on_copies(config, translator, critic, pair)
    for module, after in zip((translator, critic), stepped, strict=True):
        parameters = after.named_parameters()
        still = [n for n, p in parameters if torch.equal(p, module.get_parameter(n))]
        assert still == []


def test_a_fixed_prior_stays_where_it_is():
    config = tiny_config(prior={"components": 1, "learned": False})
    translator, critic, pair = prepared(config)
    _, stepped, _ = step_on_copies(config, translator, critic, pair)
    assert equal(snapshot(stepped.prior), snapshot(translator.prior))


class Watched(TorchEngine):
    """Says whether anything of the other module moved or gained gradients by this one's doing."""

    other: nn.Module
    disturbed = False

    def backward(self, loss: Tensor) -> None:
        with self._watched():
            super().backward(loss)

    def step(self, lr: float, skip: Tensor) -> None:
        with self._watched():
            super().step(lr, skip)

    @contextmanager
    def _watched(self):
        before = snapshot(self.other), gradients(self.other)
        yield
        after = snapshot(self.other), gradients(self.other)
        self.disturbed |= not all(equal(a, b) for a, b in zip(before, after, strict=True))


def test_updates_of_generator_and_discriminator_leave_one_another_alone():
    config = tiny_config()
    translator, critic, pair = prepared(config)
    engines = [
        Watched(m, torch.optim.Adam(m.parameters(), fused=True)) for m in (translator, critic)
    ]
    engines[0].other, engines[1].other = critic, translator
    for step in range(2):
        train_step(*engines, pair, step, config)
        assert [engine.disturbed for engine in engines] == [False, False]
    assert all(p.requires_grad for p in critic.parameters())


def test_each_side_steps_at_its_own_scheduled_rate():
    config = tiny_config(
        optim={"lr": 4e-4, "lr_discriminator": 2e-4, "schedule": "halve", "halve_every": 10}
    )
    translator, critic, pair = prepared(config)
    engines = torch_engines(translator, critic, config)
    train_step(*engines, pair, 25, config)
    rates = [{group["lr"] for group in engine.optimizer.param_groups} for engine in engines]
    assert rates == [{1e-4}, {0.5e-4}]
