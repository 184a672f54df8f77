"""Advice on the number of components: which K the data support, and which they can't tell apart."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

__all__ = ["Advice", "ComponentsRow", "Observed", "advise"]

_LEVEL = 0.05
_FEWEST = 5  # values of a K before it is compared: of fewer, no rank test of several K can be sure


@dataclass(frozen=True)
class Observed:
    """One training: its K, its objective, the effective number of components at its end."""

    components: int
    value: float
    effective: float | None = None


@dataclass(frozen=True)
class ComponentsRow:
    """All trainings of one K. best: whether the data can't tell it from the best K."""

    components: int
    values: tuple[float, ...]
    effective: float | None
    best: bool

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True)
class Advice:
    """components: the smallest K that the data can't tell from the best; None if they are silent.

    same: the K that can't be told apart from it; silent: those with too few trainings to say.
    """

    components: int | None
    same: tuple[int, ...]
    silent: tuple[int, ...]
    rows: tuple[ComponentsRow, ...]
    text: str


def advise(observed: Sequence[Observed], *, minimize: bool = True) -> Advice:
    """Compare every K with the one of the best median.

    By the two-sided Mann-Whitney test with Holm's correction over all pairs with that K, at 5 %;
    of those that it can't tell apart the smallest is advised. The test needs no normal values, but
    five of each K: K with fewer trainings are not compared.
    """
    by_k: dict[int, list[Observed]] = defaultdict(list)
    for one in observed:
        by_k[one.components].append(one)
    values = {k: [one.value for one in by_k[k]] for k in sorted(by_k)}
    compared = [k for k in values if len(values[k]) >= _FEWEST]
    silent = tuple(k for k in values if k not in compared)
    best = None
    if len(compared) > 1:
        best = (min if minimize else max)(compared, key=lambda k: statistics.median(values[k]))
    same = _not_worse(values, compared, best)
    rows = tuple(ComponentsRow(k, tuple(values[k]), _effective(by_k[k]), k in same) for k in values)
    advised = min(same) if same else None
    text = _text(advised, same, silent, values)
    return Advice(advised, tuple(sorted(same)), silent, rows, text)


def _not_worse(
    values: Mapping[int, list[float]], compared: Sequence[int], best: int | None
) -> set[int]:
    """The K that Holm's procedure does not tell from the best."""
    if best is None:
        return set()
    others = [k for k in compared if k != best]
    p_values = {
        k: float(stats.mannwhitneyu(values[k], values[best], alternative="two-sided").pvalue)
        for k in others
    }
    told: set[int] = set()
    for rank, k in enumerate(sorted(others, key=lambda k: p_values[k])):
        if p_values[k] * (len(others) - rank) > _LEVEL:
            break
        told.add(k)
    return {best, *others} - told


def _effective(trainings: Sequence[Observed]) -> float | None:
    known = [one.effective for one in trainings if one.effective is not None]
    return statistics.median(known) if known else None


def _text(
    advised: int | None,
    same: set[int],
    silent: Sequence[int],
    values: Mapping[int, list[float]],
) -> str:
    parts = []
    if advised is None:
        parts.append("No two numbers of components have enough trainings to compare")
    else:
        rest = sorted(same - {advised})
        worse = sorted(k for k in values if k not in same and k not in silent)
        parts.append(f"Take {advised} components")
        if rest:
            parts.append(f"{_listed([advised, *rest])} do not differ, and it is the smallest")
        if worse:
            parts.append(f"{_listed(worse)} {'is' if len(worse) == 1 else 'are'} worse")
    if silent:
        parts.append(
            f"{_listed(sorted(silent))} had fewer than {_FEWEST} trainings: nothing is known"
        )
    return "; ".join(parts) + "."


def _listed(numbers: Sequence[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}" if first else last
