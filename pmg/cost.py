"""What a configuration costs before anything is trained: parameters and operations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pmg.model import Critic, Domain, Translator
from pmg.step import Pair, discriminator_loss, generator_loss
from pmg.where import Where
from pmg.window import window_of

if TYPE_CHECKING:
    from pmg.config import Config

__all__ = ["Cost", "activation_bytes", "cost_of"]


@dataclass(frozen=True)
class Cost:
    """parameters: of E, G, the prior and D of both domains, shared ones once.

    step_flops: of one training step on one pair of patches, without R1. translation_flops: of one
    patch from domain 1 to 2. Operations of matrix products and convolutions, a multiplication and
    an addition being two.
    """

    parameters: dict[str, int]
    step_flops: int
    translation_flops: int

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {_short(n)}" for name, n in self.parameters.items())
        return (
            f"{_short(sum(self.parameters.values()))} parameters ({parts}); "
            f"{_short(self.step_flops, 'FLOP')} a step and pair, "
            f"{_short(self.translation_flops, 'FLOP')} to translate a patch"
        )


def cost_of(config: Config) -> Cost:
    """Counted by one step on tensors without data: takes seconds, and no memory."""
    with torch.device("meta"):
        translator, critic = Translator(config), Critic(config)
        pair = _empty_pair(config, translator.stride)
    with FlopCounterMode(display=False) as step:
        critic.requires_grad_(False)
        forward = generator_loss(
            translator, critic, pair, config.loss, window_of(config.data), kl_scale=1.0
        )
        torch.autograd.backward(forward.loss)
        critic.requires_grad_(True)
        without_r1 = config.loss.model_copy(update={"r1": 0.0})
        loss, _ = discriminator_loss(critic, pair, forward.translated, without_r1, step=0)
        torch.autograd.backward(loss)
    with FlopCounterMode(display=False) as translation, torch.no_grad():
        translator.translate(1, pair.x[1], pair.where[1])
    parts = {
        "E": translator.encoders,
        "G": translator.generators,
        "prior": translator.prior,
        "D": critic,
    }
    return Cost(
        {name: _parameters(module) for name, module in parts.items()},
        step.get_total_flops(),
        translation.get_total_flops(),
    )


def activation_bytes(config: Config) -> int:
    """What the generator's pass keeps for its gradient, on one pair, in float32.

    Each tensor once, parameters left out. D's own pass keeps less, and comes later.
    """
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.dtype.is_floating_point and not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.device("meta"):
        translator, critic = Translator(config), Critic(config)
        pair = _empty_pair(config, translator.stride)
    critic.requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        forward = generator_loss(
            translator, critic, pair, config.loss, window_of(config.data), kl_scale=1.0
        )
    del forward
    return sum(kept.values())


def _empty_pair(config: Config, stride: int) -> Pair:
    data = config.data
    where = Where(torch.zeros(1, 3), (1.0, 1.0, 1.0))
    domains: tuple[Domain, Domain] = (1, 2)
    latent = [config.model.latent_channels, *(n // stride for n in data.patch)]
    return Pair(
        {i: torch.zeros(1, data.slices, *data.patch) for i in domains},
        dict.fromkeys(domains, where),
        torch.zeros(4, 1, *latent),
    )


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _short(number: float, unit: str = "") -> str:
    """Three digits and a prefix: 12.3 M."""
    thousands = int(math.log10(max(number, 1)) / 3)
    prefix = ("", "k", "M", "G", "T", "P")[thousands]
    return f"{number / 1000**thousands:.3g} {prefix}{unit}".rstrip()
