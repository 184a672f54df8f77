"""The tables of an evaluation: one row a quantity over all cases, and one a quantity and case."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pmg.bootstrap import interval
from pmg.evaluate import CaseResult
from pmg.quantity import Amount, Quantity

__all__ = ["CANDIDATES", "CaseRow", "Row", "Value", "per_case", "summarise"]

# Of a row's fields, the candidate's name in it.
CANDIDATES = {"identity": "no translation", "matched": "histogram", "translated": "pmg"}


@dataclass(frozen=True)
class Value:
    """A figure over all cases, with the interval of its uncertainty over subjects if there is one.

    subjects: how many have it.
    """

    value: float
    interval: tuple[float, float] | None = None
    subjects: int = 1


@dataclass(frozen=True)
class Row:
    """One quantity over all cases; None where a candidate doesn't have it.

    note: its definition, and how many things and cases it is over.
    """

    name: str
    unit: str
    identity: Value | None
    matched: Value | None
    translated: Value | None
    truth: Value | None
    note: str = ""


@dataclass(frozen=True)
class CaseRow:
    """One quantity of one case."""

    case: str
    subject: str
    name: str
    unit: str
    identity: float | None
    matched: float | None
    translated: float | None
    truth: float | None
    count: int


def summarise(results: Sequence[CaseResult]) -> list[Row]:
    """A row for every quantity, in the order in which they first come."""
    rows = []
    for quantity in _quantities(results):
        values = {name: _pooled(results, quantity, name) for name in (*CANDIDATES, "truth")}
        if any(values[name] is not None for name in CANDIDATES):
            note = "; ".join(part for part in (quantity.note, _over(results, quantity)) if part)
            rows.append(Row(quantity.name, quantity.unit, **values, note=note))
    return rows


def per_case(results: Sequence[CaseResult]) -> Iterator[CaseRow]:
    """All figures of all cases."""
    for result in results:
        for quantity in _quantities([result]):
            amounts = {
                name: result.measured.get(name, {}).get(quantity) for name in (*CANDIDATES, "truth")
            }
            known = [amount for amount in amounts.values() if amount is not None]
            values = {n: None if a is None else a.value for n, a in amounts.items()}
            yield CaseRow(
                result.name,
                result.subject,
                quantity.name,
                quantity.unit,
                **values,
                count=int(known[0].count),
            )


def _quantities(results: Sequence[CaseResult]) -> list[Quantity]:
    return list(
        dict.fromkeys(q for result in results for one in result.measured.values() for q in one)
    )


def _pooled(results: Sequence[CaseResult], quantity: Quantity, name: str) -> Value | None:
    subjects: dict[str, list[Amount]] = defaultdict(list)
    for result in results:
        amount = result.measured.get(name, {}).get(quantity)
        if amount is not None and amount.count:
            subjects[result.subject].append(amount)
    if not subjects:
        return None
    totals = [sum(one.total for one in amounts) for amounts in subjects.values()]
    counts = [sum(one.count for one in amounts) for amounts in subjects.values()]
    return Value(sum(totals) / sum(counts), interval(totals, counts), len(subjects))


def _over(results: Sequence[CaseResult], quantity: Quantity) -> str:
    """Such as "12 plaques in 4 cases"."""
    having = []
    for result in results:
        found = [one[quantity] for one in result.measured.values() if quantity in one]
        having += [amount.count for amount in found[:1] if amount.count]
    cases = _counted(len(having), "case")
    if not quantity.thing:
        return cases
    return f"{_counted(round(sum(having)), quantity.thing)} in {cases}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
