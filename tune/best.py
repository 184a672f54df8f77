"""The chosen points of a study, and the configuration that training takes as it is."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path

import optuna
from optuna.study._constrained_optimization import _get_feasible_trials
from optuna.trial import FrozenTrial, TrialState

from pmg.config import Config, load_config
from tune.config import FinalConfig, SearchConfig
from tune.space import Space, Values, with_values
from tune.study import FINAL

__all__ = ["best_first", "chosen", "retrained", "rivals", "write_best"]


def best_first(study: optuna.Study) -> list[FrozenTrial]:
    """Complete trials within the constraints, the best first.

    Of several objectives: those of the Pareto front, by the first objective; then the others.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    trials = _get_feasible_trials(complete)
    front = {trial.number for trial in study.best_trials} if len(study.directions) > 1 else set()
    up = study.directions[0].name == "MAXIMIZE"

    def key(trial: FrozenTrial) -> tuple[bool, float]:
        assert trial.values is not None
        return trial.number not in front, -trial.values[0] if up else trial.values[0]

    return sorted(trials, key=key)


def chosen(
    study: optuna.Study, config: FinalConfig, space: Space
) -> list[tuple[int, int | None, Values]]:
    """(trial, K if another than the trial's, settings) of every point to retrain.

    Other K are of the best point: they share all other settings, and differ in K alone.
    """
    best = best_first(study)[: config.points]
    points: list[tuple[int, int | None, Values]] = []
    for trial in best:
        points.append((trial.number, None, space.decoded(trial.params)))
    if best:
        values = space.decoded(best[0].params)
        own = values.get("prior.components", space.base.prior.components)
        points += [(best[0].number, k, values) for k in config.components if k != own]
    return points


def retrained(study: optuna.Study) -> dict[tuple[int, int | None], list[FrozenTrial]]:
    """Complete retrainings by point and K, each with its seeds; empty if there are none."""
    found: dict[tuple[int, int | None], list[FrozenTrial]] = defaultdict(list)
    for trial in _final_trials(study):
        attributes = trial.user_attrs
        if "point" in attributes:
            found[attributes["point"], attributes.get("components")].append(trial)
    return dict(found)


def rivals(study: optuna.Study) -> dict[str, list[FrozenTrial]]:
    """Complete trainings of the presets and files of `final.against`, each with its seeds."""
    found: dict[str, list[FrozenTrial]] = defaultdict(list)
    for trial in _final_trials(study):
        if "against" in trial.user_attrs:
            found[trial.user_attrs["against"]].append(trial)
    return dict(found)


def _final_trials(study: optuna.Study) -> list[FrozenTrial]:
    name = f"{study.study_name}{FINAL}"
    if name not in [one.study_name for one in study._storage.get_all_studies()]:
        return []
    final = optuna.load_study(study_name=name, storage=study._storage)
    complete: list[FrozenTrial] = final.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return complete


def winner(study: optuna.Study) -> tuple[FrozenTrial, int | None] | None:
    """The point whose retrainings have the best median, and its K if another than the trial's.

    Without retrainings the best trial; None if none is complete.
    """
    best = best_first(study)
    if not best:
        return None
    up = study.directions[0].name == "MAXIMIZE"
    numbers = {trial.number: trial for trial in best}
    groups = {
        key: [trial.values[0] for trial in group if trial.values]
        for key, group in retrained(study).items()
        if key[0] in numbers
    }
    if not groups:
        return best[0], None
    point, components = (max if up else min)(groups, key=lambda key: statistics.median(groups[key]))
    return numbers[point], components


def best_config(config: SearchConfig, space: Space, study: optuna.Study) -> Config | None:
    """The winner's settings over the base's own training: its steps and workers, not a trial's."""
    won = winner(study)
    if won is None:
        return None
    trial, components = won
    values = space.decoded(trial.params)
    if components is not None:
        values["prior.components"] = components
    found = with_values(space.base, values)
    base = load_config(config.base.config, config.base.overrides)
    return found.model_copy(update={"train": base.train, "launch": base.launch})


def write_best(path: Path, config: SearchConfig, space: Space, study: optuna.Study) -> Path | None:
    """Write best.yaml; None if no trial is complete."""
    best = best_config(config, space, study)
    if best is None:
        return None
    path.write_text(best.to_yaml(), encoding="utf-8")
    return path
