"""Encoders, generators and discriminators, in 2D, 2.5D and 3D by one code.

x: [B, N, *S], N slices of a 2.5D patch, else 1; z: [B, C, *s] with s = S / 2^downsamplings.
By default nothing normalises over space, so that a voxel does not depend on its tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pmg.cosine import CosineSkip
from pmg.where import POSITION_FEATURES, Where

if TYPE_CHECKING:
    from pmg.config import DiscriminatorConfig, ModelConfig

__all__ = [
    "Discriminator",
    "Encoder",
    "EncoderTail",
    "Generator",
    "GeneratorHead",
    "Posterior",
    "certain",
    "norm_layer",
]

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_LINEAR = {4: "bilinear", 5: "trilinear"}
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
# Brings soft tissue, a narrow band of [-1, 1], to unit scale, where activations are non-linear.
_INPUT_GAIN = 4.0
_MIN_LOG_VAR, _MAX_LOG_VAR = -14.0, 4.0
# A nearly deterministic start: at the published weights the learned variance ends near exp(-12),
# and from 1 Adam would need thousands of steps to get there.
_START_LOG_VAR = -8.0
# A standard deviation of 1e-13: samples are the mean to the last bit, and the KL stays finite.
_NO_WIDTH_LOG_VAR = -60.0


@dataclass(frozen=True)
class Posterior:
    """q(z given x) = N(mean, diag exp(log_var)); both [B, C, *s]."""

    mean: Tensor
    log_var: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std * noise, for standard normal noise [B, C, *s]."""
        return self.mean + torch.exp(0.5 * self.log_var) * noise


def certain(mean: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance of a posterior whose samples are its mean."""
    return mean, torch.full_like(mean, _NO_WIDTH_LOG_VAR)


class Encoder(nn.Module):
    """E_i: a patch to its posterior. `tail` may be a module that both domains share."""

    def __init__(self, config: ModelConfig, dims: int, slices: int, tail: nn.Module) -> None:
        super().__init__()
        self.stem = _conv(dims, slices, config.width, 5, reflect=True)
        self.downs = nn.ModuleList()
        width = config.width
        for _ in range(config.downsamplings):
            self.downs.append(_activated(config, width, _conv(dims, width, 2 * width, 4, stride=2)))
            width *= 2
        self.position = _position(config, dims, width)
        own = config.blocks - config.shared_blocks
        self.blocks = nn.Sequential(*[Block(config, dims, width) for _ in range(own)])
        self.tail = tail
        self.skip = _skip(config, dims, slices)

    def forward(self, x: Tensor, where: Tensor | None) -> Posterior:
        h = _channels_last(self.stem(_INPUT_GAIN * x))
        for down in self.downs:
            h = down(h)
        h = _add_position(h, self.position, where)
        linear = None if self.skip is None else self.skip.analyse(x.float())
        return Posterior(*self.tail(self.blocks(h), linear))


class EncoderTail(nn.Module):
    """The last blocks of the encoders and the posterior's parameters."""

    def __init__(self, config: ModelConfig, dims: int) -> None:
        super().__init__()
        width = config.width * 2**config.downsamplings
        shared = config.shared_blocks
        self.blocks = nn.Sequential(*[Block(config, dims, width) for _ in range(shared)])
        self.certain = config.posterior == "none"
        self.mean = _conv(dims, width, config.latent_channels, 1)
        self.gain: nn.Module | None = None
        if config.skip:
            _zero(self.mean)
            self.gain = _zero(_conv(dims, width, config.latent_channels, 1))
        self.log_var: nn.Module | None = None
        if config.posterior == "learned":
            self.log_var = _zero(_conv(dims, width, config.latent_channels, 1))

    def forward(self, h: Tensor, linear: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log variance. linear: what the linear path gives, [B, C, *s], if there is one.

        It is weighed frequency by frequency at every position: to leave noise out of z is one
        factor there, by tissue, and not a copy of the noise to be subtracted.
        """
        h = F.silu(self.blocks(h))
        mean = self.mean(h).float()
        if self.gain is not None and linear is not None:
            mean = mean + (1 + self.gain(h).float()) * linear
        if self.certain:
            return certain(mean)
        if self.log_var is None:
            return mean, torch.zeros_like(mean)
        return mean, (_START_LOG_VAR + self.log_var(h).float()).clamp(_MIN_LOG_VAR, _MAX_LOG_VAR)


class GeneratorHead(nn.Module):
    """The first blocks of the generators."""

    def __init__(self, config: ModelConfig, dims: int) -> None:
        super().__init__()
        width = config.width * 2**config.downsamplings
        self.inlet = _conv(dims, config.latent_channels, width, 1)
        self.position = _position(config, dims, width)
        shared = config.shared_blocks
        self.blocks = nn.Sequential(*[Block(config, dims, width) for _ in range(shared)])

    def forward(self, z: Tensor, where: Tensor | None) -> Tensor:
        placed = _add_position(_channels_last(self.inlet(z)), self.position, where)
        h: Tensor = self.blocks(placed)
        return h


class Generator(nn.Module):
    """G_i: a latent to a patch of domain i. `head` may be a module that both domains share."""

    def __init__(self, config: ModelConfig, dims: int, slices: int, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        width = config.width * 2**config.downsamplings
        own = config.blocks - config.shared_blocks
        self.position = _position(config, dims, width)
        self.blocks = nn.Sequential(*[Block(config, dims, width) for _ in range(own)])
        self.ups = nn.ModuleList()
        for _ in range(config.downsamplings):
            self.ups.append(_activated(config, width, _conv(dims, width, width // 2, 3)))
            width //= 2
        self.out = _activated(config, width, _conv(dims, width, slices, 3))
        self.skip = _skip(config, dims, slices)
        if self.skip is not None:
            _zero(self.out[-1])

    def forward(self, z: Tensor, where: Tensor | None) -> Tensor:
        h = self.head(z, where)
        h = self.blocks(_add_position(h, self.position, where))
        for up in self.ups:
            # Resize, then convolve: no checkerboard, which a strided transposed convolution leaves
            # (Odena et al. 2016). Linearly: copies of the nearest leave the latent's grid in the
            # image, 5 to 8 % of its contrast at first, where this leaves 0.1 %.
            h = up(F.interpolate(h, scale_factor=2, mode=_LINEAR[h.dim()]))
        x: Tensor = self.out(h)
        return x if self.skip is None else x + self.skip.synthesise(z.float())


class Discriminator(nn.Module):
    """D_i: score maps of a patch at several resolutions, told the patch's place if configured."""

    def __init__(
        self, config: DiscriminatorConfig, dims: int, slices: int, *, position: bool
    ) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            [ScoreMap(config, dims, slices, position=position) for _ in range(config.scales)]
        )
        self._pool = {2: F.avg_pool2d, 3: F.avg_pool3d}[dims]

    def forward(self, x: Tensor, where: Where) -> list[Tensor]:
        scores = []
        stride = 1
        for scale in self.scales:
            scores.append(scale(x, where, stride))
            x = self._pool(x, 2)
            stride *= 2
        return scores


class ScoreMap(nn.Module):
    """One scale of a discriminator: stride-2 layers, then one score per block of the patch."""

    def __init__(
        self, config: DiscriminatorConfig, dims: int, slices: int, *, position: bool
    ) -> None:
        super().__init__()
        width = config.width
        self.first = _conv(dims, slices, width, 4, stride=2)
        self.position = _CONV[dims](POSITION_FEATURES, width, 1) if position else None
        layers: list[nn.Module] = []
        for _ in range(config.layers - 1):
            layers += [nn.LeakyReLU(0.2), _conv(dims, width, 2 * width, 4, stride=2)]
            width *= 2
        self.rest = nn.Sequential(*layers, nn.LeakyReLU(0.2), _conv(dims, width, 1, 1))

    def forward(self, x: Tensor, where: Where, stride: int) -> Tensor:
        h = _channels_last(self.first(_INPUT_GAIN * x))
        # Early, so that the later layers can judge the appearance given the place.
        features = where.features(h.shape[2:], 2 * stride) if self.position is not None else None
        scores: Tensor = self.rest(_add_position(h, self.position, features))
        return scores


class Block(nn.Module):
    """Pre-activation residual block that starts as the identity: depth needs no norms."""

    def __init__(self, config: ModelConfig, dims: int, width: int) -> None:
        super().__init__()
        self.first = _activated(config, width, _conv(dims, width, width, 3))
        self.second = _activated(config, width, _conv(dims, width, width, 3))
        _zero(self.second[-1])

    def forward(self, h: Tensor) -> Tensor:
        change: Tensor = self.second(self.first(h))
        return h + change


def norm_layer(norm: str, width: int) -> nn.Module:
    """The layer that `model.norm` names: none, group or instance."""
    if norm == "none":
        return nn.Identity()
    # One channel a group is instance norm; 8 groups keep some of the contrast between channels.
    groups = {"group": math.gcd(8, width), "instance": width}[norm]
    return nn.GroupNorm(groups, width)


def _conv(
    dims: int,
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    stride: int = 1,
    reflect: bool = False,
) -> nn.Module:
    """A convolution that keeps the signal's variance (He et al. 2015).

    torch's default shrinks it by half or more in every layer, which nets without normalisation do
    not make good: D then learns next to nothing for 1000 steps.
    """
    padding = (kernel - 1) // 2
    mode: Literal["reflect", "zeros"] = "reflect" if reflect else "zeros"
    layer = _CONV[dims](inputs, outputs, kernel, stride, padding, padding_mode=mode)
    nn.init.kaiming_normal_(layer.weight, a=0.2, nonlinearity="leaky_relu")
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _zero(layer: nn.Module) -> nn.Module:
    """The layer with all parameters 0: what it adds to starts undisturbed."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _activated(config: ModelConfig, width: int, layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(norm_layer(config.norm, width), nn.SiLU(), layer)


def _position(config: ModelConfig, dims: int, width: int) -> nn.Module | None:
    return _CONV[dims](POSITION_FEATURES, width, 1) if config.position else None


def _skip(config: ModelConfig, dims: int, slices: int) -> CosineSkip | None:
    if not config.skip:
        return None
    return CosineSkip(config.latent_channels, 2**config.downsamplings, dims, slices)


def _add_position(h: Tensor, layer: nn.Module | None, features: Tensor | None) -> Tensor:
    if layer is None or features is None:
        return h
    embedded: Tensor = layer(features.to(h.dtype))
    return h + embedded


def _channels_last(h: Tensor) -> Tensor:
    """The layout in which convolutions are fastest, on CPUs (1.4 times here) and tensor cores.

    Set on activations, since ZeRO's flat buffers undo it on weights.
    """
    return h.contiguous(memory_format=_CHANNELS_LAST[h.dim()])
