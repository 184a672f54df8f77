"""The typed tree of a search: defaults, ranges, and errors that name what would be right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from pmg.config import Config, ConfigError, Section, checked, load_config, parsed
from pmg.config.section import Count, Positive
from tune.objectives import OBJECTIVES, nearest_objective
from tune.space import Parameter, Space, Values, changeable, checked_space

__all__ = [
    "BaseConfig",
    "BudgetConfig",
    "ConstraintsConfig",
    "FinalConfig",
    "ObjectiveConfig",
    "PrunerConfig",
    "ResourcesConfig",
    "SamplerConfig",
    "SearchConfig",
    "ValidationConfig",
    "WarmStartConfig",
    "load_search",
    "point_values",
]


class BaseConfig(Section):
    """The configuration that trials differ from in the searched settings alone."""

    config: str = Field("recommended", description="a preset's name, or a YAML file of settings")
    overrides: tuple[str, ...] = Field((), description="section.field=value, over it")


class ObjectiveConfig(Section):
    """What is made small or large."""

    name: str
    direction: Literal["minimize", "maximize"] | None = Field(
        None, description="none: as the objective's nature is"
    )

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _exists(self) -> ObjectiveConfig:
        if self.name not in OBJECTIVES:
            raise ValueError(f"no objective {self.name!r}; {nearest_objective(self.name)}")
        return self

    @property
    def minimized(self) -> bool:
        return (self.direction or OBJECTIVES[self.name].direction) == "minimize"


class ValidationConfig(Section):
    """What trials are judged on; no trial trains on it."""

    domain: Literal[1, 2] = Field(1, description="of the scans that are translated")
    volumes: Count = Field(
        4, description="held-out scans of the store that are translated, at most"
    )
    cases: Path | None = Field(
        None, description="folder of cases with truth, as pmg evaluate takes it"
    )
    most_cases: Count = Field(4, description="cases that are translated, at most")


class SamplerConfig(Section):
    """Who proposes the next trial."""

    name: Literal["tpe", "gp", "cmaes", "nsga2", "random"] = "tpe"
    seed: Annotated[int, Field(ge=0)] = 0
    startup_trials: Count = Field(10, description="drawn at random before tpe, gp and cmaes begin")
    population: Count = Field(16, description="of nsga2: trials in a generation")


class PrunerConfig(Section):
    """Who ends hopeless trials early, by the first objective at the steps of evaluation.

    pbt: in a bad trial's place a good one's weights are trained on, with other loss weights and
    learning rates.
    """

    name: Literal["none", "asha", "median", "hyperband", "pbt"] = "asha"
    factor: Annotated[int, Field(ge=2)] = Field(
        4,
        description="of asha and hyperband: one in so many trials passes a rung; of pbt: one in so "
        "many is ended, and one in so many handed on",
    )
    grace_steps: Annotated[int, Field(ge=0)] = Field(
        0,
        description="no trial is ended before this step: early the curves of different learning "
        "rates cross",
    )
    startup_trials: Count = Field(
        4,
        description="of median: trials that are never ended; of pbt: trials that have come to a "
        "step before one is ended there",
    )


class FinalConfig(Section):
    """Retraining of the chosen points, so that luck is not taken for merit."""

    points: Annotated[int, Field(ge=0)] = Field(2, description="best points (0: none)")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (11, 12), description="of train.seed, others than the trials'"
    )
    against: tuple[str, ...] = Field(
        (),
        description="presets or files trained beside them in full, with as many steps and the same "
        "seeds",
    )
    components: tuple[Count, ...] = Field(
        (), description="K at which the best point is retrained too: the evidence for its advice"
    )

    @model_validator(mode="after")
    def _compares_with_something(self) -> FinalConfig:
        if (self.against or self.components) and not self.points:
            raise ValueError("against and components go with points: expected 1 or more")
        return self


class BudgetConfig(Section):
    """How many trials of how many steps."""

    trials: Count = 30
    steps: Count = Field(2000, description="of each trial")
    evaluate_every: Count = Field(500, description="steps between evaluations and checkpoints")

    @model_validator(mode="after")
    def _evaluates_at_the_end(self) -> BudgetConfig:
        if self.steps % self.evaluate_every:
            raise ValueError(
                f"steps {self.steps} must be a multiple of evaluate_every {self.evaluate_every}"
            )
        return self


class ResourcesConfig(Section):
    """What one trial takes; as many run at once as fit the cluster."""

    workers: Count = Field(1, description="of a trial: its own Ray Train group")
    cpus_per_worker: Positive = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0)] = Field(
        0.0, description="below 1: several small models share a GPU"
    )
    most_at_once: Count | None = Field(None, description="trials; none: as many as fit")
    attempts: Count = Field(3, description="of a trial whose processes die before it has failed")

    @model_validator(mode="after")
    def _whole_gpus_for_groups(self) -> ResourcesConfig:
        if self.workers > 1 and self.gpus_per_worker % 1:
            raise ValueError(
                f"gpus_per_worker {self.gpus_per_worker} needs workers 1: NCCL refuses two ranks "
                f"of a group on one GPU"
            )
        return self


class ConstraintsConfig(Section):
    """What a trial may take; samplers stay away from what takes more, and it can't be the best."""

    memory_bytes: Count | None = Field(
        None, description="of the largest worker; GPU memory on GPUs"
    )
    seconds_per_step: Positive | None = None


class WarmStartConfig(Section):
    """An earlier study whose best points are tried first."""

    storage: str = Field(description="its file or URL, or the folder of its search")
    study: str | None = Field(None, description="its name; none: the storage's only search")
    points: Count = Field(3, description="its best, trained again: other cohorts have other values")
    trials: bool = Field(
        False,
        description="of cmaes: begin where its good trials lie; objective and space must be equal",
    )


class SearchConfig(Section):
    """All settings of a search."""

    study: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] = "pmg"
    base: BaseConfig = BaseConfig()
    store: str | None = Field(None, description="data.store; none: the base's")
    space: dict[str, Parameter] = Field(min_length=1)
    points: tuple[str | dict[str, Any], ...] = Field(
        (), description="tried first: presets, files of settings, or settings by path"
    )
    warm_start: WarmStartConfig | None = None
    objectives: tuple[ObjectiveConfig, ...] = Field(min_length=1)
    validation: ValidationConfig = ValidationConfig()
    sampler: SamplerConfig = SamplerConfig()
    pruner: PrunerConfig = PrunerConfig()
    budget: BudgetConfig = BudgetConfig()
    final: FinalConfig = FinalConfig()
    resources: ResourcesConfig = ResourcesConfig()
    constraints: ConstraintsConfig = ConstraintsConfig()
    storage: str | None = Field(
        None, description="file, sqlite:/// or postgresql:// URL; none: a journal in the folder"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> SearchConfig:
        names = [objective.name for objective in self.objectives]
        if len(set(names)) < len(names):
            raise ValueError(f"objectives {names} must differ")
        for name in names:
            if OBJECTIVES[name].of_truth and self.validation.cases is None:
                raise ValueError(
                    f"objective {name} needs a truth: set validation.cases to a folder of cases"
                )
        if len(names) > 1 and self.sampler.name == "cmaes":
            raise ValueError("sampler cmaes takes one objective; tpe, gp, nsga2, random several")
        if self.warm_start is not None and self.warm_start.trials and self.sampler.name != "cmaes":
            raise ValueError(
                f"warm_start.trials needs sampler cmaes, not {self.sampler.name}; all samplers "
                f"take its best points"
            )
        if self.pruner.grace_steps >= self.budget.steps:
            raise ValueError(
                f"pruner.grace_steps {self.pruner.grace_steps} leaves nothing to end early: "
                f"expected less than budget.steps {self.budget.steps}"
            )
        if self.pruner.name == "pbt" and not changeable(self.space):
            raise ValueError(
                "pruner pbt changes loss weights and learning rates between steps: expected a "
                "float range of loss.* or optim.lr in the space"
            )
        if len(names) > 1 and self.pruner.name in ("median", "hyperband"):
            raise ValueError(
                f"pruner {self.pruner.name} takes one objective; with several choose asha or pbt, "
                f"which go by the first, or none"
            )
        return self

    def config(self) -> Config:
        """The base with what the search decides: store, steps, evaluations, workers.

        Raises ConfigError naming the field.
        """
        base = load_config(self.base.config, self.base.overrides)
        if self.final.points and base.train.seed in self.final.seeds:
            raise ConfigError(
                f"search final.seeds: {base.train.seed} is the seed that trials have; expected "
                f"others"
            )
        held = base.data.validation_fraction or 0.2
        store = self.store or base.data.store
        return self._trained(base, {"store": store, "validation_fraction": held})

    def rival(self, source: str) -> Config:
        """A preset or file as this search trains: on its store, without its held-out patients, for
        as many steps.

        Raises ConfigError naming the field.
        """
        own = self.config().data.model_dump()
        shared = ("store", "validation_fraction", "validation_seed")
        return self._trained(load_config(source), {name: own[name] for name in shared})

    def _trained(self, config: Config, data: dict[str, Any]) -> Config:
        every = self.budget.evaluate_every
        took, succeeded = self.resources, self.pruner.name == "pbt"
        sections: dict[str, dict[str, Any]] = {
            "data": data,
            "train": {
                "steps": self.budget.steps,
                "checkpoint_every": every,
                "log_every": _logged_every(every, config.train.log_every),
                # A successor goes on from the step at which another trial was ended.
                "keep": self.budget.steps // every if succeeded else config.train.keep,
                "checkpoints": None,  # each trial's lie in its own folder
            },
            "launch": {
                "workers": took.workers,
                "min_workers": None,
                "cpus_per_worker": took.cpus_per_worker,
                "gpus_per_worker": took.gpus_per_worker,
            },
        }
        tree = config.model_dump()
        for name, fields in sections.items():
            tree[name] |= fields
        return checked(Config, tree)

    def searched(self) -> Space:
        """The space, checked against the base. Raises ConfigError naming path, value and range."""
        return checked_space(self.space, self.config())

    def to_yaml(self) -> str:
        tree = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return yaml.safe_dump(tree, sort_keys=False)


def _logged_every(every: int, wished: int) -> int:
    """The largest divisor of `every` up to `wished`: configurations ask for one."""
    return next(n for n in range(min(wished, every), 0, -1) if every % n == 0)


def load_search(file: Path) -> SearchConfig:
    """A search from a YAML file; relative paths in it are relative to the working directory.

    Raises ConfigError naming the field, its value and what would be right: also for a space that
    does not fit the base.
    """
    if not file.is_file():
        raise ConfigError(f"search {file}: no such file")
    text = file.read_text(errors="replace", encoding="utf-8")
    search = checked(SearchConfig, parsed(f"search {file}", text))
    search.searched()
    for name in search.final.against:
        search.rival(name)
    return search


def point_values(search: SearchConfig, space: Space, point: str | dict[str, Any]) -> Values:
    """The searched settings of a point to try first.

    Raises ConfigError for settings that are not searched or lie outside of their range; of presets
    and files, which were not written for this space, the nearest values inside are taken.
    """
    if isinstance(point, str):
        return space.nearest(space.of_config(load_config(point)))
    return space.required(point)
