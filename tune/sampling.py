"""Optuna's samplers and pruners, as a search's configuration names them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.pruners import SuccessiveHalvingPruner as Asha
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial

if TYPE_CHECKING:
    from tune.config import BudgetConfig, PrunerConfig, SamplerConfig

__all__ = ["hopeless", "pruner_of", "sampler_of"]


def sampler_of(
    config: SamplerConfig, *, offset: int = 0, earlier: Sequence[FrozenTrial] | None = None
) -> BaseSampler:
    """offset: of the seed, so that a resumed search does not draw its first trials again.

    earlier: another study's trials, where whose good ones lie cmaes begins (Nomura et al. 2021,
    arXiv:2012.06932). It goes by their order alone, not by their values.
    """
    seed = config.seed + offset
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match config.name:
            case "tpe":
                # By groups: conditional settings leave several joint spaces. The liar keeps
                # parallel trials apart.
                return TPESampler(
                    seed=seed,
                    multivariate=True,
                    group=True,
                    constant_liar=True,
                    n_startup_trials=config.startup_trials,
                )
            case "gp":
                return GPSampler(seed=seed, n_startup_trials=config.startup_trials)
            case "cmaes":
                begin = config.startup_trials if earlier is None else 1
                source = None if earlier is None else list(earlier)
                return CmaEsSampler(seed=seed, n_startup_trials=begin, source_trials=source)
            case "nsga2":
                return NSGAIISampler(seed=seed, population_size=config.population)
            case "random":
                return RandomSampler(seed=seed)


def pruner_of(config: PrunerConfig, budget: BudgetConfig) -> BasePruner:
    every = budget.evaluate_every
    first = max(every, config.grace_steps)  # step at which trials are compared
    match config.name:
        case "none" | "pbt":
            return NopPruner()
        case "asha":
            return Asha(min_resource=first, reduction_factor=config.factor)
        case "median":
            return MedianPruner(
                n_startup_trials=config.startup_trials, n_warmup_steps=first, interval_steps=every
            )
        case "hyperband":
            return HyperbandPruner(
                min_resource=first, max_resource=budget.steps, reduction_factor=config.factor
            )


def hopeless(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Whether the study's pruner ends the trial, by the first objective's values at its steps."""
    return bool(study.pruner.prune(_ByFirst(study), trial))  # type: ignore[arg-type]


class _ByFirst:
    """A study of several objectives as one of its first: Optuna's pruners refuse several."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self.direction = study.directions[0]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)
