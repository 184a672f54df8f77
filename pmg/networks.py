"""Encoders, generators and discriminators, in 2D and 3D by one code.

x: [B, 1, *S]; z: [B, C, *s] with s = S / 2^downsamplings.
By default nothing normalises over space, so that a voxel does not depend on its tile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from pmg.config import DiscriminatorConfig, ModelConfig

__all__ = [
    "Discriminator",
    "Encoder",
    "EncoderTail",
    "Generator",
    "GeneratorHead",
    "Posterior",
    "Where",
    "norm_layer",
]

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
# Wavelengths of the position features: the body is about 400 mm across, an organ about 100 mm.
_WAVELENGTHS_MM = (800.0, 400.0, 200.0, 100.0)
POSITION_FEATURES = 3 * 2 * len(_WAVELENGTHS_MM)
# Brings soft tissue, a narrow band of [-1, 1], to unit scale, where activations are non-linear.
_INPUT_GAIN = 4.0
_MIN_LOG_VAR, _MAX_LOG_VAR = -14.0, 4.0
# A nearly deterministic start: at the published weights the learned variance ends near exp(-12),
# and from 1 Adam would need thousands of steps to get there.
_START_LOG_VAR = -8.0


@dataclass(frozen=True)
class Where:
    """Where patches lie in the body-centred frame.

    start_mm: [B, 3], frame coordinates (z, y, x) of each patch's first voxel.
    spacing_mm: (z, y, x) distance between neighbouring voxels.
    """

    start_mm: Tensor
    spacing_mm: tuple[float, float, float]

    def features(self, blocks: Sequence[int], stride: int) -> Tensor:
        """Fourier features of the centres of `blocks` blocks of `stride` voxels along each axis.

        Sine and cosine of z, y, x at 4 wavelengths; a 2D patch has one z for all its blocks.
        Returns [B, 24, *blocks], float32.
        """
        flat = 3 - len(blocks)
        waves = []
        for axis in range(3):
            centre = self.start_mm[:, axis, None].float()
            shape = [1] * len(blocks)
            if axis >= flat:
                index = torch.arange(blocks[axis - flat], device=centre.device)
                centre = centre + (index * stride + (stride - 1) / 2) * self.spacing_mm[axis]
                shape[axis - flat] = -1
            angles = torch.stack([centre * (2 * math.pi / w) for w in _WAVELENGTHS_MM], dim=1)
            wave = torch.cat([angles.sin(), angles.cos()], dim=1)
            waves.append(wave.view(*wave.shape[:2], *shape).expand(-1, -1, *blocks))
        return torch.cat(waves, dim=1)


@dataclass(frozen=True)
class Posterior:
    """q(z given x) = N(mean, diag exp(log_var)); both [B, C, *s]."""

    mean: Tensor
    log_var: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std * noise, for standard normal noise [B, C, *s]."""
        return self.mean + torch.exp(0.5 * self.log_var) * noise


class Encoder(nn.Module):
    """E_i: a patch to its posterior. `tail` may be a module that both domains share."""

    def __init__(self, config: ModelConfig, dims: int, tail: nn.Module) -> None:
        super().__init__()
        conv = _CONV[dims]
        self.stem = conv(1, config.width, 5, padding=2, padding_mode="reflect")
        self.downs = nn.ModuleList()
        width = config.width
        for _ in range(config.downsamplings):
            self.downs.append(_activated(config, width, conv(width, 2 * width, 4, 2, padding=1)))
            width *= 2
        self.position = _position(config, dims, width)
        own = config.blocks - config.shared_blocks
        self.blocks = nn.Sequential(*[Block(config, dims, width) for _ in range(own)])
        self.tail = tail
        self.skip = _skip(config, dims)
        self.stem.apply(_keep_variance)
        self.downs.apply(_keep_variance)

    def forward(self, x: Tensor, where: Tensor | None) -> Posterior:
        h = _channels_last(self.stem(_INPUT_GAIN * x))
        for down in self.downs:
            h = down(h)
        h = _add_position(h, self.position, where)
        mean, log_var = self.tail(self.blocks(h))
        if self.skip is not None:
            mean = mean + self.skip.analyse(x.float())
        return Posterior(mean, log_var)


class EncoderTail(nn.Module):
    """The last blocks of the encoders and the posterior's parameters."""

    def __init__(self, config: ModelConfig, dims: int) -> None:
        super().__init__()
        width = config.width * 2**config.downsamplings
        shared = config.shared_blocks
        self.blocks = nn.Sequential(*[Block(config, dims, width) for _ in range(shared)])
        self.mean = _CONV[dims](width, config.latent_channels, 1)
        if config.skip:
            nn.init.zeros_(self.mean.weight)
            nn.init.zeros_(self.mean.bias)
        self.log_var: nn.Module | None = None
        if config.posterior == "learned":
            self.log_var = _CONV[dims](width, config.latent_channels, 1)
            nn.init.zeros_(self.log_var.weight)
            nn.init.constant_(self.log_var.bias, _START_LOG_VAR)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        h = F.silu(self.blocks(h))
        mean = self.mean(h).float()
        if self.log_var is None:
            return mean, torch.zeros_like(mean)
        return mean, self.log_var(h).float().clamp(# Brings soft tissue, a narrow band of [-1, 1], to unit scale, where activations are non-linear.
_INPUT_GAIN = 4.0
_MIN_LOG_VAR, _MAX_LOG_VAR)


class GeneratorHead(nn.Module):
    """The first blocks of the generators."""

    def __init__(self, config: ModelConfig, dims: int) -> None:
        super().__init__()
        width = config.width * 2**config.downsamplings
        self.inlet = _CONV[dims](config.latent_channels, width, 1)
        self.inlet.apply(_keep_variance)
        self.position = _position(config, dims, width)
        shared = config.shared_blocks
        self.blocks = nn.Sequential(*[Block(config, dims, width) for _ in range(shared)])

    def forward(self, z: Tensor, where: Tensor | None) -> Tensor:
        return self.blocks(_add_position(_channels_last(self.inlet(z)), self.position, where))


class Generator(nn.Module):
    """G_i: a latent to a patch of domain i. `head` may be a module that both domains share."""

    def __init__(self, config: ModelConfig, dims: int, head: nn.Module) -> None:
        super().__init__()
        conv = _CONV[dims]
        self.head = head
        width = config.width * 2**config.downsamplings
        own = config.blocks - config.shared_blocks
        self.position = _position(config, dims, width)
        self.blocks = nn.Sequential(*[Block(config, dims, width) for _ in range(own)])
        self.ups = nn.ModuleList()
        for _ in range(config.downsamplings):
            self.ups.append(_activated(config, width, conv(width, width // 2, 3, padding=1)))
            width //= 2
        self.out = _activated(config, width, conv(width, 1, 3, padding=1))
        self.skip = _skip(config, dims)
        self.ups.apply(_keep_variance)
        if self.skip is not None:
            nn.init.zeros_(self.out[-1].weight)
            nn.init.zeros_(self.out[-1].bias)

    def forward(self, z: Tensor, where: Tensor | None) -> Tensor:
        h = self.head(z, where)
        h = self.blocks(_add_position(h, self.position, where))
        for up in self.ups:
            # Resize, then convolve: no checkerboard, which a strided transposed convolution leaves
            # (Odena et al. 2016).
            h = up(F.interpolate(h, scale_factor=2, mode="nearest"))
        x: Tensor = self.out(h)
        return x if self.skip is None else x + self.skip.synthesise(z.float())


class Discriminator(nn.Module):
    """D_i: score maps of a patch at several resolutions, told the patch's place if configured."""

    def __init__(self, config: DiscriminatorConfig, dims: int, *, position: bool) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            [ScoreMap(config, dims, position=position) for _ in range(config.scales)]
        )
        self._pool = {2: F.avg_pool2d, 3: F.avg_pool3d}[dims]

        self.apply(_keep_variance)

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

    def __init__(self, config: DiscriminatorConfig, dims: int, *, position: bool) -> None:
        super().__init__()
        conv = _CONV[dims]
        width = config.width
        self.first = conv(1, width, 4, 2, padding=1)
        self.position = conv(POSITION_FEATURES, width, 1) if position else None
        layers: list[nn.Module] = []
        for _ in range(config.layers - 1):
            layers += [nn.LeakyReLU(0.2), conv(width, 2 * width, 4, 2, padding=1)]
            width *= 2
        self.rest = nn.Sequential(*layers, nn.LeakyReLU(0.2), conv(width, 1, 1))

    def forward(self, x: Tensor, where: Where, stride: int) -> Tensor:
        h = _channels_last(self.first(_INPUT_GAIN * x))
        # Early, so that the later layers can judge the appearance given the place.
        features = where.features(h.shape[2:], 2 * stride) if self.position is not None else None
        return self.rest(_add_position(h, self.position, features))


class CosineSkip(nn.Module):
    """A fixed linear path from patch to latent and back: the orthonormal cosine transform (DCT-II)
    of every block of stride voxels along each axis, its lowest C frequencies.

    With C = stride^dims it loses nothing: then G_i(E_i(x)) starts as x, translation starts as the
    identity, and only what differs between the domains has to be learned. z stays the only way
    from x to its translation.
    """

    def __init__(self, channels: int, stride: int, dims: int) -> None:
        super().__init__()
        self._conv = {2: F.conv2d, 3: F.conv3d}[dims]
        self._transposed = {2: F.conv_transpose2d, 3: F.conv_transpose3d}[dims]
        self._stride = stride
        n = torch.arange(stride, dtype=torch.float64)
        waves = torch.cos(math.pi / stride * (n[None] + 0.5) * n[:, None])  # [frequency, voxel]
        waves = waves / waves.norm(dim=1, keepdim=True)
        frequencies = sorted(product(range(stride), repeat=dims), key=lambda f: (sum(f), f))
        kernels = []
        for frequency in frequencies[:channels]:
            kernel = torch.ones((), dtype=torch.float64)
            for f in frequency:
                kernel = kernel.unsqueeze(-1) * waves[f]
            kernels.append(kernel)
        # Channels beyond the frequencies are the networks' own.
        basis = torch.zeros(channels, 1, *[stride] * dims, dtype=torch.float64)
        basis[: len(kernels), 0] = torch.stack(kernels)
        self.basis: Tensor
        self.register_buffer("basis", basis.float(), persistent=False)

    def analyse(self, x: Tensor) -> Tensor:
        """[B, 1, *S] -> [B, C, *(S / stride)]."""
        return self._conv(x, self.basis, stride=self._stride)

    def synthesise(self, z: Tensor) -> Tensor:
        """[B, C, *s] -> [B, 1, *(s stride)]: the transpose, which is the inverse."""
        return self._transposed(z, self.basis, stride=self._stride)


class Block(nn.Module):
    """Pre-activation residual block; starts as the identity, so depth does no harm without norms."""

    def __init__(self, config: ModelConfig, dims: int, width: int) -> None:
        super().__init__()
        conv = _CONV[dims]
        self.first = _activated(config, width, conv(width, width, 3, padding=1))
        self.second = _activated(config, width, conv(width, width, 3, padding=1))
        self.first.apply(_keep_variance)
        nn.init.zeros_(self.second[-1].weight)
        nn.init.zeros_(self.second[-1].bias)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.second(self.first(h))


def norm_layer(norm: str, width: int) -> nn.Module:
    """The layer that `model.norm` names: none, group or instance."""
    if norm == "none":
        return nn.Identity()
    # One channel a group is instance norm; 8 groups keep some of the contrast between channels.
    groups = {"group": math.gcd(8, width), "instance": width}[norm]
    return nn.GroupNorm(groups, width)


def _keep_variance(module: nn.Module) -> None:
    """He et al. 2015. torch's default shrinks the signal by half or more in every layer, which
    nets without normalisation do not make good: D then learns next to nothing for 1000 steps."""
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, a=0.2, nonlinearity="leaky_relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _activated(config: ModelConfig, width: int, layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(norm_layer(config.norm, width), nn.SiLU(), layer)


def _position(config: ModelConfig, dims: int, width: int) -> nn.Module | None:
    return _CONV[dims](POSITION_FEATURES, width, 1) if config.position else None


def _skip(config: ModelConfig, dims: int) -> CosineSkip | None:
    if not config.skip:
        return None
    return CosineSkip(config.latent_channels, 2**config.downsamplings, dims)


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
