"""`pmg.engine.Engine` on DeepSpeed: sharded optimiser, gradients and parameters by ZeRO stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
import torch.nn.functional as F
from deepspeed.ops import __compatible_ops__
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from pmg.config import Config, LaunchConfig
from pmg.engine import MOMENTS, adam, buffers, fitting, trained
from pmg.precision import GradientWatch, LossScale, autocast

__all__ = ["DeepSpeedEngine"]

# On CPUs DeepSpeed 0.19 compiles a shared-memory all-reduce when it starts, which takes g++ and a
# minute, and which only inference calls. Training uses no other op that it would compile.
__compatible_ops__["deepspeed_shm_comm"] = False


class DeepSpeedEngine:
    """One module, its Adam and its shards. torch.distributed must be initialised.

    Precision is torch's autocast and the loss scale our own: DeepSpeed's fp16 and bf16 modes would
    cast the mixture too, and its autocast at ZeRO 1 to 3 lets each rank skip steps by itself.
    """

    def __init__(self, module: nn.Module, config: Config) -> None:
        self.module = module
        train, launch = config.train, config.launch
        self._precision, self._accumulate = train.precision, train.accumulate
        self._stage = launch.zero_stage
        self._micro_batches = 0
        self._watch = GradientWatch(module)
        self._adam = adam(module, config.optim, config.optim.lr)
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=self._adam,
            config={
                "train_micro_batch_size_per_gpu": train.batch
                // (dist.get_world_size() * train.accumulate),
                "gradient_accumulation_steps": train.accumulate,
                "gradient_clipping": config.optim.clip,  # said even if 0: DeepSpeed 0.19 clips to 1
                "zero_optimization": _zero(launch, norm=config.optim.clip > 0),
                "zero_allow_untested_optimizer": True,  # torch's Adam as it is
                "zero_force_ds_cpu_optimizer": False,  # its own has no flag to skip a step by
                "steps_per_print": 10**9,
            },
            dist_init_required=False,
        )
        self._make_moments()
        self.scale = LossScale(self.device, enabled=train.precision == "fp16")

    @property
    def device(self) -> torch.device:
        return torch.device(self._engine.device)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        with autocast(self.device, self._precision):
            return self._engine(function, *args)

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(self.scale.scaled(loss))  # which divides by `accumulate`
        self._micro_batches += 1
        if self._micro_batches % self._accumulate:
            self._engine.step()  # no update: DeepSpeed counts micro-batches here

    def fault(self) -> Tensor:
        return self._watch.fault()

    def anywhere(self, flags: Tensor) -> Tensor:
        agreed = flags.float()
        dist.all_reduce(agreed, dist.ReduceOp.MAX)
        return agreed

    def step(self, lr: float, skip: Tensor) -> None:
        for group in self._adam.param_groups:
            group["lr"] = lr
        self.scale.hand_over(self._adam, skip)
        self._engine.step()
        self.scale.update(skip)

    @torch.no_grad()
    def assign(self, values: Mapping[str, Tensor]) -> None:
        for name, own in values.items():
            value = own.to(self.device).contiguous()
            dist.broadcast(value, src=0)
            self._set_weight(self.module.get_parameter(name), value)

    def _set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        # ZeRO's optimiser overwrites the module from its own partitions at the next step.
        if self._stage == 3:
            safe_set_local_fp32_param(parameter, _share(value))
        else:
            safe_set_full_fp32_param(parameter, value)
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.copy_(value)

    def whole(self) -> AbstractContextManager[None]:
        if self._stage < 3:
            return nullcontext()
        parameters = list(self.module.parameters())
        gathered: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(parameters)
        return gathered

    def gather(self, values: Tensor) -> Tensor:
        parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    @torch.no_grad()
    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in trained(self.module):
            yield name, self._weight(parameter)
            yield from ((f"{name}/{m}", self._moment(parameter, m)) for m in MOMENTS)
        yield from buffers(self.module)
        yield "steps", next(iter(self._adam.state.values()))["step"]
        yield from self.scale.tensors()

    def _weight(self, parameter: nn.Parameter) -> Tensor:
        value = parameter if self._stage == 0 else safe_get_full_fp32_param(parameter)
        return value.detach()

    def _moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        if self._stage == 0:
            value: Tensor = self._adam.state[parameter][moment]
            return value
        whole: Tensor = safe_get_full_optimizer_state(parameter, moment)
        return whole

    @torch.no_grad()
    def restore(self, tensors: Iterable[tuple[str, Tensor]]) -> set[str]:
        named = dict(trained(self.module))
        steps = torch.zeros(())
        others = dict(buffers(self.module)) | dict(self.scale.tensors()) | {"steps": steps}
        missing = {f"{n}{of}" for n in named for of in ("", *(f"/{m}" for m in MOMENTS))}
        missing |= others.keys()
        for name, saved in tensors:
            of, _, moment = name.partition("/")
            if name in others:
                fitting(name, saved, others[name].shape)
                others[name].copy_(saved)
            else:
                parameter = named.get(of)
                fitting(name, saved, None if parameter is None else _whole_shape(parameter))
                value = saved.to(self.device)
                if not moment:
                    self._set_weight(named[of], value)
                else:
                    self._set_moment(named[of], moment, value)
            missing.discard(name)
        for state in self._adam.state.values():
            state["step"].copy_(steps)
        return missing

    def _set_moment(self, parameter: nn.Parameter, moment: str, value: Tensor) -> None:
        if self._stage == 0:
            self._adam.state[parameter][moment].copy_(value)
        elif self._stage == 3:
            safe_set_local_optimizer_state(parameter, _share(value), moment)
        else:
            safe_set_full_optimizer_state(parameter, value, moment)

    def _make_moments(self) -> None:
        """Adam's state before the first step, which otherwise makes it (torch 2.13).

        DeepSpeed 0.19 links it to the parameters once, after the first step of the first of an
        optimiser's groups, when those of the others are not there yet.
        """
        optimizer = self._engine.optimizer
        if self._stage == 0:
            held = [parameter for _, parameter in trained(self.module)]
        elif self._stage == 3:
            held = optimizer.fp32_partitioned_groups_flat
        else:
            held = optimizer.single_partition_of_fp32_groups
        for flat in held:
            moments = {moment: torch.zeros_like(flat) for moment in MOMENTS}
            self._adam.state[flat] = {"step": torch.zeros((), device=flat.device)} | moments
        if self._stage in (1, 2):
            optimizer._lazy_init_hp_params_optimizer_state()


def _zero(launch: LaunchConfig, *, norm: bool) -> dict[str, Any]:
    """DeepSpeed's section on ZeRO. norm: whether the gradients' norm is needed, which at stages 1
    and 2 makes the host wait for the device in each step."""
    host = {"device": "cpu", "pin_memory": launch.gpus_per_worker > 0}
    offloaded = {"none": [], "optimizer": ["optimizer"], "parameters": ["optimizer", "param"]}
    zero: dict[str, Any] = {"stage": launch.zero_stage}
    zero |= {f"offload_{what}": host for what in offloaded[launch.offload]}
    if launch.zero_stage == 3:
        # The functions that run on a module take different ways through it; what was fetched ahead
        # for one would be in flight when `whole` gathers for another.
        zero["stage3_prefetch_bucket_size"] = 0
    elif launch.zero_stage and launch.offload == "none":
        zero["compute_grad_norm"] = norm
    return zero


def _share(value: Tensor) -> Tensor:
    """This rank's part of what ZeRO 3 shards evenly, padded.

    DeepSpeed 0.19's own setters of whole tensors cut short what the ranks do not divide evenly.
    """
    flat, size = value.flatten(), dist.get_world_size()
    return F.pad(flat, (0, -len(flat) % size)).chunk(size)[dist.get_rank()]


def _whole_shape(parameter: nn.Parameter) -> torch.Size:
    """At ZeRO 3 a parameter itself is empty while its shards are not gathered."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))
