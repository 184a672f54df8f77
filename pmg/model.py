"""The two trained modules: `Translator` (E1, E2, G1, G2 and the prior) and `Critic` (D1, D2)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from pmg.networks import (
    Discriminator,
    Encoder,
    EncoderTail,
    Generator,
    GeneratorHead,
    Posterior,
)
from pmg.prior import MixturePrior
from pmg.where import Where

if TYPE_CHECKING:
    from pmg.config import Config

__all__ = ["Critic", "Domain", "Translator", "other"]

Domain = Literal[1, 2]


def other(domain: Domain) -> Domain:
    """j for i, i for j."""
    return 2 if domain == 1 else 1


class _Callable(nn.Module):
    """A module whose forward runs a function on itself.

    Everything that touches the parameters then happens inside one forward of whatever wraps the
    module, which is where DeepSpeed's hooks gather and release sharded parameters.
    """

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(self, *args)


class Translator(_Callable):
    """Two VAEs with one latent: E_i(x) -> q_i(z given x), G_i(z) -> x, and the prior p(z)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        model, dims = config.model, len(config.data.patch)
        tail, head = EncoderTail(model, dims), GeneratorHead(model, dims)
        shared = model.shared_blocks > 0
        encoder, generator = Encoder(model, dims, tail), Generator(model, dims, head)
        # Both domains start from the same weights: translation starts as reconstruction, so that
        # fine structure is there from the first step and only what differs has to be learned.
        self.encoders = nn.ModuleList([encoder, copy.deepcopy(encoder)])
        self.generators = nn.ModuleList([generator, copy.deepcopy(generator)])
        if shared:
            self.encoders[1].tail = tail
            self.generators[1].head = head
        prior = config.prior
        self.prior = MixturePrior(
            prior.components,
            model.latent_channels,
            min_weight=prior.min_weight,
            min_std=prior.min_std,
            learned=prior.learned,
        )
        self.stride = 2**model.downsamplings

    def encode(self, domain: Domain, x: Tensor, where: Where) -> Posterior:
        """q_i(z given x): x [B, 1, *S] in [-1, 1] -> mean and log_var [B, C, *s]."""
        blocks = [n // self.stride for n in x.shape[2:]]
        posterior: Posterior = self.encoders[domain - 1](x, where.features(blocks, self.stride))
        return posterior

    def decode(self, domain: Domain, z: Tensor, where: Where) -> Tensor:
        """G_i(z): z [B, C, *s] -> [B, 1, *S], nominally in [-1, 1]."""
        features = where.features(z.shape[2:], self.stride)
        x: Tensor = self.generators[domain - 1](z, features)
        return x

    def translate(self, source: Domain, x: Tensor, where: Where) -> tuple[Tensor, Posterior]:
        """x_i -> G_j(mean of q_i): the deterministic translation, and the posterior behind it."""
        posterior = self.encode(source, x, where)
        return self.decode(other(source), posterior.mean, where), posterior


class Critic(_Callable):
    """D1 and D2."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        dims, position = len(config.data.patch), config.model.position
        self.discriminators = nn.ModuleList(
            [Discriminator(config.discriminator, dims, position=position) for _ in range(2)]
        )

    def scores(self, domain: Domain, x: Tensor, where: Where) -> list[Tensor]:
        """D_i(x), one map [B, 1, ...] per scale."""
        maps: list[Tensor] = self.discriminators[domain - 1](x, where)
        return maps
