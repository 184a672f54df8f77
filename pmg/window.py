"""The map between HU and the networks' intensities in [-1, 1]."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pmg.config import DataConfig

__all__ = ["Window", "window_of"]


def window_of(config: DataConfig) -> Window:
    """The window that a configuration states."""
    return Window(config.low_hu, config.high_hu, config.centre_hu, config.scale_hu)


class Window:
    """x = (asinh((hu - centre) / scale) - middle) / half, an invertible window on [low, high] HU.

    Near the centre it is linear; far from it it compresses, so that soft tissue gets most of the
    range while calcium and metal are neither clipped nor lost. A huge scale makes it linear.
    """

    def __init__(self, low_hu: float, high_hu: float, centre_hu: float, scale_hu: float) -> None:
        self.low_hu, self.high_hu = low_hu, high_hu
        self.centre_hu, self.scale_hu = centre_hu, scale_hu
        low = math.asinh((low_hu - centre_hu) / scale_hu)
        high = math.asinh((high_hu - centre_hu) / scale_hu)
        self._middle, self._half = (low + high) / 2, (high - low) / 2

    def to_unit(self, hu: Tensor) -> Tensor:
        """HU to [-1, 1], float32; values outside [low, high] are clipped."""
        hu = hu.float().clamp(self.low_hu, self.high_hu)
        return (torch.asinh((hu - self.centre_hu) / self.scale_hu) - self._middle) / self._half

    def to_hu(self, x: Tensor) -> Tensor:
        """The inverse, float32; clipped to [low, high]."""
        y = x.float().clamp(-1, 1) * self._half + self._middle
        return torch.sinh(y) * self.scale_hu + self.centre_hu
