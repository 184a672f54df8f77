"""What a search is worth: against random search, with early stopping, in orchestration.

    python -m benchmarks.tune known               # a known, noisy objective; no training
    python -m benchmarks.tune phantom --store S   # 12 trials on a store, killed once and resumed

`known` is shaped like ours: a valley in log K, steep towards K = 1 and flat beyond the right
number, quadratic in the logarithms of the loss weights, with noise at every evaluation and learning
curves that fall towards it. All that Ray does is left out; the study's sampler, pruner and rule for
ending trials are those of a search.
"""

from __future__ import annotations

import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import optuna
import yaml
from optuna.trial import TrialState

from tune.config import BudgetConfig, PrunerConfig, SamplerConfig
from tune.sampling import hopeless, pruner_of, sampler_of
from tune.study import load_study

_NOISE = 0.03
_STEPS, _EVERY = 2700, 300
_WEIGHTS = {"gan": 1.0, "kl": 0.02, "reconstruction": 8.0, "cycle_kl": 0.03, "cycle": 12.0}
_REPEATS = 5
_PARTS = ("start", "imports", "engines", "data", "steps", "checkpoint", "evaluation", "rest")


def true_value(parameters: dict[str, float]) -> float:
    """The objective without noise, at the last step; 0.1 at its best."""
    k = parameters["components"]
    value = 0.1 + 0.25 * max(math.log2(6 / k), 0.0) ** 1.5 + 0.01 * max(math.log2(k / 6), 0.0)
    for name, best in _WEIGHTS.items():
        value += 0.05 * math.log10(parameters[name] / best) ** 2
    return value


@dataclass(frozen=True)
class Outcome:
    """best: the true value of the trial that looked best. steps: all that were taken."""

    best: float
    steps: int


def known_search(sampler: str, pruner: str, trials: int, seed: int) -> Outcome:
    """A search as `tune` does it, two trials at a time, with a formula in the trainings' place."""
    budget = BudgetConfig(trials=trials, steps=_STEPS, evaluate_every=_EVERY)
    study = optuna.create_study(
        sampler=sampler_of(SamplerConfig(name=sampler, seed=seed)),  # type: ignore[arg-type]
        pruner=pruner_of(PrunerConfig(name=pruner), budget),  # type: ignore[arg-type]
    )
    rng = np.random.default_rng(seed)
    steps = 0
    for _ in range(trials // 2):
        for trial in [study.ask(), study.ask()]:
            steps += _train(study, trial, rng)
    best = min(study.get_trials(states=(TrialState.COMPLETE,)), key=lambda t: t.value or 0.0)
    return Outcome(true_value(best.params), steps)


def _train(study: optuna.Study, trial: optuna.Trial, rng: np.random.Generator) -> int:
    parameters: dict[str, float] = {"components": trial.suggest_int("components", 1, 32, log=True)}
    for name, best in _WEIGHTS.items():
        parameters[name] = trial.suggest_float(name, best / 30, best * 30, log=True)
    end = true_value(parameters)
    for step in range(_EVERY, _STEPS + 1, _EVERY):
        value = end + 0.6 * math.exp(-3 * step / _STEPS) + _NOISE * rng.standard_normal()
        trial.report(value, step)
        frozen = study._storage.get_trial(trial._trial_id)
        if step < _STEPS and hopeless(study, frozen):
            study.tell(trial, state=TrialState.PRUNED)
            return step
    study.tell(trial, value)
    return _STEPS


@click.group()
def main() -> None:
    """Measure what a search is worth."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@main.command()
@click.option("--trials", default=60, show_default=True)
def known(trials: int) -> None:
    """A known objective: every sampler against random search, and early stopping against none."""
    print(f"true value of what looked best of {trials} trials; 0.1 is the optimum")
    random = [known_search("random", "none", trials, seed) for seed in range(_REPEATS)]
    _row("random", random, random)
    for sampler in ("tpe", "cmaes"):
        _row(sampler, [known_search(sampler, "none", trials, s) for s in range(_REPEATS)], random)
    print("with early stopping (steps: share of those without)")
    for pruner in ("asha", "median", "hyperband"):
        found = [known_search("tpe", pruner, trials, seed) for seed in range(_REPEATS)]
        _row(f"tpe, {pruner}", found, random)
    print("the Gaussian process, which takes minutes to propose")
    _row("gp", [known_search("gp", "none", trials, s) for s in range(_REPEATS)], random)


def _row(name: str, found: Sequence[Outcome], random: Sequence[Outcome]) -> None:
    values = [one.best for one in found]
    wins = sum(one.best <= other.best for one, other in zip(found, random, strict=True))
    share = sum(one.steps for one in found) / sum(one.steps for one in random)
    print(
        f"  {name:15}  median {statistics.median(values):.3f}  range {min(values):.3f} to "
        f"{max(values):.3f}  better or equal in {wins} of {len(found)}  steps {share:.0%}"
    )


@main.command()
@click.option("--store", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="a new folder")
@click.option("--trials", default=12, show_default=True)
@click.option("--steps", default=300, show_default=True, help="of a trial")
@click.option("--kill-after", default=2, show_default=True, help="finished trials")
def phantom(store: Path, out: Path, trials: int, steps: int, kill_after: int) -> None:
    """A search on a store to its end, its driver killed once; where the seconds went."""
    out.mkdir(parents=True)
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(_phantom_search(store, trials, steps)))
    command = [sys.executable, "-m", "tune.search", "--config", str(file), "--out", str(out)]
    started = time.monotonic()
    first = subprocess.Popen(command, start_new_session=True)
    while first.poll() is None and _finished(out) < kill_after:
        time.sleep(1)
    if first.poll() is None:
        os.kill(first.pid, signal.SIGKILL)
    first.wait()
    print(f"killed after {time.monotonic() - started:.0f} s, {_finished(out)} trials finished")
    time.sleep(3)
    subprocess.run([*command, "--resume"], check=True)
    print(f"in all {(time.monotonic() - started) / 60:.1f} min")
    table(out)


def table(out: Path) -> None:
    """Where the seconds of each trial that was never killed went, and their share outside."""
    shares = []
    for trial in load_study(str(out)).trials:
        spent = trial.user_attrs.get("seconds", {})
        if not spent or trial.user_attrs.get("attempts") != 1:
            continue
        whole = trial.user_attrs["worker_seconds"]
        shares.append(1 - (spent["steps"] + spent["evaluation"]) / whole)
        parts = "  ".join(f"{name} {spent.get(name, 0):.1f}" for name in _PARTS)
        state = trial.state.name.lower()
        print(f"  trial {trial.number} {state:9} {parts}  all {whole:.1f} s, {shares[-1]:.0%}")
    if shares:
        print(f"outside steps and evaluation: median {statistics.median(shares):.0%}")


def _finished(out: Path) -> int:
    if not (out / "study.journal").is_file():
        return 0
    try:
        trials = load_study(str(out)).trials
    except RuntimeError:  # not yet created
        return 0
    return sum(trial.state.is_finished() for trial in trials)


def _phantom_search(store: Path, trials: int, steps: int) -> dict[str, object]:
    return {
        "base": {"config": "demo", "overrides": ["data.validation_fraction=0.4"]},
        "store": str(store),
        "space": {
            "prior.components": {"int": [1, 16], "log": True},
            "loss.lambda_kl": {"float": [1e-3, 1.0], "log": True},
            "loss.lambda_change": {"float": [0.1, 10.0], "log": True},
            "optim.lr": {"float": [2e-4, 4e-3], "log": True},
        },
        "points": ["faithful", "unit"],
        "objectives": ["sliced_wasserstein"],
        "validation": {"volumes": 2},
        "budget": {"trials": trials, "steps": steps, "evaluate_every": steps // 3},
        "final": {"points": 1, "seeds": [1]},
    }


if __name__ == "__main__":
    main()
