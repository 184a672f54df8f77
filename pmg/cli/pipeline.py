"""Evaluation as the commands `evaluate` and `demo` run it: translate, write, measure, report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from launch.run_folder import RunFolder
from pmg.assess import Assessor
from pmg.cases import find_cases
from pmg.evaluate import CaseResult
from pmg.figures import Panel
from pmg.model import Domain, other
from pmg.report import write_report
from pmg.summary import Row, summarise
from pmg.tables import console_table, write_tables
from storage.pseudonym import Pseudonyms

__all__ = ["evaluate_and_report"]

_MOST_PANELS = 4


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

    names, targets: see `pmg.assess`.
    """
    console = Console()
    assessor = Assessor.open(model, domain, device, targets)
    results: list[CaseResult] = []
    panels: list[Panel] = []
    started = time.monotonic()
    found = find_cases(cases)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        for case in bar.track(found, description="evaluate"):
            show = len(panels) < _MOST_PANELS
            one = assessor.case(case, names, out / case.name, show=show)
            results.append(one.result)
            panels += one.panels
    rows = summarise(results)
    write_tables(out, rows, results)
    report = write_report(
        out,
        title="pmg: translation report",
        rows=rows,
        panels=panels,
        config=assessor.translator.config,
        history=list(RunFolder(model).read_metrics()),
        facts={
            "model": str(model),
            "direction": f"domain {domain} to {other(domain)}",
            "cases": str(len(found)),
            "real scans to compare with": assessor.compared,
            "translation and evaluation": f"{time.monotonic() - started:.0f} s",
        }
        | dict(facts or {}),
    )
    console.print(console_table(rows, console.width))
    console.print(f"real scans to compare with: {assessor.compared}", soft_wrap=True)
    console.print(f"report: {report}", soft_wrap=True)
    return rows
