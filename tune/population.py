"""Population-based training: of a bad trial's training a better one's weights are gone on with.

By truncation selection (Jaderberg et al. 2017, arXiv:1711.09846): a trial that is among the worst
at a step is ended there, and a new trial, its successor, goes on from the checkpoint that one of
the best had at this step, with loss weights and learning rates changed. A training and those that
succeed it take as many steps as one trial, and count as one. All that is decided stands in the
study, so that a search that was killed goes on with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from launch import checkpoint
from launch.run_folder import RunFolder
from tune.space import Space, Values
from tune.study import PARENT

if TYPE_CHECKING:
    from tune.config import SearchConfig

__all__ = ["Population", "ended_by_a_successor", "settle", "succeed"]

_SUCCESSOR = "successor"  # of a trial that is ended: what its successor will be
_SUCCEEDS = "succeeds"
_FACTORS = (0.8, 1.25)
_DRAWN_ANEW = 0.25  # of the settings that change


@dataclass(frozen=True)
class Population:
    """factor: one in so many trials is bad, and one in so many good.

    least: trials that must have come to a step before one is ended there.
    """

    space: Space
    factor: int
    least: int
    seed: int

    @classmethod
    def of(cls, config: SearchConfig, space: Space) -> Population | None:
        """None where the search ends trials in another way."""
        pruner = config.pruner
        if pruner.name != "pbt":
            return None
        return cls(space, pruner.factor, pruner.startup_trials, config.sampler.seed)

    def take_over(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether a successor is to replace this trial, at the step it has come to.

        By the first objective, among all that have come to that step. If so, what the successor
        will be is written to the study.
        """
        step = trial.last_step
        assert step is not None
        there = self._best_first(study, step)
        worst = len(there) - max(len(there) // self.factor, 1)
        numbers = [one.number for one in there]
        if len(there) < max(self.least, 2) or numbers.index(trial.number) < worst:
            return False
        good = [one for one in there[: len(there) - worst] if _saved(one, step)]
        if not good or math.isinf(_key(study, good[0], step)):
            return False
        rng = np.random.default_rng([self.seed, trial.number, step])
        parent = good[int(rng.integers(len(good)))]
        values = self.changed(self.space.decoded(parent.params), rng)
        plan = {"parent": parent.number, "step": step, "run": parent.user_attrs["run"]}
        plan["values"] = self.space.fixed(values)
        study._storage.set_trial_user_attr(trial._trial_id, _SUCCESSOR, plan)
        return True

    def changed(self, values: Values, rng: np.random.Generator) -> Values:
        """The settings with others for their loss weights and learning rates.

        Each is a quarter larger or a fifth smaller, or drawn anew, within its range.
        """
        found = dict(values)
        for path in self.space.changeable:
            if path not in values:
                continue
            parameter = self.space.parameters[path]
            if rng.random() < _DRAWN_ANEW:
                found[path] = parameter.drawn(float(rng.random()))
            else:
                found[path] = parameter.nearest(values[path] * _FACTORS[rng.integers(2)])
        return found

    def _best_first(self, study: optuna.Study, step: int) -> list[FrozenTrial]:
        trials = study.get_trials(deepcopy=False)
        there = [one for one in trials if step in one.intermediate_values]
        return sorted(there, key=lambda one: _key(study, one, step))


def succeed(study: optuna.Study, number: int) -> None:
    """End a trial whose successor is decided on, and queue that one, unless both are done."""
    trials = study.get_trials(deepcopy=False)
    plan: dict[str, Any] | None = trials[number].user_attrs.get(_SUCCESSOR)
    if plan is None:
        return
    told = study.tell(number, state=TrialState.PRUNED, skip_if_finished=True)
    there = any(one.user_attrs.get(_SUCCEEDS) == number for one in trials)
    if told.state is TrialState.PRUNED and not there:
        parent = {"number": plan["parent"], "step": plan["step"], "run": plan["run"]}
        attributes = {PARENT: parent, _SUCCEEDS: number}
        study.enqueue_trial(plan["values"], user_attrs=attributes)


def settle(study: optuna.Study, folder: Path) -> None:
    """Do what the driver of this folder had decided on and, having been killed, not done."""
    for trial in study.get_trials(deepcopy=False):
        if trial.user_attrs.get("folder") == str(folder):
            succeed(study, trial.number)


def ended_by_a_successor(trial: FrozenTrial) -> bool:
    return _SUCCESSOR in trial.user_attrs


def _key(study: optuna.Study, trial: FrozenTrial, step: int) -> float:
    """Small is good; what is no number is worst."""
    value: float = trial.intermediate_values[step]
    if not math.isfinite(value):
        return math.inf
    return -value if study.directions[0].name == "MAXIMIZE" else value


def _saved(trial: FrozenTrial, step: int) -> bool:
    folder = RunFolder(Path(trial.user_attrs["run"]))
    return checkpoint.is_sealed(folder.checkpoints, step)
