"""The networks of UNIT's published code (Liu et al. 2017; its release of 2018), for the baseline.

Post-activation, reflected borders, instance norm in E and in the residual blocks, layer norm in G's
up-sampling, none in D; the last residual block of E gives the posterior's mean. Both norms look at
the whole tile: a voxel depends on what lies far away. The interfaces are those of `pmg.networks`,
and so are 2D, 2.5D and 3D.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pmg.baseline_layers import AVERAGE_POOL, CONV, MultiScale, Residual, normed
from pmg.networks import Posterior

if TYPE_CHECKING:
    from pmg.config import DiscriminatorConfig, ModelConfig

__all__ = ["Discriminator", "Encoder", "EncoderTail", "Generator", "GeneratorHead"]


class Encoder(nn.Module):
    """E_i: one 7-wide layer, halvings 4 wide, residual blocks."""

    def __init__(self, config: ModelConfig, dims: int, slices: int, tail: nn.Module) -> None:
        super().__init__()
        width = config.width
        layers = normed(dims, _conv(dims, slices, width, 7))
        for _ in range(config.downsamplings):
            layers += normed(dims, _conv(dims, width, 2 * width, 4, stride=2))
            width *= 2
        self.down = nn.Sequential(*layers)
        self.blocks = _blocks(dims, width, config.blocks - config.shared_blocks)
        self.tail = tail

    def forward(self, x: Tensor, where: Tensor | None) -> Posterior:
        return Posterior(*self.tail(self.blocks(self.down(x))))


class EncoderTail(nn.Module):
    """The last blocks of the encoders; their output is the mean of a posterior of variance 1."""

    def __init__(self, config: ModelConfig, dims: int) -> None:
        super().__init__()
        self.blocks = _blocks(dims, config.latent_channels, config.shared_blocks)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.blocks(h).float()
        return mean, torch.zeros_like(mean)


class GeneratorHead(nn.Module):
    """The first blocks of the generators."""

    def __init__(self, config: ModelConfig, dims: int) -> None:
        super().__init__()
        self.blocks = _blocks(dims, config.latent_channels, config.shared_blocks)

    def forward(self, z: Tensor, where: Tensor | None) -> Tensor:
        h: Tensor = self.blocks(z)
        return h


class Generator(nn.Module):
    """G_i: residual blocks, doublings 5 wide, one 7-wide layer and tanh."""

    def __init__(self, config: ModelConfig, dims: int, slices: int, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        width = config.latent_channels
        self.blocks = _blocks(dims, width, config.blocks - config.shared_blocks)
        layers: list[nn.Module] = []
        for _ in range(config.downsamplings):
            norm = nn.GroupNorm(1, width // 2)  # layer norm over channels and space
            nn.init.uniform_(norm.weight)
            up = nn.Upsample(scale_factor=2, mode="nearest")
            layers += [up, _conv(dims, width, width // 2, 5), norm, nn.ReLU()]
            width //= 2
        self.up = nn.Sequential(*layers, _conv(dims, width, slices, 7), nn.Tanh())

    def forward(self, z: Tensor, where: Tensor | None) -> Tensor:
        x: Tensor = self.up(self.blocks(self.head(z, where)))
        return x


class Discriminator(MultiScale):
    """D_i: score maps of a patch at several resolutions."""

    def __init__(
        self, config: DiscriminatorConfig, dims: int, slices: int, *, position: bool
    ) -> None:
        assert not position  # the configuration refuses it
        scales = [_scores(config, dims, slices) for _ in range(config.scales)]
        pool = AVERAGE_POOL[dims](3, stride=2, padding=1, count_include_pad=False)
        super().__init__(scales, pool)


def _blocks(dims: int, width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*[_block(dims, width) for _ in range(count)])


def _block(dims: int, width: int) -> Residual:
    second, first = (_conv(dims, width, width, 3) for _ in range(2))
    return Residual(dims, first, second)


def _scores(config: DiscriminatorConfig, dims: int, slices: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs, width = slices, config.width
    for _ in range(config.layers):
        layers += [_conv(dims, inputs, width, 4, stride=2), nn.LeakyReLU(0.2)]
        inputs, width = width, 2 * width
    layers.append(_conv(dims, inputs, 1, 1))
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, std=0.02)  # type: ignore[arg-type]
    return nn.Sequential(*layers)


def _conv(dims: int, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    padding = (kernel - 1) // 2
    layer = CONV[dims](inputs, outputs, kernel, stride, padding, padding_mode="reflect")
    nn.init.kaiming_normal_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
