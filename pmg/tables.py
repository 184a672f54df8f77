"""The figures of an evaluation as text and as files: metrics.* over all cases, cases.* for each."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from pmg.evaluate import CaseResult
from pmg.summary import CANDIDATES, Row, Value, per_case

__all__ = ["console_table", "digits", "number", "shown", "span", "write_tables"]

_WIDE = 130  # characters

Record = Mapping[str, str | float | None]


def write_tables(folder: Path, rows: Sequence[Row], results: Sequence[CaseResult]) -> None:
    """Write metrics.csv and metrics.json, a record a row, and cases.csv and cases.json, a record a
    row and case. What is not known, and what is infinite, is empty or null.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "metrics", [_record(row) for row in rows])
    _write(folder / "cases", [_finite(asdict(row)) for row in per_case(results)])


def console_table(rows: Sequence[Row], width: int) -> Table:
    """The figures; what a row is over only where a terminal of so many characters has room."""
    candidates = shown(rows)
    table = Table()
    for title in ("", "unit", *candidates.values(), "truth"):
        table.add_column(title, no_wrap=title == "")
    wide = width >= _WIDE
    if wide:
        table.add_column("")
    for row in rows:
        values = [getattr(row, name) for name in candidates]
        cells = [f"{number(value)}\n{span(value)}".rstrip() for value in values]
        note = [row.note] if wide else []
        table.add_row(row.name, row.unit, *cells, number(row.truth), *note)
    return table


def shown(rows: Sequence[Row]) -> dict[str, str]:
    """Those of the candidates that any row has, with their titles."""
    return {
        name: title
        for name, title in CANDIDATES.items()
        if any(getattr(row, name) is not None for row in rows)
    }


def number(value: Value | None) -> str:
    """One decimal from 10 on, three significant digits below; nothing for None."""
    return "" if value is None else digits(value.value)


def span(value: Value | None) -> str:
    """The interval, nothing where there is none."""
    if value is None or value.interval is None:
        return ""
    return " to ".join(digits(end) for end in value.interval)


def digits(value: float) -> str:
    """One decimal from 10 on, three significant digits below."""
    if not math.isfinite(value) or abs(value) >= 10 or value == 0:
        return f"{value:.1f}"
    return f"{value:.{2 - math.floor(math.log10(abs(value)))}f}" if abs(value) >= 1e-3 else "0.000"


def _record(row: Row) -> Record:
    record: dict[str, str | float | None] = {"name": row.name, "unit": row.unit}
    subjects = 0
    for name in (*CANDIDATES, "truth"):
        value: Value | None = getattr(row, name)
        record[name] = None if value is None else value.value
        if name != "truth":
            low, high = (value and value.interval) or (None, None)
            record |= {f"{name}_low": low, f"{name}_high": high}
            subjects = max(subjects, value.subjects if value else 0)
    return _finite(record | {"subjects": subjects, "note": row.note})


def _finite(record: Record) -> Record:
    """JSON has no infinity: without error, PSNR is infinite."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }


def _write(path: Path, records: Sequence[Record]) -> None:
    path.with_suffix(".json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(records[0]) if records else [])
        table.writeheader()
        table.writerows(records)
