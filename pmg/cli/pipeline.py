"""Evaluation as the commands `evaluate` and `demo` run it: translate, write, measure, report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydicom.dataset import Dataset
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
from pmg.model import Domain, other
from pmg.output import write_translation
from pmg.quantity import Amount, Quantity
from pmg.report import write_report
from pmg.summary import Row, summarise
from pmg.tables import number, shown, span, write_tables
from pmg.targets import Targets, is_store, read_targets
from pmg.translate import VolumeTranslator
from storage.body import body_mask
from storage.errors import IngestError, StoreError
from storage.grid import canonical
from storage.pseudonym import Pseudonyms
from storage.series import find_sources, read_source
from storage.volume import Volume

__all__ = ["evaluate_and_report", "print_table"]

# Heights of the slices that are shown of a case, as fractions of its extent.
_SHOWN = (0.3, 0.6)
_MOST_PANELS = 4
_WIDE = 130  # characters
_CYCLE = Quantity("cycle error", "HU", "mean absolute, source to the other domain and back, body")


def evaluate_and_report(
    cases: Path,
    model: Path,
    out: Path,
    names: Pseudonyms | None,
    domain: Domain = 1,
    device: str = "auto",
    facts: Mapping[str, str] | None = None,
    targets: str | None = None,
) -> list[Row]:
    """Translate and measure every case below `cases`; print the table and the report's path.

    names: the key for the pseudonyms of written DICOM, and of patients in the tables; None keeps
    the source's identity. targets: a store or a folder with real scans of the other domain; without
    it the store that the model was trained on, if it is there.
    """
    console = Console()
    translator = VolumeTranslator.open(model, domain, device)
    real, compared = _targets(targets, translator, domain)
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
            text = f"pmg synthetic, domain {other(domain)}, not for diagnosis"
            write_translation(translated, sources[0], headers, out / case.name, text, names)
            subject = _subject(headers, names)
            result = _measure(case, volume, translated, translator, real, domain, subject)
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
            "direction": f"domain {domain} to {other(domain)}",
            "cases": str(len(found)),
            "real scans to compare with": compared,
            "translation and evaluation": f"{time.monotonic() - started:.0f} s",
        }
        | dict(facts or {}),
    )
    print_table(rows, console)
    console.print(f"real scans to compare with: {compared}", soft_wrap=True)
    console.print(f"report: {report}", soft_wrap=True)
    return rows


def _targets(
    where: str | None, translator: VolumeTranslator, domain: Domain
) -> tuple[Targets | None, str]:
    """The real scans to compare with, and what the report says of them.

    The store of the training is taken where it can be: without it the evaluation is still of use.
    """
    store = translator.config.data.store
    if where is None and (store is None or not is_store(str(store))):
        return None, "none; --targets names some"
    try:
        real = read_targets(where or str(store), other(domain), translator.spacing_mm)
    except StoreError as error:
        if where is not None:
            raise
        return None, f"none; the store that the model was trained on: {error}"
    return real, f"{len(real.scans)} of {where or store}"


def _subject(headers: Sequence[Dataset], names: Pseudonyms | None) -> str | None:
    """Whose scan it is, by its pseudonym unless identities are kept; None where nothing says."""
    patient = str(headers[0].get("PatientID", "")).strip() if headers else ""
    if not patient:
        return None
    return patient if names is None else names.of("patient", patient)


def _measure(
    case: Case,
    source: Volume,
    translated: Volume,
    translator: VolumeTranslator,
    real: Targets | None,
    domain: Domain,
    subject: str | None,
) -> CaseResult:
    """All figures of one case; the source's axes are put in order once, for all of them."""
    source, translated = canonical(source), canonical(translated)
    body = body_mask(source)
    candidates = {"identity": source}
    if real is not None:
        matched = match_histogram(source.hu, body, real.histogram)
        candidates["matched"] = replace(source, hu=matched)
    candidates["translated"] = translated
    result = measure(case, source, candidates, domain, subject)
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


def print_table(rows: Sequence[Row], console: Console) -> None:
    """The figures; what a row is over only where the terminal has room for it."""
    candidates = shown(rows)
    table = Table()
    for title in ("", "unit", *candidates.values(), "truth"):
        table.add_column(title, no_wrap=title == "")
    wide = console.width >= _WIDE
    if wide:
        table.add_column("")
    for row in rows:
        values = [getattr(row, name) for name in candidates]
        cells = [f"{number(value)}\n{span(value)}".rstrip() for value in values]
        note = [row.note] if wide else []
        table.add_row(row.name, row.unit, *cells, number(row.truth), *note)
    console.print(table)
