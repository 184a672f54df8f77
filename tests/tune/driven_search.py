"""A search of a folder as its driver holds it, with results given by hand instead of trainings."""

from __future__ import annotations

from pathlib import Path

from tune.config import SearchConfig
from tune.judge import Judge
from tune.population import Population, settle
from tune.sampling import pruner_of, sampler_of
from tune.searcher import StudySearch
from tune.study import create_study, open_storage, reconcile

__all__ = ["ONE", "SPACE", "TWO", "Search"]

SPACE = {
    "prior.components": {"int": [1, 16], "log": True},
    "prior.min_weight": {"float": [1e-4, 1e-2], "log": True, "if": "prior.components > 1"},
    "loss.lambda_kl": {"float": [1e-3, 1], "log": True},
}
ONE, TWO = ("kid",), ("kid", "calcium_kept")


class Search:
    """A search of a folder as its driver holds it; `Search(folder)` again is the next driver."""

    def __init__(self, folder: Path, names=ONE, trials=6, space=SPACE, **changed):
        self.config = SearchConfig.model_validate(
            {"base": {"config": "demo"}, "space": space, "objectives": list(names)}
            | {"budget": {"trials": trials, "steps": 400, "evaluate_every": 100}}
            | changed
        )
        directions = ["minimize" if o.minimized else "maximize" for o in self.config.objectives]
        self.study = create_study(
            open_storage(str(folder / "study.journal")),
            "s",
            directions,
            sampler_of(self.config.sampler),
            pruner_of(self.config.pruner, self.config.budget),
        )
        self.space = self.config.searched()
        settle(self.study, folder)
        self.algorithm = StudySearch(
            self.study,
            self.space,
            folder / "trials",
            objectives=names,
            judge=Judge("store", 0.2, 0, 1, 1, None, 1, tuple(names)),
            budget=trials,
            orphans=reconcile(self.study, folder, alone=True),
            population=Population.of(self.config, self.space),
            constraints=self.config.constraints,
        )

    def result(self, step: int, *values: float, **more: object) -> dict[str, object]:
        names = self.config.objectives
        result = {f"objectives/{o.name}": value for o, value in zip(names, values, strict=True)}
        return result | {
            "step": step,
            "memory_bytes": 100,
            "seconds_per_step": 0.1,
            "effective_components": 2.0,
            "worker_seconds": 1.0,
            "done": step == 400,
        } | more  # fmt: skip

    def train(self, name: str, *values: float, **more: object) -> bool:
        """A trial from its first to its last step; whether it was ended early."""
        for step in range(100, 401, 100):
            result = self.result(step, *values, **more)
            if self.algorithm.take(name, result):
                self.algorithm.on_trial_complete(name, result)
                return True
        self.algorithm.on_trial_complete(name, result)
        return False
