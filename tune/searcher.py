"""Ray Tune's search algorithm and scheduler over a study, which alone remembers what happened."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from launch.run_folder import RunFolder
from pmg.config import Config, ConfigError
from tune.config import ConstraintsConfig
from tune.judge import Judge
from tune.population import Population, succeed
from tune.sampling import hopeless
from tune.space import Space, Values, with_values
from tune.study import PARENT, counted
from tune.trial import TrialFolder

__all__ = ["EarlyStopping", "StudySearch"]

_MISFITS = 50  # points in a row whose settings do not fit together


class StudySearch(OptunaSearch):  # type: ignore[misc]
    """Trials of a study for Ray Tune: first those a dead driver left, then new ones, to a budget.

    Ray Tune keeps a copy of its own; it is never read, since it is behind what the study knows. A
    trial's folder is named by its number, so that a trial which is gone on with finds its
    checkpoints. `orphans` come from `study.reconcile`.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        folder: Path,
        *,
        objectives: Sequence[str],
        judge: Judge,
        budget: int,
        orphans: Sequence[FrozenTrial] = (),
        population: Population | None = None,
        constraints: ConstraintsConfig | None = None,
        of_attributes: Callable[[Config, Mapping[str, Any]], Config] = lambda config, _: config,
    ) -> None:
        # Ray Tune wants a metric that every result has; what is good the study knows.
        super().__init__(metric="step", mode="max")
        self._ot_study = study
        self._range = space
        self._folder = folder
        self._names = tuple(objectives)
        self._judge = judge
        self._budget = budget
        self._orphans = list(orphans)
        self._population = population
        self._limits = constraints or ConstraintsConfig()
        self._of_attributes = of_attributes
        self._pruned: set[str] = set()

    # Ray Tune pickles its search algorithm from time to time.

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Nothing, ())

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise RuntimeError("a search goes on from its study, not from Ray Tune's copy")

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        return True

    @property
    def running(self) -> bool:
        """Whether trials were begun and not ended."""
        return bool(self._ot_trials)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        for _ in range(_MISFITS):
            trial = self._next()
            if trial is None:
                may_come = self._population is not None and self.running
                return None if may_come else str(Searcher.FINISHED)
            values = self._range.suggest(trial)
            try:
                config = self._of_attributes(
                    with_values(self._range.base, values), trial.user_attrs
                )
            except ConfigError as error:
                trial.set_user_attr("error", str(error))
                self._ot_study.tell(trial, state=TrialState.FAIL)
                continue
            place = TrialFolder(self._folder / f"trial_{trial.number:04d}")
            trial.set_user_attr("run", str(place.root))
            place.prepare(config, self._judge, trial.user_attrs.get(PARENT))
            self._ot_trials[trial_id] = trial
            return {"folder": str(place.root)}
        raise ConfigError(
            f"search space: {_MISFITS} points in a row have settings that do not fit together; "
            f"narrow the ranges"
        )

    def _next(self) -> optuna.Trial | None:
        study = self._ot_study
        if self._orphans:
            orphan = self._orphans.pop(0)
            trial = optuna.Trial(study, orphan._trial_id)
            trial.set_user_attr("folder", str(self._folder.parent))
            return trial
        trial = self._successor()
        if trial is None and len(counted(study.get_trials(deepcopy=False))) >= self._budget:
            return None
        trial = trial or study.ask()
        trial.set_user_attr("folder", str(self._folder.parent))
        if PARENT in trial.user_attrs:  # in the place of one that was counted
            return trial
        before = [t for t in counted(study.get_trials(deepcopy=False)) if t.number < trial.number]
        if len(before) >= self._budget:  # another process asked at the same time
            trial.set_user_attr("lost", "beyond the budget")
            study.tell(trial, state=TrialState.FAIL)
            return None
        return trial

    def _successor(self) -> optuna.Trial | None:
        """One that waits and that no other process takes first; points to try wait longer."""
        study = self._ot_study
        for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            if PARENT not in trial.user_attrs:
                continue
            with suppress(optuna.exceptions.UpdateFinishedTrialError):
                if study._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                    return optuna.Trial(study, trial._trial_id)
        return None

    def take(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Keep an evaluation in the study; whether the trial is hopeless."""
        if "failed" in result:
            return False
        trial = self._ot_trials[trial_id]
        step = int(result["step"])
        values = [result.get(f"objectives/{name}", math.nan) for name in self._names]
        kept: Values = {
            "objectives": dict(zip(self._names, values, strict=True)),
            "seconds": {
                name.removeprefix("seconds/"): value
                for name, value in result.items()
                if name.startswith("seconds/")
            },
            "attempts": TrialFolder(Path(trial.user_attrs["run"])).attempts(),
        }
        for name in ("step", "memory_bytes", "seconds_per_step", "effective_components"):
            kept[name] = result[name]
        kept["worker_seconds"] = result["worker_seconds"]
        for name, value in kept.items():
            trial.set_user_attr(name, value)
        storage = trial.storage
        frozen = storage.get_trial(trial._trial_id)
        new = step not in frozen.intermediate_values
        if new:  # of several objectives, the first
            storage.set_trial_intermediate_value(trial._trial_id, step, values[0])
        if result.get("done"):
            return False
        frozen = storage.get_trial(trial._trial_id)
        if self._population is None:
            stop = hopeless(self._ot_study, frozen)
        else:
            # What a resume repeats was decided on, and who has come there since is no matter.
            stop = new and self._population.take_over(self._ot_study, frozen)
        if stop:
            self._pruned.add(trial_id)
            RunFolder(Path(trial.user_attrs["run"])).stop_request.touch()
        return stop

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """`take` has kept it: only Ray Tune's scheduler hears of results in time to stop one."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if trial_id not in self._ot_trials:
            return
        if result and not error:  # the last one, of which Ray Tune tells nobody else
            self.take(trial_id, result)
        trial = self._ot_trials.pop(trial_id)
        place = TrialFolder(Path(trial.user_attrs["run"]))
        workers = self._range.base.launch.workers
        trial.set_user_attr("worker_seconds", place.worked_s() * workers)
        self._set_constraints(trial, result or {})
        if error or not result or "failed" in result:
            attempts = f"its processes died {place.attempts()} times"
            trial.set_user_attr("error", (result or {}).get("failed", attempts))
            self._tell(trial, TrialState.FAIL)
        elif trial_id in self._pruned:
            self._tell(trial, TrialState.PRUNED)
            succeed(self._ot_study, trial.number)
        else:
            values = [result.get("objectives", {}).get(name, result.get(f"objectives/{name}"))
                      for name in self._names]  # fmt: skip
            if any(value is None or not math.isfinite(value) for value in values):
                trial.set_user_attr("error", f"objectives {values} are not finite")
                self._tell(trial, TrialState.FAIL)
            else:
                self._tell(trial, TrialState.COMPLETE, values)

    def _set_constraints(self, trial: optuna.Trial, result: Mapping[str, Any]) -> None:
        for name in ("memory_bytes", "seconds_per_step"):
            limit = getattr(self._limits, name)
            if limit is not None and name in result:
                trial.set_constraint(name, result[name] / limit - 1)

    def _tell(
        self, trial: optuna.Trial, state: TrialState, values: list[float] | None = None
    ) -> None:
        # Another process may have failed it for this one's silence: then its word stands.
        self._ot_study.tell(trial, values, state=state, skip_if_finished=True)


class _Nothing:
    """What a pickled StudySearch comes back as."""


class EarlyStopping(FIFOScheduler):  # type: ignore[misc]
    """Ends the trials that the study's pruner calls hopeless."""

    def __init__(self, search: StudySearch) -> None:
        super().__init__()
        self._search = search

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Nothing, ())

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        stop = self._search.take(trial.trial_id, result)
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)
