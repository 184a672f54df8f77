"""What evaluation measures: a quantity's name and unit, and how much of it one case has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Amount", "Measured", "Quantity"]


@dataclass(frozen=True)
class Quantity:
    """One row of the table.

    note: how it is defined, with the thresholds. thing: what it is a share or mean over, such as
    plaque; empty for a quantity of the case itself. of_truth: the truth has a value of its own, to
    be shown beside the candidates'.
    """

    name: str
    unit: str
    note: str = ""
    thing: str = ""
    of_truth: bool = False


@dataclass(frozen=True)
class Amount:
    """A quantity in one case: `total` over `count` things; one for a quantity of the case itself.

    Over cases, totals and counts are summed, so that every plaque counts once.
    """

    total: float
    count: float = 1.0

    @property
    def value(self) -> float | None:
        """None where there was nothing to count."""
        return self.total / self.count if self.count else None


Measured = Mapping[Quantity, Amount]
