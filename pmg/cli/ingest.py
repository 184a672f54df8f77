"""`pmg ingest`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pmg.cli import refusals
from pmg.cli.options import OUT_FOLDER

if TYPE_CHECKING:
    from storage.ingest_report import SeriesReport


@click.command(name="ingest")
@click.argument("root", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--store", type=OUT_FOLDER, required=True, help="made if it does not exist")
@click.option(
    "--manifest",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV or Parquet with columns path,domain,phase; paths relative to it",
)
@click.option("--domain", type=click.IntRange(1, 2), help="of all series under ROOT")
@click.option("--phase", help="of all series under ROOT, such as non_contrast or portal")
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
    required=True,
    help="file with the secret key of the pseudonyms, outside the store; made if there is none",
)
def command(
    root: Path | None,
    store: Path,
    manifest: Path | None,
    domain: int | None,
    phase: str | None,
    spacing: tuple[float, float, float] | None,
    key: Path,
) -> None:
    """Bring DICOM series or NIfTI files into a store.

    Either ROOT with --domain and --phase, or --manifest. Series that cannot be read are refused
    with a reason, the others go on; a second run skips what is done. No name, date or UID enters
    the store.
    """
    from storage.ingest import ingest

    def show(done: int, total: int, one: SeriesReport) -> None:
        click.echo(f"[{done}/{total}] {one.verdict}  {one.path}")

    with refusals():
        report = ingest(
            root,
            store,
            manifest=manifest,
            domain=domain,
            phase=phase,
            spacing_mm=spacing,
            key_path=key,
            progress=show,
        )
    click.echo(report.table())
    click.echo(f"next: pmg info {store}")
    if report.series and not report.count("ingested") and not report.count("skipped"):
        raise click.ClickException("no series could be ingested")
