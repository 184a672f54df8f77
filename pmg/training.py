"""A run in progress: engines, averaged weights, step counter, and the prior's guards."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from pmg.engine import Engine, TorchEngine, adam
from pmg.mixture import fit_mixture, reseed_dead
from pmg.model import Critic, Translator
from pmg.networks import Posterior
from pmg.patches import PatchBatch, to_pair
from pmg.prior import MixturePrior, responsibilities
from pmg.step import Outcome, Pair, train_step

if TYPE_CHECKING:
    from pmg.config import Config

__all__ = ["Training", "averaged_copy", "build_modules", "compile_networks", "torch_engines"]


def build_modules(config: Config) -> tuple[Translator, Critic]:
    """Both modules with weights drawn by the run's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        return Translator(config), Critic(config)


def averaged_copy(translator: Translator, config: Config) -> Translator | None:
    """The exponential moving average of the weights, which translates; None if not configured."""
    if not config.optim.ema:
        return None
    return copy.deepcopy(translator).requires_grad_(False)


def compile_networks(
    translator: Translator, critic: Critic, config: Config, backend: str = "inductor"
) -> None:
    """Compile the networks in place, if configured; names of parameters stay what they are.

    Not the step: its control flow is Python's, and the mixture works in float64. R1 takes the
    gradient of a gradient, which compiled networks do not have.
    """
    if not config.train.compile:
        return
    networks = [*translator.encoders, *translator.generators]
    if not config.loss.r1:
        networks += critic.discriminators
    for network in networks:
        network.compile(backend=backend)


def torch_engines(translator: Translator, critic: Critic, config: Config) -> tuple[Engine, Engine]:
    """Plain torch engines with Adam, for one process."""
    compile_networks(translator, critic, config)
    optim, train = config.optim, config.train

    def engine(module: nn.Module, lr: float) -> TorchEngine:
        return TorchEngine(
            module,
            adam(module, optim, lr),
            optim.clip,
            precision=train.precision,
            accumulate=train.accumulate,
        )

    return engine(translator, optim.lr), engine(critic, optim.lr_discriminator)


class Training:
    """Advances one run step by step. `step` is the number of steps taken, skipped ones too."""

    def __init__(
        self,
        config: Config,
        translator: Engine,
        critic: Engine,
        *,
        device: torch.device,
        averaged: Translator | None = None,
    ) -> None:
        self.config = config
        self.translator, self.critic = translator, critic
        self.averaged = averaged
        self.step = 0
        self.device = device

    @property
    def translating_model(self) -> Translator:
        """The averaged translator, or the trained one where none is averaged."""
        model = self.averaged if self.averaged is not None else self.translator.module
        assert isinstance(model, Translator)
        return model

    def advance(self, batch: PatchBatch) -> Outcome:
        """One step on one batch of this rank."""
        pair = to_pair(batch, self.config, self.device)
        # For the KL estimators that sample: a resumed run draws what it would have drawn.
        # Hashed, for torch's generator looks at 32 bits of its seed on CPUs.
        mixed = np.random.SeedSequence([self.config.train.seed, int(batch.samples[0])])
        torch.manual_seed(int(mixed.generate_state(1)[0]))
        self._guard_prior(pair)
        outcome = train_step(self.translator, self.critic, pair, self.step, self.config)
        if self.averaged is not None:
            with self.translator.whole():
                self._average(self.averaged, outcome.skipped)
        self.step += 1
        return outcome

    @torch.no_grad()
    def _average(self, averaged: Translator, skipped: Tensor) -> None:
        """averaged <- decay averaged + (1 - decay) trained, decay = min(ema, (1 + t) / (5 + t)).

        t counts steps from 0: at first an average over the last fifth of a training, so that what
        it began with is soon forgotten; the trained weights after the first step. Where the step
        was skipped it stays as it is.
        """
        t = self.step
        decay = min(self.config.optim.ema, (1 + t) / (5 + t)) if t else 0.0
        weight = (1 - skipped) * (1 - decay)
        own: list[Tensor] = list(averaged.parameters())
        trained: list[Tensor] = list(self.translator.module.parameters())
        torch._foreach_lerp_(own, trained, [weight] * len(own))  # type: ignore[list-item]

    def _guard_prior(self, pair: Pair) -> None:
        prior = self.config.prior
        fit = prior.fit_step and self.step == prior.fit_step
        reseed = prior.reseed_every and self.step > prior.fit_step
        reseed = reseed and self.step % prior.reseed_every == 0
        if not prior.learned or not (fit or reseed) or (prior.components == 1 and not fit):
            return
        z, share = self.translator.run(_encodings, pair)
        z, share = self.translator.gather(z), self.translator.gather(share)
        sound = torch.isfinite(z).flatten(1).all(dim=1) & torch.isfinite(share).all(dim=1)
        if not sound.any():
            return
        z, share = z[sound].flatten(0, 1), share[sound].mean(dim=0)
        seed = self.config.train.seed + self.step
        values = self.translator.run(_fit if fit else _reseed, z, share, seed)
        if values:
            self.translator.assign(values)
            self._assign_averaged(values)

    @torch.no_grad()
    def _assign_averaged(self, values: Mapping[str, Tensor]) -> None:
        """A jump of the prior is no step to average over: the old one would stay for long."""
        if self.averaged is not None:
            for name, value in values.items():
                self.averaged.get_parameter(name).copy_(value)


@torch.no_grad()
def _encodings(model: Translator, pair: Pair) -> tuple[Tensor, Tensor]:
    """Samples of both domains' posteriors [B, N, C], and each pair's mean responsibilities [B, K].

    By pair, so that the ranks' shares, gathered, come in the order of one process.
    """
    mixture = model.prior.mixture()
    vectors, shares = [], []
    for domain in (1, 2):
        q: Posterior = model.encode(domain, pair.x[domain], pair.where[domain])
        vectors.append(q.sample(pair.noise[domain - 1]).flatten(2).mT)
        shares.append(responsibilities(q.mean, q.log_var, mixture).flatten(2).mean(dim=2))
    return torch.cat(vectors, dim=1), torch.stack(shares).mean(dim=0)


def _fit(model: Translator, z: Tensor, share: Tensor, seed: int) -> Mapping[str, Tensor]:
    fitted = fit_mixture(z, len(share), seed=seed)
    return _named(model.prior, model.prior.raw_from(fitted))


def _reseed(model: Translator, z: Tensor, share: Tensor, seed: int) -> Mapping[str, Tensor]:
    mixture = reseed_dead(model.prior.mixture(), share, z, seed=seed)
    return _named(model.prior, model.prior.raw_from(mixture)) if mixture is not None else {}


def _named(prior: MixturePrior, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    shapes = dict(prior.named_parameters())
    return {f"prior.{name}": value.detach().to(shapes[name].dtype) for name, value in raw.items()}
