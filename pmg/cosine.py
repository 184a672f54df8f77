"""A fixed linear path from patch to latent and back, from which translation starts as identity."""

from __future__ import annotations

import math
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pmg.precision import full_precision

__all__ = ["CosineSkip"]


class CosineSkip(nn.Module):
    """A fixed linear path from patch to latent and back: the orthonormal cosine transform (DCT-II)
    of every block of stride voxels along each axis and of all N slices of a 2.5D patch, its lowest
    C frequencies.

    With C = N stride^dims it loses nothing: then G_i(E_i(x)) starts as x, translation starts as the
    identity, and only what differs between the domains has to be learned. z stays the only way
    from x to its translation.
    """

    def __init__(self, channels: int, stride: int, dims: int, slices: int = 1) -> None:
        super().__init__()
        self._conv = {2: F.conv2d, 3: F.conv3d}[dims]
        self._transposed = {2: F.conv_transpose2d, 3: F.conv_transpose3d}[dims]
        self._stride = stride
        extents = (slices, *[stride] * dims)
        waves = [_waves(n) for n in extents]
        frequencies = sorted(product(*map(range, extents)), key=lambda f: (sum(f), f))
        kernels = []
        for frequency in frequencies[:channels]:
            kernel = torch.ones((), dtype=torch.float64)
            for f, wave in zip(frequency, waves, strict=True):
                kernel = kernel.unsqueeze(-1) * wave[f]
            kernels.append(kernel)
        # Channels beyond the frequencies are the networks' own.
        basis = torch.zeros(channels, *extents, dtype=torch.float64)
        basis[: len(kernels)] = torch.stack(kernels)
        self.basis: Tensor
        self.register_buffer("basis", basis.float(), persistent=False)

    def analyse(self, x: Tensor) -> Tensor:
        """[B, N, *S] -> [B, C, *(S / stride)], in float32: eight bits of bf16 are several HU."""
        with full_precision(x.device):
            return self._conv(x.float(), self.basis, stride=self._stride)

    def synthesise(self, z: Tensor) -> Tensor:
        """[B, C, *s] -> [B, N, *(s stride)]: the transpose, which is the inverse."""
        with full_precision(z.device):
            return self._transposed(z.float(), self.basis, stride=self._stride)


def _waves(n: int) -> Tensor:
    """Orthonormal cosine waves: [frequency, voxel], float64."""
    i = torch.arange(n, dtype=torch.float64)
    waves = torch.cos(math.pi / n * (i[None] + 0.5) * i[:, None])
    norms: Tensor = waves.norm(dim=1, keepdim=True)
    return waves / norms
