"""One rank of a training without Ray, for benchmarks: by DDP or by DeepSpeed, under torchrun.

    python -m torch.distributed.run --standalone --nproc-per-node 2 -m benchmarks.ranks \
        --engine ddp --config run.yaml --steps 60 --skip 10 --out figures.json

The store, the stream, the networks and the step are those of `launch.worker`; rank 0 writes the
figures: images a second and CPU seconds a step from step `skip` on, and bytes sent a step.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.traffic import Traffic
from pmg.config import Config, load_config
from pmg.engine import TorchEngine, adam
from pmg.patches import on_device
from pmg.training import Training, averaged_copy, build_modules
from storage.store import Store
from storage.stream import open_stream

__all__ = ["DdpEngine"]


class DdpEngine(TorchEngine):
    """torch's DistributedDataParallel with plain Adam, which every rank keeps whole."""

    def __init__(self, module: nn.Module, config: Config) -> None:
        optim = config.optim
        super().__init__(module, adam(module, optim, optim.lr), optim.clip)
        self._parallel = DistributedDataParallel(module)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._parallel(function, *args)

    def gather(self, values: Tensor) -> Tensor:
        parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def anywhere(self, flags: Tensor) -> Tensor:
        agreed = flags.float()
        dist.all_reduce(agreed, dist.ReduceOp.MAX)
        return agreed


def _sharding_all(initialize: Callable[..., Any], *, config: Any, **arguments: Any) -> Any:
    """ZeRO 3 leaves parameters below 100,000 numbers on every rank; here it shards those too."""
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return initialize(config=config, **arguments)


def _engines(
    name: str, modules: tuple[nn.Module, nn.Module], config: Config, *, shard_all: bool
) -> list[Any]:
    if name == "ddp":
        return [DdpEngine(module, config) for module in modules]
    import deepspeed  # noqa: PLC0415  DDP needs none of it

    from launch.engine import DeepSpeedEngine  # noqa: PLC0415

    if shard_all:
        deepspeed.initialize = partial(_sharding_all, deepspeed.initialize)

    return [DeepSpeedEngine(module, config) for module in modules]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=["ddp", "deepspeed"], required=True)
    parser.add_argument("--config", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--skip", type=int, required=True)
    parser.add_argument("--count", action="store_true", help="bytes sent, in the steps after")
    parser.add_argument("--shard-all", action="store_true", help="at ZeRO 3, small ones too")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    torch.set_num_threads(1)
    config = load_config(arguments.config)
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    modules = build_modules(config)
    sizes = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in zip(("translator", "critic"), modules, strict=True)
    }
    averaged = averaged_copy(modules[0], config)
    engines = _engines(arguments.engine, modules, config, shard_all=arguments.shard_all)
    training = Training(config, *engines, device=torch.device("cpu"), averaged=averaged)
    with (
        open_stream(
            Store.open(str(config.data.store)),
            config.data,
            seed=config.train.seed,
            rank=rank,
            world_size=world_size,
            global_batch=config.train.batch,
        ) as stream,
        closing(on_device(stream, training.device)) as batches,
    ):
        for _ in range(arguments.skip):
            training.advance(next(batches))
        dist.barrier()
        started, cpu = time.monotonic(), time.process_time()
        steps = arguments.steps - arguments.skip
        for _ in range(steps):
            training.advance(next(batches))
        dist.barrier()
        seconds, cpu = time.monotonic() - started, time.process_time() - cpu
        traffic = Traffic()
        if arguments.count:
            with traffic:
                training.advance(next(batches))
    used = torch.tensor(cpu / steps, dtype=torch.float64)
    dist.all_reduce(used)
    if rank == 0:
        figures = {
            "images_per_s": 2 * config.train.batch * steps / seconds,
            "cpu_s_per_step": used.item(),
            "rss_bytes": psutil.Process().memory_info().rss,
            "parameters": sizes,
            "sent_bytes": dict(traffic.sent),
            "calls": dict(traffic.calls),
        }
        arguments.out.write_text(json.dumps(figures), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
