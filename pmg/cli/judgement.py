"""The downstream judgement as `pmg downstream` runs it: read, train, segment, compare, show."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from pmg.arrays import Spacing
from pmg.cases import Case, find_cases
from pmg.downstream import Compared, Scores, compare, on_spacing, read_classes, score
from pmg.segmentation import Labelled, SegmentationSettings, segment, train_segmentation
from pmg.tables import digits
from pmg.translate import VolumeTranslator
from storage.errors import IngestError
from storage.grid import canonical
from storage.series import find_sources, read_source
from storage.volume import Volume

__all__ = ["judge"]


def judge(
    labelled: Path, cases: Path, model: Path, out: Path, *, steps: int, seed: int, device: str
) -> list[Compared]:
    """Train on `labelled`, apply to `cases` and their translations; print and write the table.

    Raises CaseError for a case without labels, IngestError for one without exactly one series.
    """
    console = Console()
    translator = VolumeTranslator.open(model, 1, device)
    spacing_mm = translator.spacing_mm
    settings = SegmentationSettings(steps=steps, seed=seed)
    on = translator.device
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("train a segmentation", total=steps)
        scans = [one for _, _, one in _read(labelled, spacing_mm)]
        network = train_segmentation(scans, settings, on, lambda: bar.advance(task))
        scores: tuple[list[Scores], list[Scores]] = ([], [])
        task = bar.add_task("segment", total=len(find_cases(cases)))
        for _, volume, one in _read(cases, spacing_mm):
            translated = translator.on_grid(translator.translate(volume))
            for hu, where in zip((one.hu, translated.hu), scores, strict=True):
                where.append(score(segment(network, hu, settings, on), one.classes, spacing_mm))
            bar.advance(task)
    rows = compare(*scores)
    _write(out / "downstream.csv", rows)
    console.print(_table(rows))
    console.print(f"{len(scans)} scans to learn from; table: {out / 'downstream.csv'}")
    return rows


def _read(folder: Path, spacing_mm: Spacing) -> Iterator[tuple[Case, Volume, Labelled]]:
    for case in find_cases(folder):
        sources, refused = find_sources(case.source)
        if len(sources) != 1:
            reasons = "; ".join(f"{r.path}: {r.reason}" for r in refused)
            raise IngestError(f"case {case.source}: {len(sources)} series; expected 1. {reasons}")
        volume = canonical(read_source(sources[0])[0])
        yield case, volume, on_spacing(volume, read_classes(case, volume), spacing_mm)


def _write(path: Path, rows: list[Compared]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    records = []
    for row in rows:
        record = asdict(row)
        for name in ("untranslated", "translated", "difference"):
            low, high = record.pop(f"{name}_interval") or (None, None)
            record |= {f"{name}_low": low, f"{name}_high": high}
        records.append(record)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(records[0]) if records else [])
        table.writeheader()
        table.writerows(records)


def _table(rows: list[Compared]) -> Table:
    table = Table()
    for title in ("", "no translation", "translated", "difference", "subjects"):
        table.add_column(title)
    for row in rows:
        cells = (
            (row.untranslated, row.untranslated_interval),
            (row.translated, row.translated_interval),
            (row.difference, row.difference_interval),
        )
        shown = [f"{digits(value)}\n{_span(interval)}".rstrip() for value, interval in cells]
        table.add_row(row.name, *shown, str(row.subjects))
    return table


def _span(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else " to ".join(digits(end) for end in interval)
