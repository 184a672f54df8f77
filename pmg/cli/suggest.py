"""`pmg ingest --suggest`: labels for the user to check, and the evidence for them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from storage.bounded import find_sources
from storage.series import Source
from storage.suggest import COLUMNS, Evidence, Suggestion, examine, suggest, table, write_labels
from storage.workers import Lost, Workers, default_workers, memory_limit

__all__ = ["show_suggestions"]


def show_suggestions(root: Path, out: Path | None) -> None:
    """Read every series under `root`, show what its label may be and why, and write it to `out`.

    Raises FileExistsError if there is an `out` already, click.ClickException if no series is found.
    """
    if out is not None and out.exists():
        raise FileExistsError(f"{out} exists, perhaps with your corrections; choose a new file")
    count = default_workers()
    with Workers(count, memory_limit(count)) as workers:
        sources, refused = find_sources(root, workers)
        for refusal in refused:
            click.echo(f"ignored  {refusal.path}: {refusal.reason}", err=True)
        outcomes = workers.map(_examined, sources)
        console = Console(stderr=True)
        by_index = {
            done.index: done.result.reason if isinstance(done.result, Lost) else done.result
            for done in track(outcomes, "suggest", len(sources), console=console)
        }
    found: list[Evidence] = []
    for index, source in enumerate(sources):
        result = by_index[index]
        if isinstance(result, str):
            click.echo(f"ignored  {source.files[0].parent}: {result}", err=True)
        else:
            found.append(result)
    if not found:
        raise click.ClickException(f"{root}: no series that can be read")
    suggestions = suggest(found)
    _print(suggestions, root)
    if out is not None:
        write_labels(suggestions, out)
        click.echo(f"next: check and edit {out}, then pmg ingest --manifest {out} ...")
    unclear = sum(one.domain is None for one in suggestions)
    doubtful = sum(bool(one.contradictions) for one in suggestions)
    click.echo(
        f"{len(suggestions)} series, {unclear} without a domain, {doubtful} with contradictions; "
        "nothing was ingested"
    )


def _examined(source: Source) -> Evidence | str:
    """In a worker: the evidence, or why there is none."""
    try:
        return examine(source)
    except Exception as error:  # hostile files raise what no list of exceptions foresees
        return str(error)


def _print(suggestions: Iterable[Suggestion], root: Path) -> None:
    base = root if root.is_dir() else root.parent
    shown = [name for name in COLUMNS if name != "series"]
    columns = Table(*(name.replace("_", " ") for name in shown), show_lines=True)
    for row in table(list(suggestions), base):
        cells = dict(zip(COLUMNS, row, strict=True))
        columns.add_row(*(cells[name] for name in shown))
    Console(markup=False).print(columns)
