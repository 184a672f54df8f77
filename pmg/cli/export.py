"""`pmg export`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pmg.cli import refusals
from pmg.cli.options import OUT_FOLDER, store_argument

if TYPE_CHECKING:
    from pmg.output import Format


@click.command(name="export")
@store_argument
@click.argument("volumes", nargs=-1, metavar="[VOLUME_ID]...")
@click.option("--out", type=OUT_FOLDER, required=True)
@click.option(
    "--format", "form", type=click.Choice(["dicom", "nifti"]), default="dicom", show_default=True
)
def command(store: str, volumes: tuple[str, ...], out: Path, form: Format) -> None:
    """Write volumes of a store as they are: de-identified DICOM series or NIfTI files.

    STORE is a folder or s3://bucket/prefix. All volumes unless some are named. A store without
    --spacing gives back exactly the HU and the patient coordinates that went in. Patients are
    the store's pseudonyms; it knows no names, dates or UIDs that could be kept, so every export
    has new UIDs.
    """
    from pmg.output import write_stored
    from storage.store import Store

    with refusals():
        opened = Store.open(store)
        for volume_id in volumes or opened.rows.column("volume_id").tolist():
            (patient,) = opened.rows.get(opened.require(volume_id), "patient")
            path = write_stored(opened.read(volume_id), out, form, patient, volume_id)
            click.echo(str(path))
