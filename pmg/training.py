"""A run in progress: engines, averaged weights, step counter, and the prior's guards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pmg.engine import Engine, TorchEngine, parameter_groups
from pmg.mixture import fit_mixture, reseed_dead
from pmg.model import Critic, Translator
from pmg.networks import Posterior
from pmg.patches import PatchBatch, to_pair
from pmg.prior import MixturePrior, responsibilities
from pmg.step import Pair, train_step

if TYPE_CHECKING:
    from pmg.config import Config

__all__ = ["Training", "averaged_copy", "build_modules", "torch_engines"]


def build_modules(config: Config) -> tuple[Translator, Critic]:
    """Both modules with weights drawn by the run's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        return Translator(config), Critic(config)


def averaged_copy(translator: Translator, config: Config) -> AveragedModel | None:
    """The exponential moving average of the weights, which translates; None if not configured."""
    decay = config.optim.ema
    if not decay:
        return None
    return AveragedModel(translator, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]


def torch_engines(translator: Translator, critic: Critic, config: Config) -> tuple[Engine, Engine]:
    """Plain torch engines with Adam, for one process."""
    optim = config.optim
    betas = (optim.beta1, optim.beta2)

    def engine(module: nn.Module) -> TorchEngine:
        adam = torch.optim.Adam(parameter_groups(module, optim), betas=betas)
        return TorchEngine(module, adam, optim.clip)

    return engine(translator), engine(critic)


class Training:
    """Advances one run step by step. `step` is the number of steps taken."""

    def __init__(
        self,
        config: Config,
        translator: Engine,
        critic: Engine,
        *,
        device: torch.device,
        averaged: AveragedModel | None = None,
    ) -> None:
        self.config = config
        self.translator, self.critic = translator, critic
        self.averaged = averaged
        self.step = 0
        self.device = device

    @property
    def translating_model(self) -> Translator:
        """The averaged translator, or the trained one where none is averaged."""
        model = self.averaged.module if self.averaged is not None else self.translator.module
        assert isinstance(model, Translator)
        return model

    def advance(self, batch: PatchBatch) -> dict[str, Tensor]:
        """One step on one batch of this rank. Returns every loss term by name, detached."""
        pair = to_pair(batch, self.config, self.device)
        # For the KL estimators that sample: a resumed run draws what it would have drawn.
        # Hashed, for torch's generator looks at 32 bits of its seed on CPUs.
        mixed = np.random.SeedSequence([self.config.train.seed, int(batch.samples[0])])
        torch.manual_seed(int(mixed.generate_state(1)[0]))
        self._guard_prior(pair)
        terms = train_step(self.translator, self.critic, pair, self.step, self.config)
        if self.averaged is not None:
            with self.translator.whole():
                self.averaged.update_parameters(self.translator.module)
        self.step += 1
        return terms

    def _guard_prior(self, pair: Pair) -> None:
        prior = self.config.prior
        fit = prior.fit_step and self.step == prior.fit_step
        reseed = prior.reseed_every and self.step > prior.fit_step
        reseed = reseed and self.step % prior.reseed_every == 0
        if not prior.learned or prior.components == 1 or not (fit or reseed):
            return
        z, share = self.translator.run(_encodings, pair)
        z = self.translator.gather(z).flatten(0, 1)
        share = self.translator.gather(share).mean(dim=0)
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
                self.averaged.module.get_parameter(name).copy_(value)


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
