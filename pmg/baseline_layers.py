"""What UNIT's and CycleGAN's networks have in common: norm and ReLU after convolutions, residual
blocks of two of those, and scores of a patch at several resolutions."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from pmg.where import Where

__all__ = ["AVERAGE_POOL", "CONV", "INSTANCE_NORM", "MultiScale", "Residual", "normed"]

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
INSTANCE_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
AVERAGE_POOL = {2: nn.AvgPool2d, 3: nn.AvgPool3d}


def normed(dims: int, convolution: nn.Module) -> list[nn.Module]:
    """The convolution, instance norm and ReLU."""
    outputs: int = convolution.out_channels  # type: ignore[assignment]
    return [convolution, INSTANCE_NORM[dims](outputs), nn.ReLU()]


class Residual(nn.Module):
    """h + norm(second(relu(norm(first(h))))), of two convolutions that keep h's shape."""

    def __init__(self, dims: int, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        # No activation before the sum.
        self.change = nn.Sequential(*normed(dims, first), *normed(dims, second)[:-1])

    def forward(self, h: Tensor) -> Tensor:
        change: Tensor = self.change(h)
        return h + change


class MultiScale(nn.Module):
    """Score maps of a patch, one a scale; `pool` makes each scale's patch of the last one's."""

    def __init__(self, scales: Iterable[nn.Module], pool: nn.Module) -> None:
        super().__init__()
        self.scales = nn.ModuleList(scales)
        self._pool = pool

    def forward(self, x: Tensor, where: Where) -> list[Tensor]:
        scores = []
        for scale in self.scales:
            scores.append(scale(x))
            x = self._pool(x)
        return scores
