"""`pmg translate`"""

from __future__ import annotations

from pathlib import Path

import click

from pmg.cli import refusals
from pmg.cli.options import (
    FOLDER,
    OUT_FOLDER,
    device_option,
    identity_options,
    pseudonyms_of,
)


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
@click.option("--description", help="SeriesDescription of what is written")
@identity_options
@device_option
def command(
    sources: tuple[Path, ...],
    model: Path,
    out: Path,
    domain: int,
    description: str | None,
    key: Path | None,
    keep_identity: bool,
    device: str,
) -> None:
    """Translate series to the other domain.

    SOURCES are folders with DICOM series or NIfTI files. For every series OUT gets a folder with
    the derived DICOM series and a NIfTI file on the source's grid.

    What is written is de-identified by the Basic Profile of DICOM PS3.15: pseudonyms for patient
    and UIDs, no dates, no words of the source. With --keep-identity it keeps the source's patient,
    study, dates, frame of reference and references, and belongs where the source came from.
    """
    from rich.progress import Progress

    from pmg.output import write_translation
    from pmg.translate import VolumeTranslator
    from storage.series import find_sources, read_source

    failed = []
    with refusals():
        names = pseudonyms_of(key, keep_identity, out)
        translator = VolumeTranslator.open(model, domain, device)
        found = [find_sources(source) for source in sources]
        for refusal in (r for _, refused in found for r in refused):
            click.echo(f"ignored {refusal.path}: {refusal.reason}", err=True)
        jobs = [source for some, _ in found for source in some]
        if not jobs:
            raise click.ClickException("no series to translate")
        text = description or f"pmg synthetic, domain {3 - domain}, not for diagnosis"
        with Progress() as bar:
            for number, source in enumerate(jobs, 1):
                task = bar.add_task(f"{number}/{len(jobs)}", total=None)
                try:
                    volume, headers = read_source(source)
                    translated = translator.translate(
                        volume,
                        progress=lambda done, total, task=task: bar.update(  # type: ignore[misc]
                            task, completed=done, total=total
                        ),
                    )
                    place = out / f"{number:03d}"
                    written = write_translation(translated, source, headers, place, text, names)
                except (ValueError, OSError) as error:
                    failed.append(f"{source.files[0].parent}: {error}")
                    continue
                bar.console.print(
                    f"{source.files[0].parent} -> {', '.join(map(str, written))}", soft_wrap=True
                )
    for line in failed:
        click.echo(f"failed  {line}", err=True)
    if failed:
        raise click.ClickException(f"{len(failed)} of {len(jobs)} series were not translated")
