"""A known, noisy objective in the place of trainings, shaped like ours.

A valley in log K, steep towards K = 1 and flat beyond the right number, quadratic in the logarithms
of the loss weights, with noise at every evaluation and learning curves that fall towards it. All
that Ray does is left out; the study's sampler, pruner and rule for ending trials are a search's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.trial import TrialState

from tune.config import BudgetConfig, PrunerConfig, SamplerConfig
from tune.sampling import hopeless, pruner_of, sampler_of

__all__ = ["Outcome", "known_search", "true_value"]

_NOISE = 0.03
_STEPS, _EVERY = 2700, 300
_WEIGHTS = {"gan": 1.0, "kl": 0.02, "reconstruction": 8.0, "cycle_kl": 0.03, "cycle": 12.0}


def true_value(parameters: dict[str, float]) -> float:
    """The objective without noise, at the last step; 0.1 at its best."""
    k = parameters["components"]
    value = 0.1 + 0.25 * max(math.log2(6 / k), 0.0) ** 1.5 + 0.01 * max(math.log2(k / 6), 0.0)
    for name, best in _WEIGHTS.items():
        value += 0.05 * math.log10(parameters[name] / best) ** 2
    return value


@dataclass(frozen=True)
class Outcome:
    """best: of the trial that looked best, the true value. steps: all that were taken."""

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
