"""One training step: encode, decode, translate, cycle, losses, two updates.

min over E, G, prior; max over D of VAE_1 + VAE_2 + CC_1 + CC_2 + GAN_1 + GAN_2. Every forward pass
is shared by the terms that need it; the equations stand in `generator_loss`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pmg.engine import Engine, learning_rate_factor
from pmg.losses import (
    ADVERSARIAL,
    LIKELIHOODS,
    calcium_weight,
    change,
    free_bits,
    gradient_change,
    gradient_penalty,
)
from pmg.model import Critic, Domain, Translator, other
from pmg.networks import Posterior
from pmg.prior import (
    Mixture,
    active_channels,
    effective_components,
    kl_estimator,
    mean_responsibilities,
    responsibilities,
)
from pmg.where import Where
from pmg.window import Window, window_of

if TYPE_CHECKING:
    from pmg.config import Config, LossConfig

__all__ = ["Outcome", "Pair", "discriminator_loss", "generator_loss", "train_step"]

_DOMAINS: tuple[Domain, Domain] = (1, 2)


@dataclass(frozen=True)
class Pair:
    """A batch of co-located patches: x_i [B, N, *S] in [-1, 1], their places, and noise.

    noise: [4, B, C, *s], standard normal, for samples of q_1, q_2 and their cycles' posteriors.
    """

    x: dict[Domain, Tensor]
    where: dict[Domain, Where]
    noise: Tensor

    def parts(self, count: int) -> Iterator[Pair]:
        """The batch in `count` equal micro-batches, one after the other."""
        size = self.noise.shape[1] // count
        for part in (slice(k * size, (k + 1) * size) for k in range(count)):
            where = {i: Where(w.start_mm[part], w.spacing_mm) for i, w in self.where.items()}
            yield Pair({i: x[part] for i, x in self.x.items()}, where, self.noise[:, part])


@dataclass(frozen=True)
class Forward:
    """What one pass through the translator gave: the loss, its terms by name, the translations."""

    loss: Tensor
    terms: dict[str, Tensor]
    translated: dict[Domain, Tensor]
    posterior: dict[Domain, Posterior]


def generator_loss(
    model: Translator,
    critic: Critic,
    pair: Pair,
    loss: LossConfig,
    window: Window,
    kl_scale: float,
) -> Forward:
    """The objective of E, G and the prior; D is held fixed by the caller.

    VAE_i = lambda1 KL(q_i(z given x_i), p) + lambda2 E[-log p_Gi(x_i given z)]
    GAN_i = lambda0 G's side of the game against D_i on G_i(z_j)
    CC_i  = lambda3 KL(q_i(z given x_i), p) + lambda3 KL(q_j(z given x_i->j), p)
            + lambda4 E[-log p_Gi(x_i given z ~ q_j(x_i->j))]

    With lambda_change also the HU that translation changes, with lambda_gradient the differences
    of neighbours that it changes, with lambda_identity what the translator to domain i changes in
    x_i; the paper has none of them. VAE_i and both KL are left out where their weights are 0.

    kl_scale: 0 to 1, the KL warm-up. `translated[i]` is x_j->i, at the place of x_j.
    """
    x, where = pair.x, pair.where
    likelihood = LIKELIHOODS[loss.likelihood]
    adversarial = ADVERSARIAL[loss.adversarial]
    prior = model.prior.mixture()
    kl = partial(_mean_kl, kl_estimator(loss.kl, loss.kl_samples), prior, loss.free_bits)

    q = {i: model.encode(i, x[i], where[i]) for i in _DOMAINS}
    z = {i: q[i].sample(pair.noise[i - 1]) for i in _DOMAINS}
    x_self, x_cross = {}, {}  # G_i(z_i), G_i(z_j)
    for i in _DOMAINS:
        j = other(i)
        if loss.lambda_reconstruction:
            decoded = model.decode(i, torch.cat([z[i], z[j]]), _concatenate(where[i], where[j]))
            x_self[i], x_cross[i] = decoded.chunk(2)
        else:
            x_cross[i] = model.decode(i, z[j], where[j])

    lambda_translated = (
        loss.lambda_cycle_kl if loss.cycle_kl_weight == "lambda3" else loss.lambda_cycle
    )
    terms: dict[str, Tensor] = {}
    weights: dict[str, float] = {}

    def add(name: str, weight: float, value: Tensor) -> None:
        terms[name], weights[name] = value, weight

    for i in _DOMAINS:
        j = other(i)
        q_cycle = model.encode(j, x_cross[j], where[i])  # q_j(z given x_i->j)
        x_cycle = model.decode(i, q_cycle.sample(pair.noise[i + 1]), where[i])
        counts = calcium_weight(x[i], window, loss.calcium_hu, loss.calcium_weight)
        if loss.lambda_kl or loss.lambda_cycle_kl:
            kl_i = kl(q[i])
            add(f"vae{i}.kl", kl_scale * loss.lambda_kl, kl_i)
            add(f"cycle{i}.kl", kl_scale * loss.lambda_cycle_kl, kl_i)
            add(f"cycle{i}.kl_translated", kl_scale * lambda_translated, kl(q_cycle))
        if loss.lambda_reconstruction:
            reconstructed = likelihood(x_self[i], x[i], counts)
            add(f"vae{i}.reconstruction", loss.lambda_reconstruction, reconstructed)
        add(f"cycle{i}.reconstruction", loss.lambda_cycle, likelihood(x_cycle, x[i], counts))
        if loss.lambda_identity:
            unchanged, _ = model.translate(j, x[i], where[i])
            add(f"identity{i}", loss.lambda_identity, likelihood(unchanged, x[i], counts))
        if loss.lambda_change:
            add(f"change{i}", loss.lambda_change, change(x_cross[j], x[i], window))
        if loss.lambda_gradient:
            changed = gradient_change(x_cross[j], x[i], window)
            add(f"gradient{i}", loss.lambda_gradient, changed)
        scores = critic.scores(i, x_cross[i], where[j])
        add(f"gan{i}.generator", loss.lambda_gan, adversarial.generator(scores))

    total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
    return Forward(total, terms, x_cross, q)


def discriminator_loss(
    critic: Critic, pair: Pair, translated: dict[Domain, Tensor], loss: LossConfig, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """D's side of GAN_1 and GAN_2 on real x_i and translated G_i(z_j), which carry no gradient.

    Both go through D in one pass. With r1 also the penalty on D's gradient at x_i: seldom, and then
    as heavy as those left out.
    """
    adversarial = ADVERSARIAL[loss.adversarial]
    terms, penalties = {}, {}
    penalised = loss.r1 > 0 and step % loss.r1_every == 0
    for i in _DOMAINS:
        x = pair.x[i].detach().requires_grad_(penalised)
        both = torch.cat([x, translated[i].detach()])
        places = _concatenate(pair.where[i], pair.where[other(i)])
        scores = [one.chunk(2) for one in critic.scores(i, both, places)]
        real, fake = [r for r, _ in scores], [f for _, f in scores]
        terms[f"gan{i}.discriminator"] = adversarial.discriminator(real, fake)
        if penalised:
            penalties[f"gan{i}.r1"] = loss.r1_every * loss.r1 * gradient_penalty(real, x)
        elif loss.r1:
            penalties[f"gan{i}.r1"] = torch.zeros_like(terms[f"gan{i}.discriminator"])
    total = loss.lambda_gan * torch.stack(list(terms.values())).sum()
    return sum(penalties.values(), total), terms | penalties


def train_step(
    translator: Engine, critic: Engine, pair: Pair, step: int, config: Config
) -> Outcome:
    """Update E, G and the prior, and D, on one batch; both or neither, and all ranks alike.

    An update is left out where any rank met a loss or a gradient that is not finite. The host
    learns of it when it asks for the outcome: nothing here waits for the device.

    The generator's loss calls D's bare module with frozen parameters, never its engine: through
    the engine DeepSpeed 0.19 raises at ZeRO 0 to 2 and gives wrong numbers at 3.
    """
    factor = learning_rate_factor(step, config.train.steps, config.optim)
    warmup = config.loss.kl_warmup_steps
    kl_scale = min(1.0, (step + 1) / warmup) if warmup else 1.0
    window = window_of(config.data)
    measured: list[dict[str, Tensor]] = []
    suspects: list[Tensor] = []

    for part in pair.parts(config.train.accumulate):
        critic.module.requires_grad_(False)
        forward = translator.run(generator_loss, critic.module, part, config.loss, window, kl_scale)
        translator.backward(forward.loss)
        critic.module.requires_grad_(True)

        loss, terms = critic.run(discriminator_loss, part, forward.translated, config.loss, step)
        critic.backward(loss)

        terms = forward.terms | terms | translator.run(_latent_health, forward.posterior)
        measured.append(_detached(terms | {"total": forward.loss}))
        suspects.append(_not_finite_samples(part, forward.translated))

    terms = {name: torch.stack([m[name] for m in measured]).mean(dim=0) for name in measured[0]}
    own = torch.stack([t.float() for t in terms.values()])
    wrong = ~torch.isfinite(own).all()
    own_fault = translator.fault() | critic.fault()
    wrong, fault = translator.anywhere(torch.stack([wrong, own_fault])).unbind()
    skip = torch.maximum(wrong, fault)
    # In fp16 gradients overflow now and then, which halves the scale and is no defect.
    counted = torch.maximum(wrong, fault * (translator.scale.value <= 1))
    translator.step(config.optim.lr * factor, skip)
    critic.step(config.optim.lr_discriminator * factor, skip)
    bad_terms = ~torch.isfinite(own)
    return Outcome(terms, skip, counted, bad_terms, own_fault, torch.cat(suspects))


@dataclass(frozen=True)
class Outcome:
    """What one step gave, on the device.

    terms: every loss term by name, detached, the mean over this rank's micro-batches.
    skipped: 1 where no rank updated anything, since a loss or a gradient was not finite on some.
    counted: the same, less the overflows that a loss scale is there for.
    bad_terms, bad_gradient, bad_samples: which terms, whether any gradient, and which samples of
    this rank were not finite.
    """

    terms: dict[str, Tensor]
    skipped: Tensor
    counted: Tensor
    bad_terms: Tensor
    bad_gradient: Tensor
    bad_samples: Tensor


@torch.no_grad()
def _not_finite_samples(pair: Pair, translated: dict[Domain, Tensor]) -> Tensor:
    """Which samples have a number that is none in their patches or translations: [B].

    No network mixes samples, so that this names the one that brought it in.
    """
    involved = [*pair.x.values(), translated[1], translated[2]]
    sums = [x.flatten(1).sum(dim=1, dtype=torch.float32) for x in involved]
    return ~torch.isfinite(torch.stack(sums)).all(dim=0)


def _detached(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in terms.items()}


@torch.no_grad()
def _latent_health(model: Translator, q: dict[Domain, Posterior]) -> dict[str, Tensor]:
    """What shows a collapse: of the mixture to few components, of the posterior to few channels."""
    prior = model.prior.mixture()
    shares = [responsibilities(q[i].mean, q[i].log_var, prior) for i in _DOMAINS]
    mean_share = mean_responsibilities(torch.cat(shares))
    health = {f"prior.responsibility{k}": share for k, share in enumerate(mean_share, 1)}
    return health | {
        "prior.effective_components": effective_components(mean_share),
        "latent.active_channels": active_channels(torch.cat([q[i].mean for i in _DOMAINS])),
    }


def _mean_kl(
    estimator: Callable[[Tensor, Tensor, Mixture], Tensor],
    prior: Mixture,
    minimum: float,
    q: Posterior,
) -> Tensor:
    return free_bits(estimator(q.mean, q.log_var, prior), minimum)


def _concatenate(a: Where, b: Where) -> Where:
    return Where(torch.cat([a.start_mm, b.start_mm]), a.spacing_mm)
