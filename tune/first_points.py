"""What a search tries before its sampler proposes anything, and what an earlier search tells it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from tune.best import best_first, winner
from tune.config import SearchConfig, WarmStartConfig, point_values
from tune.space import Space, Values
from tune.study import StudyError, has_trial, load_study

__all__ = ["enqueue", "first_points", "source_trials"]


def first_points(config: SearchConfig, space: Space) -> Iterator[tuple[str, Values]]:
    """Points to try first, each with where it comes from.

    Of an earlier search its winner, then its other best trials: they are trained again, for a value
    on one cohort says nothing of another's. Raises StudyError if it has none.
    """
    for point in config.points:
        origin = point if isinstance(point, str) else "given"
        values = point_values(config, space, point)
        yield f"{origin} {sorted(values.items())}" if origin == "given" else origin, values
    if config.warm_start is not None:
        yield from _best_of(config.warm_start, space)


def _best_of(warm: WarmStartConfig, space: Space) -> Iterator[tuple[str, Values]]:
    earlier = load_study(warm.storage, warm.study)
    won = winner(earlier)
    if won is None:
        raise StudyError(f"warm_start: study {earlier.study_name} has no complete trial")
    best, components = won
    others = [trial for trial in best_first(earlier) if trial.number != best.number]
    for trial in [best, *others[: warm.points - 1]]:
        values = space.decoded(trial.params)
        if trial is best and components is not None and "prior.components" in values:
            values["prior.components"] = components
        yield f"{earlier.study_name}, trial {trial.number}", space.nearest(values)


def enqueue(study: optuna.Study, space: Space, points: Iterator[tuple[str, Values]]) -> None:
    """Those that an earlier run of this search has not enqueued."""
    for origin, values in points:
        if not has_trial(study, origin=origin):
            study.enqueue_trial(space.fixed(values), user_attrs={"origin": origin})


def source_trials(config: SearchConfig, space: Space) -> Sequence[FrozenTrial] | None:
    """The earlier search's complete trials, for a sampler that begins where its good ones lie.

    None if warm_start.trials does not ask for them. Raises StudyError where they are of another
    space or objective.
    """
    warm = config.warm_start
    if warm is None or not warm.trials:
        return None
    earlier = load_study(warm.storage, warm.study)
    asked = [(config.objectives[0].name, config.objectives[0].minimized)]
    directions = [direction.name == "MINIMIZE" for direction in earlier.directions]
    held = list(zip(earlier.metric_names or [""], directions, strict=True))
    if held != asked:
        raise StudyError(
            f"warm_start.trials: study {earlier.study_name} is of {_told(held)}, this search of "
            f"{_told(asked)}; without trials its best points are tried all the same"
        )
    trials: list[FrozenTrial] = earlier.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    for trial in trials:
        for path, kind in trial.distributions.items():
            parameter = space.parameters.get(path)
            if parameter is None or not parameter.is_drawn_by(kind):
                raise StudyError(
                    f"warm_start.trials: study {earlier.study_name} drew {path} by {kind}; "
                    f"expected the same in this search's space, or no warm_start.trials"
                )
    if not trials:
        raise StudyError(f"warm_start: study {earlier.study_name} has no complete trial")
    return trials


def _told(objectives: Sequence[tuple[str, bool]]) -> str:
    return ", ".join(f"{'minimize' if down else 'maximize'} {name}" for name, down in objectives)
