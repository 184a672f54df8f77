"""The typed tree of a search: defaults, ranges, and errors that name what would be right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pmg.config import Config, ConfigError, explained, load_config
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

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )


class BaseConfig(_Section):
    """The configuration that trials differ from in the searched settings alone."""

    config: str = Field("recommended", description="a preset's name, or a YAML file of settings")
    overrides: tuple[str, ...] = Field((), description="section.field=value, over it")


class ObjectiveConfig(_Section):
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


class ValidationConfig(_Section):
    """What trials are judged on; no trial trains on it."""

    domain: Literal[1, 2] = Field(1, description="of the scans that are translated")
    volumes: Count = Field(
        4, description="held-out scans of the store that are translated, at most"
    )
    cases: Path | None = Field(
        None, description="folder of cases with truth, as pmg evaluate takes it"
    )
    most_cases: Count = Field(4, description="cases that are translated, at most")


class SamplerConfig(_Section):
    """Who proposes the next trial."""

    name: Literal["tpe", "gp", "cmaes", "nsga2", "random"] = "tpe"
    seed: Annotated[int, Field(ge=0)] = 0
    startup_trials: Count = Field(10, description="drawn at random before tpe, gp and cmaes begin")
    population: Count = Field(16, description="of nsga2: trials in a generation")


class PrunerConfig(_Section):
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
    startup_trials: Count = Field(
        4,
        description="of median: trials that are never ended; of pbt: trials that have come to a "
        "step before one is ended there",
    )


class FinalConfig(_Section):
    """Retraining of the chosen points, so that luck is not taken for merit."""

    points: Annotated[int, Field(ge=0)] = Field(2, description="best points (0: none)")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((1, 2), description="of train.seed")
    components: tuple[Count, ...] = Field(
        (), description="K at which the best point is retrained too: the evidence for its advice"
    )


class BudgetConfig(_Section):
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


class ResourcesConfig(_Section):
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


class ConstraintsConfig(_Section):
    """What a trial may take; samplers stay away from what takes more, and it can't be the best."""

    memory_bytes: Count | None = Field(
        None, description="of the largest worker; GPU memory on GPUs"
    )
    seconds_per_step: Positive | None = None


class WarmStartConfig(_Section):
    """An earlier study whose best points are tried first."""

    storage: str = Field(description="its file or URL, or the folder of its search")
    study: str | None = Field(None, description="its name; none: the storage's only search")
    points: Count = 3


class SearchConfig(_Section):
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
        given = {} if self.store is None else {"data": {"store": self.store}}
        base = load_config(self.base.config, self.base.overrides, **given)
        held = base.data.validation_fraction or 0.2
        every = self.budget.evaluate_every
        took = self.resources
        sections: dict[str, dict[str, Any]] = {
            "data": {"validation_fraction": held},
            "train": {
                "steps": self.budget.steps,
                "checkpoint_every": every,
                "log_every": _logged_every(every, base.train.log_every),
                # A successor goes on from the step at which another trial was ended.
                "keep": self.budget.steps // every
                if self.pruner.name == "pbt"
                else base.train.keep,
                "checkpoints": None,  # each trial's lie in its own folder
            },
            "launch": {
                "workers": took.workers,
                "min_workers": None,
                "cpus_per_worker": took.cpus_per_worker,
                "gpus_per_worker": took.gpus_per_worker,
            },
        }
        tree = base.model_dump()
        for name, fields in sections.items():
            tree[name] |= fields
        try:
            return Config.model_validate(tree)
        except ValidationError as error:
            raise ConfigError(explained(error)) from None

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
    try:
        tree = yaml.safe_load(file.read_text(errors="replace")) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"search {file}: not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"search {file}: expected settings by name, got {type(tree).__name__}")
    try:
        search = SearchConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explained(error, SearchConfig)) from None
    search.searched()
    return search


def point_values(search: SearchConfig, space: Space, point: str | dict[str, Any]) -> Values:
    """The searched settings of a point to try first.

    Raises ConfigError for settings that are not searched or lie outside of their range; of presets
    and files, which were not written for this space, the nearest values inside are taken.
    """
    if isinstance(point, str):
        return space.nearest(space.of_config(load_config(point)))
    return space.required(point)
