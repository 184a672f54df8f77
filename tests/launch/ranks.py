"""Ranks of a gloo group on this machine without Ray, each training for some steps."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
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
        "averaged": training.averaged,
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


def train_together(configs: Sequence[Config], steps: int, folder: Path) -> None:
    """Two processes train one configuration after the other; `folder/ITS_NUMBER.pt` has the ends.

    Each is a dictionary of parameters, and of `sharded`: how many a rank did not have in full.
    """
    mp.spawn(_rank, (configs, steps, folder), nprocs=2)


def _rank(rank: int, configs: Sequence[Config], steps: int, folder: Path) -> None:
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    rendezvous = f"file://{folder / 'rendezvous'}"
    dist.init_process_group("gloo", rendezvous, timedelta(seconds=120), 2, rank)
    import deepspeed  # noqa: PLC0415  after DS_ACCELERATOR

    from launch.engine import DeepSpeedEngine  # noqa: PLC0415

    deepspeed.initialize = partial(_initialize, deepspeed.initialize)

    def engines(translator, critic, config):
        return DeepSpeedEngine(translator, config), DeepSpeedEngine(critic, config)

    for number, config in enumerate(configs):
        training = start(config, engines)
        advance(training, steps, rank, 2)
        modules = (training.translator.module, training.critic.module)
        sharded = sum(p.numel() == 0 for module in modules for p in module.parameters())
        with training.translator.whole(), training.critic.whole():
            if rank == 0:
                torch.save({"sharded": sharded} | parameters(training), folder / f"{number}.pt")
    dist.barrier()
    dist.destroy_process_group()


def _initialize(initialize: Callable, *, config: dict, **arguments):
    """ZeRO 3 leaves parameters below 100,000 numbers on every rank; here it shards those too."""
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return initialize(config=config, **arguments)
