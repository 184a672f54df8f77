"""`pmg ingest`"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pmg.cli import refusals

if TYPE_CHECKING:
    from storage.ingest import Progress, Step


@click.command(name="ingest")
@click.argument("root", required=False, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--store", metavar="FOLDER|URL", help="a folder, made if it does not exist; or s3://..."
)
@click.option(
    "--manifest",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV or Parquet with columns path,domain,phase; paths relative to it",
)
@click.option("--domain", type=click.IntRange(1, 2), help="of all series under ROOT")
@click.option("--phase", help="of all series under ROOT, such as non_contrast or portal")
@click.option(
    "--rules",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML file that tells domain and phase of every series under ROOT from its header",
)
@click.option(
    "--spacing",
    nargs=3,
    type=click.FloatRange(min=0, min_open=True),
    metavar="Z Y X",
    help="mm; a new store's grid. Without it every volume keeps its own, which suits export but "
    "not training",
)
@click.option(
    "--key",
    type=click.Path(dir_okay=False, path_type=Path),
    help="file with the secret key of the pseudonyms, outside the store; made if there is none",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="processes; by default one for each core that there are 4 GiB of memory for",
)
@click.option(
    "--suggest", is_flag=True, help="ingest nothing: propose a label for every series under ROOT"
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="with --suggest: write the labels there, to be corrected and given as --manifest",
)
def command(
    root: Path | None,
    store: str | None,
    manifest: Path | None,
    domain: int | None,
    phase: str | None,
    rules: Path | None,
    spacing: tuple[float, float, float] | None,
    key: Path | None,
    workers: int | None,
    suggest: bool,
    out: Path | None,
) -> None:
    """Bring DICOM series or NIfTI files into a store.

    Either ROOT with --domain and --phase or with --rules, or --manifest. Series that cannot be read
    are refused with a reason, the others go on; a second run skips what is done. No name, date or
    UID enters the store. Ctrl-C keeps what is done.
    """
    if suggest:
        from pmg.cli.suggest import show_suggestions

        if root is None or manifest or store:
            raise click.UsageError("--suggest looks at the series under ROOT, and nothing else")
        with refusals():
            show_suggestions(root, out)
        return
    if store is None or key is None:
        raise click.UsageError("--store and --key are missing; without them there is --suggest")

    from storage.ingest import ingest

    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with refusals(), shown() as progress:
        report = ingest(
            root,
            store,
            manifest=manifest,
            domain=domain,
            phase=phase,
            rules=rules,
            spacing_mm=spacing,
            key_path=key,
            workers=workers,
            progress=progress,
        )
    click.echo(report.table())
    click.echo(f"next: pmg info {store}")
    if report.series and not report.count("ingested") and not report.count("skipped"):
        raise click.ClickException("no series could be ingested")


@contextmanager
def shown() -> Iterator[Progress]:
    """A bar with the speed and the time that is left; without a terminal a line for each series."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console()
    if not console.is_terminal:
        yield _line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("reading headers", total=1.0)

        def show(step: Step) -> None:
            if step.report is None:
                done = f"{step.series} series, {step.scanned} headers read"
            else:
                seconds = bar.tasks[0].elapsed or 0.0
                speed = step.files / seconds if seconds else 0.0
                done = f"{step.series} series, {step.files} files, {speed:.0f} slices/s"
                if step.report.verdict == "refused":
                    bar.console.print(f"refused  {step.report.path}", markup=False, soft_wrap=True)
            bar.update(task, completed=step.share, description=done)

        yield show


def _line(step: Step) -> None:
    if step.report is not None:
        one = step.report
        click.echo(f"[{step.series}, {step.share:.0%}] {one.verdict}  {one.path}")
