"""The table of an evaluation: one row a figure, identity beside the translation, over all cases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pmg.evaluate import CaseResult, Measures
from pmg.metrics import PlaqueContrast

__all__ = ["Row", "summarise"]

_LARGE_PLAQUE_MM = 2.0


@dataclass(frozen=True)
class Row:
    """One figure: its unit, the mean over cases for each candidate, and the truth where it has one.

    note: what the figure is over, such as the number of cases.
    """

    name: str
    unit: str
    identity: float
    translated: float
    truth: float | None = None
    note: str = ""


def summarise(results: Sequence[CaseResult]) -> list[Row]:
    """Rows for the cases with truth, then one pair of rows for every region of interest."""
    rows: list[Row] = []
    known = [r for r in results if r.translated is not None and r.identity is not None]
    if known:
        rows += _truth_rows(known)
    for result in results:
        for region in result.regions:
            place = f"{result.name}: {region.region.name}"
            if region.other_hu is not None:
                before, after = region.other_hu
                rows.append(Row(f"{place}, mean", "HU", before, after, note="without its calcium"))
            if region.calcium_hu is not None:
                before, after = region.calcium_hu
                note = f"{region.calcium_mm3:.0f} mm3 of 130 HU or more in the source"
                rows.append(Row(f"{place}, calcium", "HU", before, after, note=note))
    return rows


def _truth_rows(known: Sequence[CaseResult]) -> list[Row]:
    identity = [r.identity for r in known if r.identity is not None]
    translated = [r.translated for r in known if r.translated is not None]
    rows = [
        Row(
            "body MAE",
            "HU",
            _mean(m.body_mae_hu for m in identity),
            _mean(m.body_mae_hu for m in translated),
            note=f"{len(known)} cases",
        )
    ]
    for organ in {name: None for r in known for name in r.truth_organ_hu}:
        having = [i for i, r in enumerate(known) if organ in r.truth_organ_hu]
        truth = [known[i].truth_organ_hu[organ] for i in having]
        reached = [translated[i].organ_hu[organ] for i in having]
        error = _mean(abs(a - b) for a, b in zip(reached, truth, strict=True))
        rows.append(
            Row(
                organ,
                "HU",
                _mean(identity[i].organ_hu[organ] for i in having),
                _mean(reached),
                _mean(truth),
                note=f"off by {error:.0f} HU on average over {len(having)} cases",
            )
        )
    return rows + _plaque_rows(identity, translated)


def _plaque_rows(identity: Sequence[Measures], translated: Sequence[Measures]) -> list[Row]:
    def counted(measures: Sequence[Measures]) -> list[PlaqueContrast]:
        plaques = (p for m in measures for p in m.plaques)
        return [p for p in plaques if p.measurable and p.diameter_mm >= _LARGE_PLAQUE_MM]

    before, after = counted(identity), counted(translated)
    if not after:
        return []
    note = f"{len(after)} plaques of 2 mm or more; kept: at least half the true contrast"
    return [
        Row(
            "plaques kept",
            "%",
            100 * _mean(p.kept for p in before),
            100 * _mean(p.kept for p in after),
            note=note,
        ),
        Row(
            "plaque contrast / true contrast",
            "%",
            100 * _mean(p.candidate_hu / p.true_hu for p in before),
            100 * _mean(p.candidate_hu / p.true_hu for p in after),
            100.0,
        ),
    ]


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
