"""Ranks of a gloo group on this machine without Ray, each training for some steps."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pmg.config import Config
from pmg.training import Training, averaged_copy, build_modules, torch_engines
from storage.store import Store
from storage.stream import open_stream

CPU = torch.device("cpu")


def start(config: Config, engines: Callable) -> Training:
    """A training whose every parameter matters: fresh, zero layers would hide the others."""
    modules = build_modules(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.3 * parameter.std(correction=0) * noise + 0.02 * noise)
    averaged = averaged_copy(modules[0], config)
    return Training(config, *engines(*modules, config), device=CPU, averaged=averaged)


def advance(training: Training, steps: int, rank: int = 0, world_size: int = 1) -> None:
    config = training.config
    with open_stream(
        Store.open(config.data.store),
        config.data,
        seed=config.train.seed,
        rank=rank,
        world_size=world_size,
        global_batch=config.train.batch,
        start_step=training.step,
    ) as stream:
        for _ in range(steps):
            training.advance(next(stream))


def parameters(training: Training) -> dict[str, torch.Tensor]:
    """Everything that was trained, by name, complete on this process."""
    modules = {
        "translator": training.translator.module,
        "critic": training.critic.module,
        "averaged": training.averaged.module,
    }
    return {
        f"{which}.{name}": value.detach().clone()
        for which, module in modules.items()
        for name, value in module.named_parameters()
    }


def train_alone(config: Config, steps: int) -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    training = start(config, torch_engines)
    advance(training, steps)
    return parameters(training)


def train_together(config: Config, steps: int, out: Path) -> None:
    """`config.launch.workers` processes; what rank 0 ends with is written to `out`."""
    mp.spawn(_rank, (config, steps, out), nprocs=config.launch.workers)


def _rank(rank: int, config: Config, steps: int, out: Path) -> None:
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    size = config.launch.workers
    rendezvous = f"file://{out}.rendezvous"
    dist.init_process_group("gloo", rendezvous, timedelta(seconds=120), size, rank)
    import deepspeed  # noqa: PLC0415  after DS_ACCELERATOR

    from launch.engine import DeepSpeedEngine  # noqa: PLC0415

    deepspeed.initialize = partial(_initialize, deepspeed.initialize)

    def engines(translator, critic, config):
        return DeepSpeedEngine(translator, config), DeepSpeedEngine(critic, config)

    training = start(config, engines)
    advance(training, steps, rank, size)
    everything = [p for e in (training.translator, training.critic) for p in e.module.parameters()]
    partitioned = sum(p.numel() == 0 for p in everything)
    with deepspeed.zero.GatheredParameters(everything):
        if rank == 0:
            torch.save({"partitioned": partitioned, **parameters(training)}, out)
    dist.barrier()
    dist.destroy_process_group()


def _initialize(initialize: Callable, *, config: dict, **arguments):
    """ZeRO 3 leaves parameters below 100,000 numbers on every rank; here it shards those too."""
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return initialize(config=config, **arguments)
