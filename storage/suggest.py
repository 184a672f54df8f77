"""Suggested labels: domain and phase of series by what they show, for the user to check."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from storage.blood import BloodPool, blood_pool
from storage.series import Source, read_source

__all__ = ["COLUMNS", "Evidence", "Suggestion", "examine", "suggest", "table", "write_labels"]

# Unenhanced blood has 30 to 65 HU, and no tissue that lies like a vessel has more than 70; in the
# portal venous phase it has 100 and more, five minutes later still about 90.
_NATIVE_BELOW_HU = 75.0
_ENHANCED_ABOVE_HU = 90.0
_ARTERIAL_ABOVE_HU = 220.0  # the aorta has 290 to 360 HU after 35 s, about 150 after 70 s
_ARTERIAL_BEFORE_S, _PORTAL_BEFORE_S = 50.0, 100.0
_SAME_VISIT_S = 1800.0

_AGENT = """
    ContrastBolusAgent ContrastBolusAgentSequence ContrastBolusVolume ContrastBolusTotalDose
    ContrastFlowRate ContrastBolusIngredient ContrastBolusRoute
"""
_NO_AGENT = re.compile(r"(?i)(no|none|n/?a|0+(\.0*)?|without.*|(no|non)[- _]?contrast.*)")
_DESCRIPTIONS = ("SeriesDescription", "ProtocolName", "StudyDescription")
_NATIVE_WORDS = re.compile(
    r"(?i)un-?enh|non[- _]?(contrast|enh)|without|nativ|plain|\bw/?o\b|\bohne\b|\bsans\b"
)
_ENHANCED_WORDS = re.compile(
    r"(?i)(?<!un)(?<!un-)(?<!non)(?<!non[- _])enhan|portal|venous|arterial|angio|delayed|nephrogr"
    r"|\bcta\b|\bpost[- ]?contrast|\bwith (iv )?contrast|\bw/ |\bc\+|\bce\b|\bkm\b"
)
_PHASE_WORDS = {
    "portal venous": r"(?i)portal|venous",
    "arterial": r"(?i)arterial|angio|\bcta\b",
    "delayed": r"(?i)delayed|nephrogr",
}


@dataclass(frozen=True)
class Evidence:
    """What is known of one series' contrast phase. It names patients, as the user's files do.

    series, study: instance UIDs, "" for a NIfTI file. agent: the header's words on contrast agent,
    "" if there are none; given: whether they say that it went into a vein, None where they say
    nothing. acquired: when; delay_s: since the injection began.
    descriptions: by keyword.
    """

    path: Path
    series: str
    study: str
    agent: str
    given: bool | None
    acquired: datetime | None
    delay_s: float | None
    blood: BloodPool | None
    descriptions: dict[str, str]

    @property
    def blood_says(self) -> int | None:
        """The domain by blood's HU alone: 1 without, 2 with contrast agent."""
        if self.blood is None or _NATIVE_BELOW_HU <= self.blood.hu <= _ENHANCED_ABOVE_HU:
            return None
        return 1 if self.blood.hu < _NATIVE_BELOW_HU else 2


@dataclass(frozen=True)
class Suggestion:
    """A series' label, None where nothing tells it, and what speaks for and against it.

    order: the series' place within its study by time.
    """

    evidence: Evidence
    domain: int | None
    phase: str
    order: str
    contradictions: tuple[str, ...]


def examine(source: Source) -> Evidence:
    """Read a series and measure its blood. Raises what `read_source` raises."""
    volume, headers = read_source(source)
    header = headers[0] if headers else Dataset()
    agent, given = _agent(header)
    acquired = _moment(header, "Acquisition")
    started = _moment(header, "ContrastBolusStart", date_of="Acquisition")
    delay_s = (acquired - started).total_seconds() if acquired and started else None
    folders = {file.parent for file in source.files}
    one_file = len(source.files) == 1
    return Evidence(
        path=source.files[0] if one_file else Path(os.path.commonpath(folders)),
        series=source.key if source.kind == "dicom" else "",
        study=_text(header, "StudyInstanceUID"),
        agent=agent,
        given=given,
        acquired=acquired,
        delay_s=delay_s if delay_s is not None and 0 <= delay_s <= _SAME_VISIT_S else None,
        blood=blood_pool(volume),
        descriptions={key: text for key in _DESCRIPTIONS if (text := _text(header, key))},
    )


def suggest(found: Sequence[Evidence]) -> list[Suggestion]:
    """A label for every series, in the same order: by blood, or else by the contrast agent.

    Descriptions never decide the domain; where they, the agent or the order of the study's series
    disagree with what does, that is a contradiction.
    """
    studies: dict[str, list[Evidence]] = defaultdict(list)
    for one in found:
        if one.study and one.acquired:
            studies[one.study].append(one)
    for some in studies.values():
        some.sort(key=lambda one: one.acquired or datetime.min)
    return [_suggestion(one, studies.get(one.study, [])) for one in found]


def _suggestion(one: Evidence, study: Sequence[Evidence]) -> Suggestion:
    domain = one.blood_says or (None if one.given is None else 1 + one.given)
    return Suggestion(
        evidence=one,
        domain=domain,
        phase=_phase(one, domain),
        order=_order(one, study),
        contradictions=tuple(_contradictions(one, domain, study)),
    )


def _phase(one: Evidence, domain: int | None) -> str:
    if domain is None:
        return ""
    if domain == 1:
        return "non_contrast"
    if one.delay_s is not None:
        early = one.delay_s < _ARTERIAL_BEFORE_S
        late = one.delay_s >= _PORTAL_BEFORE_S
        return "arterial" if early else "delayed" if late else "portal venous"
    if one.blood is not None and one.blood.hu > _ARTERIAL_ABOVE_HU:
        return "arterial"
    words = " ".join(one.descriptions.values())
    named = [phase for phase, pattern in _PHASE_WORDS.items() if re.search(pattern, words)]
    return named[0] if len(named) == 1 else "contrast"


def _order(one: Evidence, study: Sequence[Evidence]) -> str:
    if one.acquired is None or one not in study:
        return ""
    place = f"{study.index(one) + 1} of {len(study)}"
    first = study[0].acquired
    assert first is not None
    after = (one.acquired - first).total_seconds()
    return f"{place}, {after:.0f} s after the first" if after else place


def _contradictions(one: Evidence, domain: int | None, study: Sequence[Evidence]) -> list[str]:
    blood = "" if one.blood is None else f"blood has {one.blood.hu:.0f} HU"
    found = []
    if one.blood is not None and one.blood_says is None:
        found.append(f"{blood}, between without and with contrast agent")
    if one.given is not None and one.blood_says not in (None, 1 + one.given):
        found.append(f"contrast agent is {one.agent!r}, but {blood}")
    for keyword, text in one.descriptions.items():
        native, enhanced = _NATIVE_WORDS.search(text), _ENHANCED_WORDS.search(text)
        said = native or enhanced
        if domain and said and bool(native) != bool(enhanced) and (domain == 1) != bool(native):
            ground = blood if one.blood_says else f"contrast agent is {one.agent!r}"
            found.append(f"{keyword} says {said[0]!r}, but {ground}")
    for other in study:
        if domain == 1 and other.blood_says == 2 and one.acquired and other.acquired:
            after = (one.acquired - other.acquired).total_seconds()
            if 0 < after <= _SAME_VISIT_S:
                found.append(f"acquired {after:.0f} s after an enhanced series of its study")
                break
    return found


COLUMNS = (
    "path",
    "domain",
    "phase",
    "series",
    "contrast_agent",
    "order_in_study",
    "blood_hu",
    "descriptions",
    "contradictions",
)


def table(suggestions: Sequence[Suggestion], base: Path) -> list[tuple[str, ...]]:
    """A row of `COLUMNS` per series, paths relative to `base`."""
    return [_row(one, base) for one in suggestions]


def write_labels(suggestions: Sequence[Suggestion], path: Path) -> None:
    """A manifest for `pmg ingest --manifest`, with the evidence in further columns.

    Where nothing tells the domain it stays empty, and the ingest asks for it. Raises
    FileExistsError if there is a file, for the user may have edited it.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows([_no_formula(cell) for cell in row] for row in table(suggestions, path.parent))
    with path.open("x", newline="", encoding="utf-8") as file:
        file.write(text.getvalue())


def _row(one: Suggestion, base: Path) -> tuple[str, ...]:
    evidence, blood = one.evidence, one.evidence.blood
    return (
        os.path.relpath(evidence.path, base),
        str(one.domain or ""),
        one.phase,
        evidence.series,
        evidence.agent,
        one.order,
        "" if blood is None else f"{blood.hu:.0f} ({blood.low_hu:.0f} to {blood.high_hu:.0f})",
        "; ".join(f"{keyword}: {text}" for keyword, text in evidence.descriptions.items()),
        "; ".join(one.contradictions),
    )


def _no_formula(cell: str) -> str:
    """Spreadsheets run what begins like a formula, and headers come from strangers."""
    return f"'{cell}" if cell[:1] in "=+-@\t\r" and cell else cell


def _agent(header: Dataset) -> tuple[str, bool | None]:
    """The header's words on contrast agent, and whether they say that it was given into a vein."""
    found = {key: text for key in _AGENT.split() if (text := _text(header, key))}
    if not found:
        return "", None
    shown = ", ".join(found.values())
    route = found.pop("ContrastBolusRoute", "")
    if "ORAL" in route.upper() or not found:
        return shown, None
    return shown, not all(_NO_AGENT.fullmatch(text) for text in found.values())


def _text(header: Dataset, keyword: str) -> str:
    """The element's value in one line; of a sequence, its items' meanings."""
    value: Any = header.get(keyword)
    if value is None or value == "":
        return ""
    if header[keyword].VR == "SQ":
        return ", ".join(_text(item, "CodeMeaning") or "unnamed" for item in value)
    return " ".join(str(value).split())


def _moment(header: Dataset, prefix: str, date_of: str | None = None) -> datetime | None:
    """PREFIXDateTime, or PREFIXDate and PREFIXTime; None where they are missing or malformed."""
    stated = _text(header, f"{prefix}DateTime")
    if not stated:
        date, time = _text(header, f"{date_of or prefix}Date"), _text(header, f"{prefix}Time")
        stated = (date or "19000101") + time if time else ""
    match = re.match(r"\d{12}(\d{2})?", stated)  # to the minute at least
    if match is None:
        return None
    try:
        return datetime.strptime(match[0].ljust(14, "0"), "%Y%m%d%H%M%S")
    except ValueError:
        return None
