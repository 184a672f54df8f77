"""The networks of CycleGAN (Zhu et al., ICCV 2017, appendix 7.2), for the baseline.

Its mapping from domain i to j, c7s1-64, d128, d256, R256 ..., u128, u64, c7s1-1, is cut in the
middle of its residual blocks: what lies before is E_i, what lies after G_j, and between them is no
latent with a prior but features, as they are. Instance norm everywhere but in the last layer; D is
the 70 x 70 PatchGAN. The interfaces are those of `pmg.networks`, and so are 2D, 2.5D and 3D.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from pmg.baseline_layers import AVERAGE_POOL, CONV, INSTANCE_NORM, MultiScale, Residual, normed
from pmg.networks import Posterior, certain

if TYPE_CHECKING:
    from pmg.config import DiscriminatorConfig, ModelConfig

__all__ = ["Discriminator", "Encoder", "EncoderTail", "Generator", "GeneratorHead"]

_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class Encoder(nn.Module):
    """The first half of the mapping from domain i: c7s1, halvings 3 wide, residual blocks."""

    def __init__(self, config: ModelConfig, dims: int, slices: int, tail: nn.Module) -> None:
        super().__init__()
        width = config.width
        layers = normed(dims, _reflecting(dims, slices, width, 7))
        for _ in range(config.downsamplings):
            layers += normed(dims, CONV[dims](width, 2 * width, 3, stride=2, padding=1))
            width *= 2
        self.down = nn.Sequential(*layers)
        self.blocks = _blocks(dims, width, config.blocks)
        self.tail = tail
        self.apply(_start)

    def forward(self, x: Tensor, where: Tensor | None) -> Posterior:
        return Posterior(*self.tail(self.blocks(self.down(x))))


class EncoderTail(nn.Module):
    """Nothing is shared, and features are no distribution."""

    def __init__(self, config: ModelConfig, dims: int) -> None:
        super().__init__()
        assert config.shared_blocks == 0  # the configuration refuses others

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return certain(h.float())


class GeneratorHead(nn.Module):
    """Nothing is shared."""

    def __init__(self, config: ModelConfig, dims: int) -> None:
        super().__init__()

    def forward(self, z: Tensor, where: Tensor | None) -> Tensor:
        return z


class Generator(nn.Module):
    """The second half of the mapping to domain j: residual blocks, doublings, c7s1 and tanh."""

    def __init__(self, config: ModelConfig, dims: int, slices: int, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        width = config.latent_channels
        self.blocks = _blocks(dims, width, config.blocks)
        layers: list[nn.Module] = []
        for _ in range(config.downsamplings):
            transposed = _TRANSPOSED[dims]
            doubling = transposed(width, width // 2, 3, stride=2, padding=1, output_padding=1)
            layers += normed(dims, doubling)
            width //= 2
        self.up = nn.Sequential(*layers, _reflecting(dims, width, slices, 7), nn.Tanh())
        self.apply(_start)

    def forward(self, z: Tensor, where: Tensor | None) -> Tensor:
        x: Tensor = self.up(self.blocks(self.head(z, where)))
        return x


class Discriminator(MultiScale):
    """D_i: C64-C128-C256-C512 and a score for every 70 x 70 voxels, at `scales` resolutions."""

    def __init__(
        self, config: DiscriminatorConfig, dims: int, slices: int, *, position: bool
    ) -> None:
        assert not position  # the configuration refuses it
        scales = [_scores(config, dims, slices) for _ in range(config.scales)]
        super().__init__(scales, AVERAGE_POOL[dims](2))


def _blocks(dims: int, width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*[_block(dims, width) for _ in range(count)])


def _block(dims: int, width: int) -> Residual:
    first, second = (_reflecting(dims, width, width, 3) for _ in range(2))
    return Residual(dims, first, second)


def _scores(config: DiscriminatorConfig, dims: int, slices: int) -> nn.Sequential:
    """`layers` halvings 4 wide and one layer of stride 1; no norm in the first."""
    layers: list[nn.Module] = []
    inputs, width = slices, config.width
    for number in range(config.layers + 1):
        stride = 2 if number < config.layers else 1
        layers.append(CONV[dims](inputs, width, 4, stride=stride, padding=1))
        layers += [INSTANCE_NORM[dims](width)] if number else []
        layers.append(nn.LeakyReLU(0.2))
        inputs, width = width, min(2 * width, 8 * config.width)
    scores = nn.Sequential(*layers, CONV[dims](inputs, 1, 4, padding=1))
    return scores.apply(_start)


def _reflecting(dims: int, inputs: int, outputs: int, kernel: int) -> nn.Module:
    padding = kernel // 2
    return CONV[dims](inputs, outputs, kernel, padding=padding, padding_mode="reflect")


def _start(layer: nn.Module) -> None:
    """Weights from N(0, 0.02), biases 0."""
    if isinstance(layer, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.normal_(layer.weight, std=0.02)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
