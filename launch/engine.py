"""`pmg.engine.Engine` on DeepSpeed: sharded optimiser, gradients and parameters by ZeRO stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
import torch.nn.functional as F
from deepspeed.ops import __compatible_ops__
from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param
from torch import Tensor, nn

from pmg.config import Config
from pmg.engine import parameter_groups

__all__ = ["DeepSpeedEngine"]

# Resuming at another world size goes through DeepSpeed's universal format, which for stages 1 and
# 2 needs this mark in the checkpoint (deepspeed 0.19).
_CLIENT_STATE = {"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}


# On CPUs DeepSpeed 0.19 compiles a shared-memory all-reduce when it starts, which takes g++, ninja
# and a minute, and which only inference calls.
__compatible_ops__["deepspeed_shm_comm"] = False


class DeepSpeedEngine:
    """One module, its Adam and its shards. torch.distributed must be initialised."""

    def __init__(self, module: nn.Module, config: Config) -> None:
        self.module = module
        optim = config.optim
        optimizer = torch.optim.Adam(
            parameter_groups(module, optim), lr=optim.lr, betas=(optim.beta1, optim.beta2)
        )
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config={
                "train_micro_batch_size_per_gpu": config.train.batch // dist.get_world_size(),
                "gradient_accumulation_steps": 1,
                "gradient_clipping": optim.clip,  # said even if 0: DeepSpeed 0.19 clips to 1
                "zero_optimization": {
                    "stage": config.launch.zero_stage,
                    # The functions that run on a module take different ways through it; what was
                    # fetched ahead for one would be in flight when `whole` gathers for another.
                    "stage3_prefetch_bucket_size": 0,
                },
                "zero_allow_untested_optimizer": True,  # torch's Adam as it is
                "steps_per_print": 10**9,
            },
            dist_init_required=False,
        )

    @property
    def device(self) -> torch.device:
        return torch.device(self._engine.device)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._engine(function, *args)

    def update(self, loss: Tensor, lr: float) -> None:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.backward(loss)
        self._engine.step()

    @torch.no_grad()
    def assign(self, values: Mapping[str, Tensor]) -> None:
        for name, own in values.items():
            value = own.to(self.device).contiguous()
            dist.broadcast(value, src=0)
            parameter = self.module.get_parameter(name)
            # ZeRO's optimiser overwrites the module from its own partitions at the next step.
            if self._engine.zero_optimization_stage() == 3:
                # safe_set_full_fp32_param cuts short what the ranks do not divide evenly.
                flat, size = value.flatten(), dist.get_world_size()
                shares = F.pad(flat, (0, -len(flat) % size)).chunk(size)
                safe_set_local_fp32_param(parameter, shares[dist.get_rank()])
            else:
                safe_set_full_fp32_param(parameter, value)
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(value)

    def whole(self) -> AbstractContextManager[None]:
        if self._engine.zero_optimization_stage() < 3:
            return nullcontext()
        parameters = list(self.module.parameters())
        gathered: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(parameters)
        return gathered

    def gather(self, values: Tensor) -> Tensor:
        parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def save(self, folder: Path) -> None:
        """Write every rank's shard below the folder; all ranks must call."""
        self._engine.save_checkpoint(str(folder), tag="shards", client_state=dict(_CLIENT_STATE))

    def load(self, folder: Path) -> None:
        """Read what `save` wrote at the same world size.

        DeepSpeed unpickles these files: call it for verified checkpoints of one's own run only.
        """
        self._engine.load_checkpoint(str(folder), tag="shards")
