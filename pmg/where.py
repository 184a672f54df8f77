"""Where a patch lies in the body-centred frame, as the networks are told it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["POSITION_FEATURES", "Where"]

# The body is about 400 mm across, an organ about 100 mm.
_WAVELENGTHS_MM = (800.0, 400.0, 200.0, 100.0)
POSITION_FEATURES = 3 * 2 * len(_WAVELENGTHS_MM)


@dataclass(frozen=True)
class Where:
    """Where patches lie in the body-centred frame.

    start_mm: [B, 3], frame coordinates (z, y, x) of each patch's first voxel.
    spacing_mm: (z, y, x) distance between neighbouring voxels.
    """

    start_mm: Tensor
    spacing_mm: tuple[float, float, float]

    def middle(self, slices: int) -> Where:
        """Of the middle one of `slices` slices, where this is the first one's."""
        offset = torch.zeros(3, device=self.start_mm.device)
        offset[0] = (slices - 1) / 2 * self.spacing_mm[0]
        return Where(self.start_mm + offset, self.spacing_mm)

    def features(self, blocks: Sequence[int], stride: int) -> Tensor:
        """Fourier features of the centres of `blocks` blocks of `stride` voxels along each axis.

        Sine and cosine of z, y, x at 4 wavelengths; a flat patch has one z for all its blocks.
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
