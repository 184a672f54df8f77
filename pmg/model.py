"""The two trained modules: `Translator` (E1, E2, G1, G2 and the prior) and `Critic` (D1, D2)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from pmg import cyclegan_networks, networks, unit_networks
from pmg.networks import Posterior
from pmg.prior import MixturePrior
from pmg.where import Where

if TYPE_CHECKING:
    from pmg.config import Config

__all__ = ["Critic", "Domain", "Translator", "other"]

Domain = Literal[1, 2]


def other(domain: Domain) -> Domain:
    """j for i, i for j."""
    return 2 if domain == 1 else 1


@dataclass(frozen=True)
class _Networks:
    """The parts of one architecture. Tail and head may be shared by both domains."""

    encoder: Callable[..., nn.Module]
    tail: Callable[..., nn.Module]
    head: Callable[..., nn.Module]
    generator: Callable[..., nn.Module]
    discriminator: Callable[..., nn.Module]


_NETWORKS = {
    "pmg": _Networks(
        networks.Encoder,
        networks.EncoderTail,
        networks.GeneratorHead,
        networks.Generator,
        networks.Discriminator,
    ),
    "unit": _Networks(
        unit_networks.Encoder,
        unit_networks.EncoderTail,
        unit_networks.GeneratorHead,
        unit_networks.Generator,
        unit_networks.Discriminator,
    ),
    "cyclegan": _Networks(
        cyclegan_networks.Encoder,
        cyclegan_networks.EncoderTail,
        cyclegan_networks.GeneratorHead,
        cyclegan_networks.Generator,
        cyclegan_networks.Discriminator,
    ),
}


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
        model, dims, slices = config.model, len(config.data.patch), config.data.slices
        nets = _NETWORKS[model.architecture]
        tail, head = nets.tail(model, dims), nets.head(model, dims)
        shared = model.shared_blocks > 0
        encoder = nets.encoder(model, dims, slices, tail)
        generator = nets.generator(model, dims, slices, head)
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
        self.slices = slices

    def encode(self, domain: Domain, x: Tensor, where: Where) -> Posterior:
        """q_i(z given x): x [B, N, *S] in [-1, 1] -> mean and log_var [B, C, *s]."""
        blocks = [n // self.stride for n in x.shape[2:]]
        posterior: Posterior = self.encoders[domain - 1](x, where.features(blocks, self.stride))
        return posterior

    def decode(self, domain: Domain, z: Tensor, where: Where) -> Tensor:
        """G_i(z): z [B, C, *s] -> [B, N, *S], nominally in [-1, 1]."""
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
        dims, slices = len(config.data.patch), config.data.slices
        discriminator = _NETWORKS[config.model.architecture].discriminator
        self.discriminators = nn.ModuleList(
            [
                discriminator(config.discriminator, dims, slices, position=config.model.position)
                for _ in range(2)
            ]
        )
        if config.discriminator.spectral_norm:  # Miyato et al. 2018
            for layer in list(self.modules()):
                if isinstance(layer, nn.Conv2d | nn.Conv3d):
                    spectral_norm(layer)

    def scores(self, domain: Domain, x: Tensor, where: Where) -> list[Tensor]:
        """D_i(x), one map [B, 1, ...] per scale."""
        maps: list[Tensor] = self.discriminators[domain - 1](x, where)
        return maps
