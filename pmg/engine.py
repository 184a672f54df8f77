"""What a training step needs of whatever holds the parameters: forward, backward, step, state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from pmg.precision import GradientWatch, LossScale, autocast

if TYPE_CHECKING:
    from pmg.config import OptimConfig

__all__ = [
    "MOMENTS",
    "Engine",
    "TorchEngine",
    "adam",
    "buffers",
    "fitting",
    "learning_rate_factor",
    "parameter_groups",
    "trained",
]

MOMENTS = ("exp_avg", "exp_avg_sq")  # what Adam keeps for each number, beside its count of steps


class Engine(Protocol):
    """A module with its optimiser; `TorchEngine` here, DeepSpeed's in `launch.engine`."""

    module: nn.Module
    scale: LossScale

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """function(module, *args) with the parameters at hand and their gradients recorded."""

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients; those of a step's micro-batches are averaged."""

    def fault(self) -> Tensor:
        """Whether a gradient of this rank since the last call was not finite: a flag on the
        device."""

    def anywhere(self, flags: Tensor) -> Tensor:
        """Each flag as 1 if it is set on any rank, else 0, without waiting for the device."""

    def step(self, lr: float, skip: Tensor) -> None:
        """One optimiser step at this rate; none, and no trace of it, if `skip` is 1 and not 0."""

    def assign(self, values: Mapping[str, Tensor]) -> None:
        """Set parameters by name, alike on all ranks, in the module and the optimiser's copies."""

    def whole(self) -> AbstractContextManager[None]:
        """Within it every rank has all of every parameter, to read; sharded ones are gathered."""

    def gather(self, values: Tensor) -> Tensor:
        """The values of all ranks, concatenated along the first axis."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All that training has changed, by name and one after the other, whole on every rank.

        Each trained parameter NAME in float32, then Adam's NAME/exp_avg and NAME/exp_avg_sq; the
        module's buffers; `steps`, the updates taken; the loss scale. The same at every world size
        and ZeRO stage. All ranks go through it together.
        """

    def restore(self, tensors: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Take over what `tensors` gave, here or elsewhere; returns the names that were missing.

        All ranks give the same in the same order. Raises ValueError for what has another shape or
        is not of this module.
        """


class TorchEngine:
    """One process, plain torch."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        clip: float = 0.0,
        *,
        precision: str = "float32",
        accumulate: int = 1,
    ) -> None:
        self.module = module
        self.optimizer = optimizer
        self._clip, self._precision, self._accumulate = clip, precision, accumulate
        self._device = next(module.parameters()).device
        self._watch = GradientWatch(module)
        self._stepped = False
        self.scale = LossScale(self._device, enabled=precision == "fp16")

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        with autocast(self._device, self._precision):
            return self.module(function, *args)

    def backward(self, loss: Tensor) -> None:
        if self._stepped:
            self.optimizer.zero_grad(set_to_none=True)
            self._stepped = False
        torch.autograd.backward(self.scale.scaled(loss) / self._accumulate)

    def fault(self) -> Tensor:
        return self._watch.fault()

    def anywhere(self, flags: Tensor) -> Tensor:
        return flags.float()

    def step(self, lr: float, skip: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self._clip:
            nn.utils.clip_grad_norm_(self.module.parameters(), self._clip)
        self.scale.hand_over(self.optimizer, skip)
        self.optimizer.step()
        self.scale.update(skip)
        self._stepped = True

    @torch.no_grad()
    def assign(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.module.get_parameter(name).copy_(value)

    def whole(self) -> AbstractContextManager[None]:
        return nullcontext()

    def gather(self, values: Tensor) -> Tensor:
        return values

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        steps = torch.zeros(())
        for name, parameter in trained(self.module):
            yield name, parameter.detach()
            state = self.optimizer.state.get(parameter)
            if state:
                steps = state["step"]
                yield from ((f"{name}/{moment}", state[moment]) for moment in MOMENTS)
        yield from buffers(self.module)
        yield "steps", steps
        yield from self.scale.tensors()

    @torch.no_grad()
    def restore(self, tensors: Iterable[tuple[str, Tensor]]) -> set[str]:
        targets: dict[str, Tensor] = dict(buffers(self.module)) | dict(self.scale.tensors())
        steps = torch.zeros((), device=self._device)
        targets["steps"] = steps
        for name, parameter in trained(self.module):
            targets[name] = parameter
            state = self.optimizer.state[parameter] = {
                moment: torch.zeros_like(parameter) for moment in MOMENTS
            }
            targets |= {f"{name}/{moment}": value for moment, value in state.items()}
        seen = set()
        for name, value in tensors:
            fitting(name, value, targets[name].shape if name in targets else None)
            targets[name].copy_(value)
            seen.add(name)
        for _, parameter in trained(self.module):
            self.optimizer.state[parameter]["step"] = steps.clone()
        return targets.keys() - seen


def trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that the optimiser moves, by name; shared ones once."""
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


def buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What is no parameter and yet changes, such as the vectors of spectral norm."""
    kept = module.state_dict(keep_vars=True).keys()
    return ((name, value) for name, value in module.named_buffers() if name in kept)


def fitting(name: str, value: Tensor, shape: torch.Size | None) -> None:
    """Raise ValueError if a saved tensor has no place, or one of another shape."""
    if shape is None:
        raise ValueError(f"{name}: saved, but these networks have no such parameter")
    if shape != value.shape:
        raise ValueError(f"{name}: saved as {list(value.shape)}, but {list(shape)} here")


def adam(module: nn.Module, config: OptimConfig, lr: float) -> torch.optim.Adam:
    """Adam for a module: fused, since that is the one that skips a step by a flag on the device."""
    betas = (config.beta1, config.beta2)
    return torch.optim.Adam(parameter_groups(module, config), lr=lr, betas=betas, fused=True)


def parameter_groups(module: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """The module's trainable parameters for Adam.

    The prior is not decayed: decay would pull its means to zero and its components together.
    """
    named = list(trained(module))
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
