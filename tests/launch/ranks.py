"""Ranks of a gloo group on this machine without Ray, each training for some steps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from launch.run_folder import RunFolder
from pmg.config import Config
from pmg.engine import TorchEngine
from pmg.training import Training, averaged_copy, build_modules, torch_engines
from storage.store import Store
from storage.stream import open_stream

CPU = torch.device("cpu")


def start(config: Config, engines: Callable, eps: float | None = None) -> Training:
    """A training whose every parameter matters: fresh, zero layers would hide the others.

    eps: of Adam, where not its own.
    """
    modules = build_modules(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.3 * parameter.std(correction=0) * noise + 0.02 * noise)
    averaged = averaged_copy(modules[0], config)
    training = Training(config, *engines(*modules, config), device=CPU, averaged=averaged)
    for engine in (training.translator, training.critic) if eps is not None else ():
        adam = engine.optimizer if isinstance(engine, TorchEngine) else engine._adam
        for group in adam.param_groups:
            group["eps"] = eps
    return training


def advance(training: Training, steps: int, rank: int = 0, world_size: int = 1) -> list[float]:
    """The total loss of every step on this rank."""
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
        return [training.advance(next(stream)).terms["total"].item() for _ in range(steps)]


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


def train_alone(
    config: Config, steps: int, eps: float | None = None
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """What one process of plain torch trains, and its loss at every step."""
    torch.set_num_threads(1)
    training = start(config, torch_engines, eps)
    losses = advance(training, steps)
    return parameters(training), losses


def train_together(
    configs: Sequence[Config], steps: int, folder: Path, ranks: int = 2, eps: float | None = None
) -> None:
    """So many processes train one configuration after the other; `folder/ITS_NUMBER.pt` has each.

    That is a dictionary of parameters, and of `sharded`: how many a rank did not have in full.
    """
    mp.spawn(_train, (ranks, configs, steps, folder, eps), nprocs=ranks)


def run_together(function: Callable, folder: Path, *arguments: object, ranks: int = 2) -> None:
    """function(rank, engines, folder, *arguments) in so many processes, which are one group."""
    mp.spawn(_run, (ranks, function, folder, arguments), nprocs=ranks)


def _run(rank: int, ranks: int, function: Callable, folder: Path, arguments: tuple) -> None:
    with _group(rank, ranks, folder) as engines:
        function(rank, engines, folder, *arguments)


def _train(
    rank: int,
    ranks: int,
    configs: Sequence[Config],
    steps: int,
    folder: Path,
    eps: float | None,
) -> None:
    with _group(rank, ranks, folder) as engines:
        for number, config in enumerate(configs):
            training = start(config, engines, eps)
            advance(training, steps, rank, ranks)
            _keep(training, rank, folder / f"{number}.pt")


def go_on_together(configs: Sequence[Config], steps: int, folder: Path, ranks: int) -> None:
    """So many processes resume each configuration's run in `folder/ITS_NUMBER`, if there is one,
    take some steps, and save.

    `folder/ITS_NUMBER.pt` has the parameters, and `losses`: the mean over ranks of each step.
    """
    mp.spawn(_go_on, (ranks, configs, steps, folder), nprocs=ranks)


def _go_on(rank: int, ranks: int, configs: Sequence[Config], steps: int, folder: Path) -> None:
    from launch.saver import Saver  # noqa: PLC0415  which imports DeepSpeed

    with _group(rank, ranks, folder) as engines:
        for number, config in enumerate(configs):
            training = start(config, engines)
            run = RunFolder(folder / str(number))
            saver = Saver(training, training.translator, training.critic, run, "catalogue")
            saver.resume()
            losses = torch.tensor(advance(training, steps, rank, ranks))
            dist.all_reduce(losses)
            saver.save({"skipped": 0})
            saver.finish()
            _keep(training, rank, folder / f"{number}.pt", losses=(losses / ranks).tolist())


def _keep(training: Training, rank: int, file: Path, **more: object) -> None:
    modules = (training.translator.module, training.critic.module)
    sharded = sum(p.numel() == 0 for module in modules for p in module.parameters())
    with training.translator.whole(), training.critic.whole():
        if rank == 0:
            torch.save({"sharded": sharded} | more | parameters(training), file)


@contextmanager
def _group(rank: int, ranks: int, folder: Path) -> Iterator[Callable]:
    """This process as one of a group; yields what makes engines of modules."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    rendezvous = f"file://{folder / f'rendezvous-of-{ranks}'}"
    dist.init_process_group("gloo", rendezvous, timedelta(seconds=120), ranks, rank)
    import deepspeed  # noqa: PLC0415  after DS_ACCELERATOR

    from launch.engine import DeepSpeedEngine  # noqa: PLC0415

    deepspeed.initialize = partial(_initialize, deepspeed.initialize)
    yield lambda translator, critic, config: (
        DeepSpeedEngine(translator, config),
        DeepSpeedEngine(critic, config),
    )
    dist.barrier()
    dist.destroy_process_group()


def _initialize(initialize: Callable, *, config: dict, **arguments):
    """ZeRO 3 leaves parameters below 100,000 numbers on every rank; here it shards those too."""
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return initialize(config=config, **arguments)
