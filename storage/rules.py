"""Label rules: domain and phase of a series from its DICOM header, as a file of the user says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

import yaml
from pydicom.datadict import keyword_dict
from pydicom.dataset import Dataset

from storage.bounds import reading
from storage.dicom_file import read_file
from storage.errors import IngestError
from storage.manifest import domain_of, phase_of
from storage.series import Source

__all__ = ["Condition", "Header", "Rule", "Rules", "label_source", "read_rules"]

_TESTS = ("equals", "matches", "at_least", "at_most")
_LONGEST = 1024  # characters that a pattern is tried on; descriptions have 64


class Header(Protocol):
    """What a rule asks of a header; pydicom's Dataset and a plain dict of keywords have it."""

    def get(self, key: str, /) -> Any: ...


@dataclass(frozen=True)
class Condition:
    """One header element and what it must be; every test that is given must hold.

    present: False demands that the element is missing or empty, all else that it is there.
    equals: one of the element's values, or all of them joined by a backslash. matches: a regular
    expression, found anywhere in the joined values. at_least, at_most: bounds of every value.
    A sequence counts as the code meanings of its items.
    """

    keyword: str
    present: bool = True
    equals: str | None = None
    matches: re.Pattern[str] | None = None
    at_least: float | None = None
    at_most: float | None = None

    def objection(self, header: Header) -> str | None:
        """Why it does not hold, in words that quote the header; None if it holds."""
        values = _values(header.get(self.keyword))
        text = "\\".join(values)
        if not self.present:
            return f"{self.keyword} is {text!r}, not absent" if values else None
        if not values:
            return f"{self.keyword} is missing or empty"
        if self.equals is not None and self.equals not in (*values, text):
            return f"{self.keyword} is {text!r}, not {self.equals!r}"
        if self.matches is not None and not self.matches.search(text[:_LONGEST]):
            return f"{self.keyword} is {text!r}, without {self.matches.pattern!r}"
        if self.at_least is None and self.at_most is None:
            return None
        low = float("-inf") if self.at_least is None else self.at_least
        high = float("inf") if self.at_most is None else self.at_most
        try:
            within = all(low <= float(value) <= high for value in values)
        except ValueError:
            within = False
        return None if within else f"{self.keyword} is {text!r}, not from {low:g} to {high:g}"


@dataclass(frozen=True)
class Rule:
    """The label of a series for which all conditions hold."""

    domain: int
    phase: str
    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class Rules:
    """Rules in the order in which they are tried. name: their file's, for messages."""

    name: str
    rules: tuple[Rule, ...]

    def label(self, header: Header) -> tuple[int, str]:
        """Domain and phase by the first rule that holds.

        header: gives an element's value by its keyword, None where it is missing. Raises
        IngestError saying for every rule what did not hold; it quotes the header.
        """
        objections = []
        for number, rule in enumerate(self.rules, start=1):
            failed = next((why for c in rule.conditions if (why := c.objection(header))), None)
            if failed is None:
                return rule.domain, rule.phase
            objections.append(f"rule {number}: {failed}")
        raise IngestError(
            f"no rule of {self.name} gives it a domain ({'; '.join(objections)}); add a rule, or "
            "name the series in a manifest"
        )


def label_source(source: Source, rules: Rules) -> tuple[int, str]:
    """Domain and phase of a series by its first file's header.

    Raises IngestError, naming the series' place, where no rule holds or there is no header.
    """
    path = source.files[0]
    if source.kind != "dicom":
        raise IngestError(
            f"{path}: rules look at DICOM headers, which a {source.kind} file has not; name it in "
            "a manifest"
        )
    with reading(path):
        try:
            return rules.label(read_file(path).header)
        except IngestError as error:
            raise IngestError(f"{path.parent}: {error}") from error
        except Exception as error:  # pydicom 3.0 raises eight classes and more on malformed files
            raise IngestError(f"{path}: not a readable DICOM file: {error!r}") from error


def read_rules(path: Path) -> Rules:
    """Rules from a YAML file: a list of `domain`, `phase` and `when`.

    `when` maps DICOM keywords to `present`, `absent`, a value that they equal, or a mapping of
    tests (equals, matches, at_least, at_most); see docs/labels.md. Raises IngestError naming the
    rule and the field, also for a rule that asks for nothing but StudyDescription: it is copied
    from the order, and exports carry "UnEnhan" on enhanced series.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise IngestError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(content, list) or not content:
        raise IngestError(f"{path}: holds {_kind(content)}; expected a list of rules")
    rules = [_rule(one, f"{path}, rule {number}: ") for number, one in enumerate(content, start=1)]
    return Rules(path.name, tuple(rules))


def _rule(content: Any, where: str) -> Rule:
    fields = _mapping(content, where, ("domain", "phase", "when"))
    for name in ("domain", "when"):
        if name not in fields:
            raise IngestError(f"{where}{name} is missing; expected domain, phase and when")
    when = fields["when"]
    if not isinstance(when, dict) or not when:
        raise IngestError(f"{where}when is {_kind(when)}; expected DICOM keywords with tests")
    conditions = tuple(_condition(keyword, test, where) for keyword, test in when.items())
    if {condition.keyword for condition in conditions} == {"StudyDescription"}:
        raise IngestError(
            f"{where}asks for StudyDescription alone, which tells what was ordered for the whole "
            "study: exports say 'UnEnhan' on enhanced series; add a condition on the series, such "
            "as ContrastBolusAgent or SeriesDescription"
        )
    return Rule(
        domain_of(fields["domain"], where), phase_of(fields.get("phase"), where), conditions
    )


def _condition(keyword: Any, test: Any, where: str) -> Condition:
    if keyword not in keyword_dict:
        near = get_close_matches(str(keyword), keyword_dict, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise IngestError(f"{where}when.{keyword}: no DICOM keyword{hint}")
    if test in ("present", "absent"):
        return Condition(keyword, present=test == "present")
    place = f"{where}when.{keyword}"
    if isinstance(test, str | int | float) and not isinstance(test, bool):
        return Condition(keyword, equals=str(test))
    tests = _mapping(test, f"{place}: ", _TESTS)
    if not tests:
        raise IngestError(f"{place}: no test; expected one of {', '.join(_TESTS)}")
    equals = tests.get("equals")
    return Condition(
        keyword,
        equals=None if equals is None else str(equals),
        matches=_pattern(tests.get("matches"), place),
        at_least=_bound(tests.get("at_least"), f"{place}.at_least"),
        at_most=_bound(tests.get("at_most"), f"{place}.at_most"),
    )


def _pattern(value: Any, place: str) -> re.Pattern[str] | None:
    if value is None:
        return None
    try:
        return re.compile(str(value))
    except re.error as error:
        raise IngestError(
            f"{place}.matches is {value!r}: no regular expression ({error})"
        ) from error


def _bound(value: Any, place: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise IngestError(f"{place} is {value!r}; expected a number")
    return float(value)


def _mapping(content: Any, where: str, known: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(content, dict):
        raise IngestError(f"{where}is {_kind(content)}; expected a mapping of {', '.join(known)}")
    for name in content:
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise IngestError(f"{where}{name}: unknown field; {hint}")
    return content


def _kind(content: Any) -> str:
    return "nothing" if content is None else repr(content)[:80]


def _values(value: Any) -> list[str]:
    """The element's values as text; none if it is missing or empty."""
    if value is None or value == "":
        return []
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        several: Sequence[Any] = [value]
    else:
        several = value
    texts = [
        str(one.get("CodeMeaning") or "unnamed item") if isinstance(one, Dataset) else str(one)
        for one in several
    ]
    return [text.strip() for text in texts if text.strip()]
