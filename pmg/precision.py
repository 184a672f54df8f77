"""Numbers of fewer bits, and numbers that are none: autocast, loss scale, a watch on gradients.

Nothing here waits for a GPU: flags and scales stay on the device, and Adam's fused kernel heeds
them there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["GradientWatch", "LossScale", "autocast", "full_precision"]

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Micikevicius et al. 2018, with the numbers of torch.amp.GradScaler.
_START, _GROWTH, _BACKOFF, _INTERVAL = 2.0**16, 2.0, 0.5, 2000


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Convolutions and products of matrices in bf16 or fp16; weights stay in float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, _TYPES[precision])


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Within `autocast` an exception to it; nothing elsewhere, as on the meta device."""
    lowered = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(
        device.type
    )
    return torch.autocast(device.type, enabled=False) if lowered else nullcontext()


class LossScale:
    """What losses are multiplied by, so that gradients do not vanish in fp16; 1 if not enabled.

    Halved by a step that was skipped, doubled after 2000 that were not.
    """

    def __init__(self, device: torch.device, *, enabled: bool) -> None:
        self._enabled = enabled
        self.value = torch.full((), _START if enabled else 1.0, device=device)
        self._growth = torch.zeros((), dtype=torch.int32, device=device)

    def scaled(self, loss: Tensor) -> Tensor:
        return loss * self.value if self._enabled else loss

    def hand_over(self, optimizer: torch.optim.Optimizer, skip: Tensor) -> None:
        """Let the next steps of a fused optimiser divide by the scale, or leave all as it is."""
        # The attributes by which torch.amp.GradScaler tells fused optimisers the same.
        optimizer.found_inf = skip  # type: ignore[attr-defined]
        optimizer.grad_scale = self.value if self._enabled else None  # type: ignore[attr-defined]

    def update(self, skip: Tensor) -> None:
        if self._enabled:
            torch._amp_update_scale_(self.value, self._growth, skip, _GROWTH, _BACKOFF, _INTERVAL)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        if self._enabled:
            yield "loss_scale", self.value
            yield "loss_scale_growth", self._growth


class GradientWatch:
    """Sees every gradient of a module as it is computed, before anything is reduced or sharded."""

    def __init__(self, module: nn.Module) -> None:
        self._sums: list[Tensor] = []
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._see)  # type: ignore[no-untyped-call]

    def _see(self, gradient: Tensor) -> None:
        self._sums.append(gradient.detach().sum(dtype=torch.float32))  # inf and NaN stay in sums

    def fault(self) -> Tensor:
        """Whether any of them since the last call was not finite."""
        sums, self._sums = torch.stack(self._sums), []
        return ~torch.isfinite(sums).all()
