"""Searches among trainings that were made once: each cell of a grid trained on the phantom store.

A trial of a search here takes its learning curve from the grid's table, so that many searches cost
no more than one training of each cell. The trainings are real, of one seed each: their luck is the
same for every search.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import optuna
import torch
import torch.distributed as dist
from optuna.trial import TrialState

from benchmarks.tune_known import Outcome
from launch.train import with_store
from pmg.config import Config, load_config
from pmg.patches import on_device
from pmg.training import Training, averaged_copy, build_modules, torch_engines
from storage.store import Store
from storage.stream import open_stream
from tune.config import BudgetConfig, PrunerConfig, SamplerConfig, ValidationConfig
from tune.judge import judge_of
from tune.sampling import hopeless, pruner_of, sampler_of
from tune.space import with_values

__all__ = ["Table", "measured", "replayed"]

GRID: Mapping[str, tuple[float, ...]] = {
    "prior.components": (1, 4, 16),
    "loss.lambda_change": (0.05, 0.2, 0.8, 3.2, 12.8),
    "optim.lr": (2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3, 6.4e-3),
}
_STEPS, _EVERY = 90, 10
# What the table in results/tune.md was measured with: the demo's weights have changed since.
_SMALL = (
    "model.width=6",
    "discriminator.width=8",
    "discriminator.scales=2",
    "data.validation_fraction=0.4",
    "data.scale_hu=60",
    "prior.min_std=0.05",
    "loss.lambda_identity=0",
    "loss.lambda_kl=0.01",
    "loss.lambda_cycle_kl=0.01",
    "loss.kl_warmup_steps=0",
    "optim.lr_discriminator=2e-3",
    "optim.ema=0.99",
)
_STARTUP = 5  # of few trials the usual ten would be nearly all
_OBJECTIVE = "sliced_wasserstein"

Cell = tuple[int, ...]
Table = Mapping[Cell, list[float]]  # for each cell of GRID its learning curve


def measured(store: Path, file: Path) -> Table:
    """Train each cell in this process unless `file` holds it, and write `file` after each."""
    held: dict[str, list[float]] = (
        json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    )
    base = load_config("demo", _SMALL, data={"store": store})
    base, _ = with_store(with_values(base, {"train.steps": _STEPS, "prior.fit_step": _EVERY}))
    cells = list(itertools.product(*(range(len(values)) for values in GRID.values())))
    with tempfile.TemporaryDirectory() as rendezvous:  # the judge shares scans among ranks
        dist.init_process_group("gloo", f"file://{rendezvous}/one", rank=0, world_size=1)
        for cell in cells:
            if str(cell) in held:
                continue
            values = {path: of[n] for n, (path, of) in zip(cell, GRID.items(), strict=True)}
            began = time.monotonic()
            held[str(cell)] = list(_curve(with_values(base, values)))
            file.write_text(json.dumps(held, indent=1), encoding="utf-8")
            print(f"{values}: {held[str(cell)][-1]:.4f} in {time.monotonic() - began:.0f} s",
                  flush=True)  # fmt: skip
        dist.destroy_process_group()
    return {cell: held[str(cell)] for cell in cells}


def _curve(config: Config) -> Iterator[float]:
    """The objective at every evaluation of a training on one thread."""
    assert config.data.store is not None
    torch.set_num_threads(1)
    judge = judge_of(config, [_OBJECTIVE], ValidationConfig(volumes=2))
    modules = build_modules(config)
    averaged = averaged_copy(modules[0], config)
    training = Training(
        config, *torch_engines(*modules, config), device=torch.device("cpu"), averaged=averaged
    )
    with (
        open_stream(
            Store.open(config.data.store), config.data, seed=config.train.seed, rank=0,
            world_size=1, global_batch=config.train.batch,
        ) as stream,
        closing(on_device(stream, training.device)) as batches,
    ):  # fmt: skip
        while training.step < _STEPS:
            training.advance(next(batches))
            if training.step % _EVERY == 0:
                yield judge(training)["objectives"][_OBJECTIVE]


def replayed(
    table: Table, sampler: str, pruner: str, trials: int, seed: int, grace_steps: int
) -> Outcome:
    """A search among the cells, two trials at a time; its best cell's value, its steps."""
    budget = BudgetConfig(trials=trials, steps=_STEPS, evaluate_every=_EVERY)
    study = optuna.create_study(
        sampler=sampler_of(
            SamplerConfig(name=sampler, seed=seed, startup_trials=_STARTUP)  # type: ignore[arg-type]
        ),
        pruner=pruner_of(
            PrunerConfig(name=pruner, grace_steps=grace_steps),  # type: ignore[arg-type]
            budget,
        ),
    )
    steps = 0
    for _ in range(trials // 2):
        for trial in [study.ask(), study.ask()]:
            steps += _replay(study, trial, table)
    return Outcome(study.best_value, steps)


def _replay(study: optuna.Study, trial: optuna.Trial, table: Table) -> int:
    cell = tuple(trial.suggest_int(path, 0, len(of) - 1) for path, of in GRID.items())
    for step, value in zip(range(_EVERY, _STEPS + 1, _EVERY), table[cell], strict=True):
        trial.report(value, step)
        if step < _STEPS and hopeless(study, study._storage.get_trial(trial._trial_id)):
            study.tell(trial, state=TrialState.PRUNED)
            return step
    study.tell(trial, table[cell][-1])
    return _STEPS
