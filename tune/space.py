"""The space of a search: settings of a run's configuration by their path, and when they apply."""

from __future__ import annotations

import difflib
import json
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pmg.config import Config, ConfigError, checked

__all__ = [
    "Condition",
    "Parameter",
    "Space",
    "Suggests",
    "Values",
    "changeable",
    "checked_space",
    "with_values",
]

Values = dict[str, Any]

_INNER = 0.381966  # of a range: no round number, so that a range of floats shows for an integer

# What the search itself decides, or what would make trials incomparable.
_NOT_SEARCHED = {
    "data.store": "trials share one store",
    "data.spacing_mm": "it is the store's",
    "data.validation_fraction": "trials are judged on the same patients",
    "data.validation_seed": "trials are judged on the same patients",
    "train.steps": "budget.steps says it",
    "train.checkpoint_every": "budget.evaluate_every says it",
    "train.log_every": "it changes no result",
    "train.keep": "it changes no result",
    "train.seed": "final.seeds retrain with others",
}
_NOT_SEARCHED_SECTIONS = {
    "launch": "resources says it",
    "track": "it changes no result",
    "translate": "it changes no training",
}

# What may differ between two steps of one training, if it is a range of floats.
_CHANGEABLE_SECTION, _CHANGEABLE = "loss.", ("optim.lr", "optim.lr_discriminator")

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


class Suggests(Protocol):
    """The part of an Optuna trial that a space needs."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...
    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...
    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


class Parameter(BaseModel):
    """One searched setting: `int: [low, high]`, `float: [low, high]` or `choice: [...]`.

    log: drawn evenly in the logarithm. if: a condition such as `prior.components > 1`; where it
    does not hold the setting stays the base's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    integer: tuple[int, int] | None = Field(None, alias="int")
    real: tuple[float, float] | None = Field(None, alias="float")
    choice: tuple[Any, ...] | None = None
    log: bool = False
    condition: str | None = Field(None, alias="if")

    @model_validator(mode="after")
    def _is_one_kind(self) -> Parameter:
        given = [kind for kind in (self.integer, self.real, self.choice) if kind is not None]
        if len(given) != 1:
            raise ValueError("expected one of int: [low, high], float: [low, high], choice: [...]")
        if self.choice is not None:
            if len(self.choice) < 2:
                raise ValueError(f"choice {list(self.choice)}: expected two or more")
            if self.log:
                raise ValueError("log goes with int and float, not with choice")
            return self
        low, high = self.range
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"range [{low:g}, {high:g}]: expected finite numbers")
        if low >= high:
            raise ValueError(
                f"range [{low:g}, {high:g}] is empty: expected the lower end first, then a higher"
            )
        if self.log and low <= 0:
            raise ValueError(
                f"range [{low:g}, {high:g}] with log: expected a lower end above 0, such as "
                f"{max(high, 0) / 1e3 or 1:g}"
            )
        return self

    @property
    def range(self) -> tuple[float, float]:
        found = self.integer or self.real
        assert found is not None
        return found

    def probes(self) -> list[Any]:
        """All choices, or both ends and a value between."""
        if self.choice is not None:
            return list(self.choice)
        low, high = self.range
        inner = low + _INNER * (high - low)
        return [low, high, round(inner) if self.integer else inner]

    def suggest(self, trial: Suggests, path: str) -> Any:
        if self.choice is not None:
            return _decoded(trial.suggest_categorical(path, [_encoded(c) for c in self.choice]))
        if self.integer is not None:
            return trial.suggest_int(path, *self.integer, log=self.log)
        return trial.suggest_float(path, *self.range, log=self.log)

    def is_drawn_by(self, distribution: Any) -> bool:
        """Whether a study drew from this range or these choices, by what it says of itself."""
        if self.choice is not None:
            choices = getattr(distribution, "choices", None)
            return choices == tuple(_encoded(one) for one in self.choice)
        known = [getattr(distribution, name, None) for name in ("low", "high", "log")]
        return known == [*self.range, self.log]

    def drawn(self, share: float) -> float:
        """The value that lies so far between the ends, in the logarithm if it is drawn there."""
        low, high = self.range
        if self.log:
            return float(self.nearest(low * (high / low) ** share))
        return low + share * (high - low)

    def nearest(self, value: Any) -> Any:
        """The value inside that lies nearest; None if no choice equals it."""
        if self.choice is not None:
            same = [one for one in self.choice if _encoded(one) == _encoded(value)]
            return same[0] if same else None
        low, high = self.range
        return min(max(value, low), high)

    def holds(self, value: Any) -> bool:
        """Whether the value is one that this parameter can take."""
        if self.choice is None and (isinstance(value, bool) or not isinstance(value, int | float)):
            return False
        if self.integer is not None and value != int(value):
            return False
        near = self.nearest(value)
        return near is not None and _encoded(near) == _encoded(value)


@dataclass(frozen=True)
class Condition:
    """`path operator value`, over settings that stand earlier in the space or in the base."""

    path: str
    operator: str
    value: Any

    @classmethod
    def parse(cls, text: str, owner: str) -> Condition:
        match = re.fullmatch(r"\s*([\w.]+)\s*(==|!=|>=|<=|>|<)\s*(.+?)\s*", text)
        if match is None:
            raise ConfigError(
                f"search space.{owner}.if: {text!r}; expected a setting, an operator and a value, "
                f"such as prior.components > 1"
            )
        path, sign, value = match.groups()
        return cls(path, sign, yaml.safe_load(value))

    def holds(self, values: Mapping[str, Any]) -> bool:
        try:
            return _OPERATORS[self.operator](values[self.path], self.value)
        except TypeError:
            return False

    def __str__(self) -> str:
        return f"{self.path} {self.operator} {self.value}"


@dataclass(frozen=True)
class Space:
    """Parameters in the order in which they are drawn, over a base configuration."""

    parameters: Mapping[str, Parameter]
    conditions: Mapping[str, Condition]
    base: Config

    @property
    def changeable(self) -> tuple[str, ...]:
        """The loss weights and learning rates: a training may go on with others."""
        return changeable(self.parameters)

    def suggest(self, trial: Suggests) -> Values:
        """Draw the settings that apply, from an Optuna trial or what looks like one."""
        known = settings(self.base)
        values: Values = {}
        for path in self._applying(known):
            known[path] = values[path] = self.parameters[path].suggest(trial, path)
        return values

    def of_config(self, config: Config) -> Values:
        """The searched settings of a configuration, those that apply."""
        known = settings(config)
        return {path: known[path] for path in self._applying(known)}

    def nearest(self, values: Values) -> Values:
        """Each value moved into its range; choices that are none of the given are left out."""
        found = {path: self.parameters[path].nearest(value) for path, value in values.items()}
        return {path: value for path, value in found.items() if value is not None}

    def required(self, values: Mapping[str, Any]) -> Values:
        """Values as given. Raises ConfigError for one that is not searched or out of its range."""
        for path, value in values.items():
            if path not in self.parameters:
                raise ConfigError(f"search point {path}: not in the space; {near(path, self)}")
            number = _number(value)
            if not self.parameters[path].holds(number):
                parameter = self.parameters[path]
                allowed = parameter.choice or parameter.range
                raise ConfigError(
                    f"search point {path}: {value!r} is not in the space's {list(allowed)}"
                )
        return {path: _number(value) for path, value in values.items()}

    def fixed(self, values: Mapping[str, Any]) -> Values:
        """Values as Optuna's trials hold them."""
        return {
            path: _encoded(value) if self.parameters[path].choice is not None else value
            for path, value in values.items()
        }

    def decoded(self, parameters: Mapping[str, Any]) -> Values:
        """The settings of an Optuna trial's parameters."""
        return {
            path: _decoded(value) if self.parameters[path].choice is not None else value
            for path, value in parameters.items()
            if path in self.parameters
        }

    def _applying(self, known: Mapping[str, Any]) -> Iterator[str]:
        """Paths in order; what a condition asks for is looked up when its turn comes."""
        for path in self.parameters:
            condition = self.conditions.get(path)
            if condition is None or condition.holds(known):
                yield path


def changeable(parameters: Mapping[str, Parameter]) -> tuple[str, ...]:
    """Those of a space that a training may go on with others of."""
    return tuple(
        path
        for path, parameter in parameters.items()
        if parameter.real is not None
        and (path.startswith(_CHANGEABLE_SECTION) or path in _CHANGEABLE)
    )


def settings(config: Config) -> Values:
    """Every setting by its path."""
    return {
        f"{section}.{field}": value
        for section, fields in config.model_dump(mode="json").items()
        for field, value in fields.items()
    }


def with_values(base: Config, values: Mapping[str, Any]) -> Config:
    """The base with some settings changed. Raises ConfigError naming what does not fit."""
    tree = base.model_dump()
    for path, value in values.items():
        section, _, field = path.partition(".")
        tree[section][field] = value
    return checked(Config, tree)


def near(path: str, known: Space | Mapping[str, Any]) -> str:
    """Such as "did you mean prior.components?"."""
    names = list(known.parameters if isinstance(known, Space) else known)
    close = difflib.get_close_matches(path, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"


def checked_space(parameters: Mapping[str, Parameter], base: Config) -> Space:
    """The space, if every parameter is a setting and its whole range is what that setting allows.

    Each range's ends and a value between are tried in a configuration, with the condition met.
    Raises ConfigError naming the path, the value and what would be right.
    """
    known = settings(base)
    conditions: dict[str, Condition] = {}
    for number, (path, parameter) in enumerate(parameters.items()):
        if path not in known:
            raise ConfigError(f"search space.{path}: no such setting; {near(path, known)}")
        reason = _NOT_SEARCHED.get(path) or _NOT_SEARCHED_SECTIONS.get(path.partition(".")[0])
        if reason:
            raise ConfigError(f"search space.{path}: can't be searched: {reason}")
        if parameter.condition is not None:
            condition = Condition.parse(parameter.condition, path)
            if condition.path not in known:
                raise ConfigError(
                    f"search space.{path}.if: {condition.path}: no such setting; "
                    f"{near(condition.path, known)}"
                )
            if condition.path in list(parameters)[number:]:
                raise ConfigError(
                    f"search space.{path}.if: {condition.path} must stand before {path}"
                )
            conditions[path] = condition
    space = Space(dict(parameters), conditions, base)
    for path in parameters:
        _try(space, path)
    return space


def _try(space: Space, path: str) -> None:
    known = settings(space.base)
    condition = space.conditions.get(path)
    meetings: list[Values] = [{}]
    if condition is not None:
        source = space.parameters.get(condition.path)
        candidates = [known[condition.path]] if source is None else source.probes()
        met = [one for one in candidates if condition.holds({condition.path: one})]
        if not met:
            raise ConfigError(
                f"search space.{path}.if: {condition} never holds; "
                f"{condition.path} is {candidates if source else candidates[0]}"
            )
        meetings = [{condition.path: value} for value in met]
    for value in space.parameters[path].probes():
        refusals = [_refusal(space, meeting | {path: value}) for meeting in meetings]
        if all(refusals):
            raise ConfigError(f"search space.{path}: {value!r} does not fit: {refusals[0]}")


def _refusal(space: Space, values: Values) -> str | None:
    """Why these settings do not fit the base and one another; None if they do."""
    try:
        with_values(space.base, values)
    except ConfigError as error:
        return str(error)
    return None


def _encoded(value: Any) -> Any:
    """As a choice of Optuna, which takes numbers, truth values and text alone."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return json.dumps(value)


def _decoded(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) and value[:1] in "[{" else value


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
