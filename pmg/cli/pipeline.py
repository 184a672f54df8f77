"""Evaluation as the commands `evaluate` and `demo` run it: translate, write, measure, report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from launch.run_folder import RunFolder
from pmg.cases import Case, find_cases, read_target
from pmg.distribution import framed
from pmg.evaluate import CaseResult, measure
from pmg.fidelity import body_mae
from pmg.figures import Panel
from pmg.histogram import match_histogram
from pmg.model import Domain
from pmg.output import write_translation
from pmg.quantity import Amount, Quantity
from pmg.report import write_report
from pmg.summary import Row, summarise
from pmg.tables import number, shown, span, write_tables
from pmg.targets import Targets, read_targets
from pmg.translate import VolumeTranslator
from storage.body import body_mask
from storage.errors import IngestError
from storage.grid import canonical
from storage.series import find_sources, read_source
from storage.volume import Volume

__all__ = ["evaluate_and_report", "print_table"]

# Heights of the slices that are shown of a case, as fractions of its extent.
_SHOWN = (0.3, 0.6)
_MOST_PANELS = 4
_CYCLE = Quantity("cycle error", "HU", "mean absolute, source to the other domain and back, body")


def evaluate_and_report(
    cases: Path,
    model: Path,
    out: Path,
    domain: Domain = 1,
    device: str = "auto",
    facts: Mapping[str, str] | None = None,
    targets: Path | None = None,
) -> list[Row]:
    """Translate and measure every case below `cases`; print the table and the report's path.

    targets: a store or a folder with real scans of the other domain; without it the store that the
    model was trained on, if it is there.
    """
    console = Console()
    translator = VolumeTranslator.open(model, domain, device)
    real = _targets(targets, translator, domain)
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
            write_translation(translated, sources[0], headers, out / case.name, text)
            patient = str(headers[0].get("PatientID", "")) if headers else ""
            result = _measure(case, volume, translated, translator, real, domain, patient)
            results.append(result)
            if len(panels) < _MOST_PANELS:
                truth = read_target(case, volume)
                for name, z_mm in _heights(case, volume):
                    panels.append(Panel(name, translator.slice(volume, z_mm, truth)))
    rows = summarise(results)
    write_tables(out, rows, results)
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
            "direction": f"domain {domain} to {3 - domain}",
            "cases": str(len(found)),
            "real scans to compare with": str(len(real.scans)) if real else "none",
            "translation and evaluation": f"{time.monotonic() - started:.0f} s",
        }
        | dict(facts or {}),
    )
    print_table(rows, console)
    console.print(f"report: {report}", soft_wrap=True)
    return rows


def _targets(path: Path | None, translator: VolumeTranslator, domain: Domain) -> Targets | None:
    store = translator.config.data.store
    if path is None and store is not None and (store / "zarr.json").is_file():
        path = store
    return None if path is None else read_targets(path, 3 - domain, translator.spacing_mm)


def _measure(
    case: Case,
    source: Volume,
    translated: Volume,
    translator: VolumeTranslator,
    real: Targets | None,
    domain: Domain,
    patient: str,
) -> CaseResult:
    """All figures of one case; the source's axes are put in order once, for all of them."""
    source, translated = canonical(source), canonical(translated)
    body = body_mask(source)
    candidates = {"identity": source}
    if real is not None:
        matched = match_histogram(source.hu, body, real.histogram)
        candidates["matched"] = replace(source, hu=matched)
    candidates["translated"] = translated
    result = measure(case, source, candidates, domain, patient or None)
    measured = {name: dict(figures) for name, figures in result.measured.items()}
    cycled = translator.reversed().translate(translated)
    measured["identity"][_CYCLE] = Amount(0.0)
    measured["translated"][_CYCLE] = Amount(body_mae(cycled.hu, source.hu, body))
    if real is not None:
        grid = framed(source, translator.spacing_mm)
        on_grid = {name: translator.on_grid(one) for name, one in candidates.items()}
        for name, distances in real.distances(grid, on_grid).items():
            measured.setdefault(name, {}).update(distances)
    return replace(result, measured=measured)


def _heights(case: Case, volume: Volume) -> list[tuple[str, float]]:
    """Titles and z (LPS mm) of the slices to show: through the regions, or spread over the case."""
    if case.regions:
        return [(f"{case.name}: {region.name}", region.centre_mm[2]) for region in case.regions]
    ordered = canonical(volume)
    low, extent = ordered.affine[2, 3], (ordered.shape[0] - 1) * ordered.spacing_mm[0]
    return [(case.name, low + fraction * extent) for fraction in _SHOWN]


def print_table(rows: list[Row], console: Console) -> None:
    candidates = shown(rows)
    table = Table("", "unit", *candidates.values(), "truth", "")
    for row in rows:
        values = [getattr(row, name) for name in candidates]
        cells = (f"{number(value)}\n{span(value)}".rstrip() for value in values)
        table.add_row(row.name, row.unit, *cells, number(row.truth), row.note)
    console.print(table)
