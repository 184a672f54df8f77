"""Evaluation as the commands `evaluate` and `demo` run it: translate, write, measure, report."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from launch.run_folder import RunFolder
from pmg.evaluate import Case, CaseResult, find_cases, measure, read_target
from pmg.figures import Panel
from pmg.output import write_translation
from pmg.report import write_report
from pmg.summary import Row, summarise
from pmg.translate import VolumeTranslator
from storage.errors import IngestError
from storage.grid import canonical
from storage.pseudonym import Pseudonyms
from storage.series import find_sources, read_source
from storage.volume import Volume

__all__ = ["evaluate_and_report", "print_table"]

# Heights of the slices that are shown of a case, as fractions of its extent.
_SHOWN = (0.3, 0.6)
_MOST_PANELS = 4


def evaluate_and_report(
    cases: Path,
    model: Path,
    out: Path,
    names: Pseudonyms | None,
    domain: int = 1,
    device: str = "auto",
    facts: dict[str, str] | None = None,
) -> list[Row]:
    """Translate and measure every case below `cases`; print the table and the report's path.

    names: the key for the pseudonyms of written DICOM; None keeps the source's identity.
    """
    console = Console()
    translator = VolumeTranslator.open(model, domain, device)
    results: list[CaseResult] = []
    panels: list[Panel] = []
    started = time.monotonic()
    found = find_cases(cases)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        for case in bar.track(found, description="evaluate"):
            sources, refused = find_sources(case.source)
            if len(sources) != 1:
                reasons = "; ".join(f"{r.path}: {r.reason}" for r in refused)
                raise IngestError(
                    f"case {case.source}: {len(sources)} series; expected 1. {reasons}"
                )
            volume, headers = read_source(sources[0])
            translated = translator.translate(volume)
            text = f"pmg synthetic, domain {3 - domain}, not for diagnosis"
            write_translation(translated, sources[0], headers, out / case.name, text, names)
            results.append(measure(case, volume, translated))
            if len(panels) < _MOST_PANELS:
                truth = read_target(case, volume)
                for name, z_mm in _heights(case, volume):
                    panels.append(Panel(name, translator.slice(volume, z_mm, truth)))
    rows = summarise(results)
    run = RunFolder(model)
    report = write_report(
        out,
        title="pmg: translation report",
        rows=rows,
        panels=panels,
        config=translator.config,
        history=list(run.read_metrics()),
        facts={
            "model": str(model),
            "cases": str(len(found)),
            "translation and evaluation": f"{time.monotonic() - started:.0f} s",
        }
        | (facts or {}),
    )
    print_table(rows, console)
    console.print(f"report: {report}", soft_wrap=True)
    return rows


def _heights(case: Case, volume: Volume) -> list[tuple[str, float]]:
    """Titles and z (LPS mm) of the slices to show: through the regions, or spread over the case."""
    if case.regions:
        return [(f"{case.name}: {region.name}", region.centre_mm[2]) for region in case.regions]
    ordered = canonical(volume)
    low, extent = ordered.affine[2, 3], (ordered.shape[0] - 1) * ordered.spacing_mm[0]
    return [(case.name, low + fraction * extent) for fraction in _SHOWN]


def print_table(rows: list[Row], console: Console) -> None:
    table = Table("", "unit", "no translation", "pmg", "truth", "")
    for row in rows:
        numbers = (row.identity, row.translated, row.truth)
        table.add_row(
            row.name, row.unit, *("" if n is None else f"{n:.1f}" for n in numbers), row.note
        )
    console.print(table)
