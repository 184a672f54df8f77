"""What a training step needs of whatever holds the parameters: forward, update, assign."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pmg.config import OptimConfig

__all__ = ["Engine", "TorchEngine", "learning_rate_factor", "parameter_groups"]


class Engine(Protocol):
    """A module with its optimiser; `TorchEngine` here, DeepSpeed's in `launch.engine`."""

    module: nn.Module

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """function(module, *args) with the parameters at hand and their gradients recorded."""

    def update(self, loss: Tensor, lr: float) -> None:
        """Back-propagate the loss and take one optimiser step at this learning rate."""

    def assign(self, values: Mapping[str, Tensor]) -> None:
        """Set parameters by name, alike on all ranks, in the module and the optimiser's copies."""

    def whole(self) -> AbstractContextManager[None]:
        """Within it every rank has all of every parameter, to read; sharded ones are gathered."""

    def gather(self, values: Tensor) -> Tensor:
        """The values of all ranks, concatenated along the first axis."""


class TorchEngine:
    """One process, plain torch."""

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, clip: float = 0.0
    ) -> None:
        self.module = module
        self.optimizer = optimizer
        self._clip = clip

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.module(function, *args)

    def update(self, loss: Tensor, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if self._clip:
            nn.utils.clip_grad_norm_(self.module.parameters(), self._clip)
        self.optimizer.step()

    @torch.no_grad()
    def assign(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.module.get_parameter(name).copy_(value)

    def whole(self) -> AbstractContextManager[None]:
        return nullcontext()

    def gather(self, values: Tensor) -> Tensor:
        return values


def parameter_groups(module: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """The module's trainable parameters for Adam.

    The prior is not decayed: decay would pull its means to zero and its components together.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if not name.startswith("prior.")]
    prior = [p for name, p in named if name.startswith("prior.")]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}]
    return groups + ([{"params": prior, "weight_decay": 0.0}] if prior else [])


def learning_rate_factor(step: int, steps: int, config: OptimConfig) -> float:
    """The schedule's factor on the learning rates at a step of a run of `steps`."""
    if config.schedule == "halve":
        return float(0.5 ** (step // config.halve_every))
    if config.schedule == "cosine":
        progress = torch.tensor(min(step / steps, 1.0) * torch.pi)
        return float(0.5 * (1 + torch.cos(progress)))
    if config.schedule == "linear":
        return min(1.0, max(0.0, 2 - 2 * step / steps))
    return 1.0
