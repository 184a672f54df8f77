"""`pmg translate`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pmg.cli import refusals
from pmg.cli.options import (
    FOLDER,
    OUT_FOLDER,
    device_option,
    identity_options,
    pseudonyms_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pmg.output import TranslationFormat
    from storage.series import Source

_FORMATS = ("dicom", "nifti", "zarr")


@click.command(name="translate")
@click.argument("sources", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--model", type=FOLDER, required=True, help="a run's folder, or its model folder")
@click.option("--out", type=OUT_FOLDER, required=True)
@click.option(
    "--from",
    "domain",
    type=click.IntRange(1, 2),
    default=1,
    show_default=True,
    help="domain of the sources; they are translated to the other",
)
@click.option(
    "--samples",
    default=0,
    metavar="N",
    help="mean and standard deviation of N samples of the latent; default: its mean, one pass",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="of the samples",
)
@click.option(
    "--responsibilities", is_flag=True, help="also how much each component explains each place"
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(_FORMATS),
    default=("dicom", "nifti"),
    show_default=True,
    help="may be repeated; dicom for sources that are DICOM",
)
@click.option("--description", help="SeriesDescription of what is written")
@identity_options
@device_option
def command(
    sources: tuple[Path, ...],
    model: Path,
    out: Path,
    domain: int,
    samples: int,
    seed: int,
    responsibilities: bool,
    formats: tuple[TranslationFormat, ...],
    description: str | None,
    key: Path | None,
    keep_identity: bool,
    device: str,
) -> None:
    """Translate series to the other domain.

    SOURCES are folders with any number of DICOM series, or NIfTI files. For every series OUT gets a
    folder with the derived DICOM series and a NIfTI file (or OME-Zarr) on the source's grid;
    uncertainty and responsibilities are further series and files beside them.

    The same command again does what is missing: a series is found by its bytes, the model's and the
    settings. One that fails does not stop the others; translate-report.csv tells what became of
    each.

    What is written is de-identified by the Basic Profile of DICOM PS3.15: pseudonyms for patient
    and UIDs, no dates, no words of the source. With --keep-identity it keeps the source's patient,
    study, dates, frame of reference and references, and belongs where the source came from.
    """
    with refusals():
        from pmg.batch import Order
        from pmg.model import other
        from pmg.translate import VolumeTranslator, Wanted

        wanted = Wanted(samples, seed, responsibilities)
        names = pseudonyms_of(key, keep_identity, out)
        identity = "kept" if names is None else "throwaway" if key is None else names.of("key")
        translator = VolumeTranslator.open(model, domain, device)
        direction = translator.source
        order = Order(
            model,
            direction,
            description or f"pmg synthetic, domain {other(direction)}, not for diagnosis",
            identity,
            formats,
            wanted,
        )
        jobs = _series(sources)
        if not jobs:
            raise click.ClickException("no series to translate")
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        from pmg.batch import translate_series, write_report_of

        outcomes = []
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(soft_wrap=True)) as bar:
            task = bar.add_task("", total=None)

            def progress(number: int) -> Callable[[int, int], None]:
                bar.reset(task, description=f"series {number + 1} of {len(jobs)}", total=None)
                return lambda done, total: bar.update(task, completed=done, total=total)

            for one in translate_series(translator, jobs, out, order, names, progress):
                outcomes.append(one)
                write_report_of(outcomes, out)
                place = one.source.files[0].parent
                if one.verdict == "translated":
                    bar.console.print(
                        f"{place} -> {', '.join(map(str, one.written))}", markup=False
                    )
                elif one.verdict == "there already":
                    bar.console.print(f"{place} -> {one.folder}, there already", markup=False)
    failed = [one for one in outcomes if one.error is not None]
    for one in failed:
        click.echo(f"failed  {one.source.files[0].parent}: {one.error}", err=True)
    if failed:
        raise click.ClickException(f"{len(failed)} of {len(jobs)} series were not translated")


def _series(places: tuple[Path, ...]) -> list[Source]:
    from storage.bounded import find_sources

    jobs = []
    for place in places:
        found, refused = find_sources(place)
        for refusal in refused:
            click.echo(f"ignored {refusal.path}: {refusal.reason}", err=True)
        jobs += found
    return jobs
