"""`pmg export`"""

from __future__ import annotations

from pathlib import Path

import click

from pmg.cli import refusals
from pmg.cli.options import OUT_FOLDER

_OF_STORES, _OF_MODELS = ("dicom", "nifti"), ("safetensors", "torch", "onnx")


@click.command(name="export")
@click.argument("source", metavar="STORE|MODEL")
@click.argument("volumes", nargs=-1, metavar="[VOLUME_ID]...")
@click.option("--out", type=OUT_FOLDER, required=True)
@click.option(
    "--format",
    "form",
    type=click.Choice(_OF_STORES + _OF_MODELS),
    default="dicom",
    show_default=True,
    help="dicom and nifti are of a store, the others of a model",
)
def command(source: str, volumes: tuple[str, ...], out: Path, form: str) -> None:
    """Write a store's volumes, or a trained model, for use by other programs.

    Volumes of a STORE (a folder or s3://bucket/prefix) are written as they are: de-identified DICOM
    series or NIfTI files, all of them unless some are named. A store without --spacing gives back
    exactly the HU and the patient coordinates that went in. Patients are the store's pseudonyms; it
    knows no names, dates or UIDs that could be kept, so every export has new UIDs.

    A MODEL (a run's folder, or its model folder) is written as safetensors with its configuration,
    or as one graph for each direction, HU in and HU out, by torch.export or as ONNX; each graph is
    compared with the model before it is kept. See docs/translate.md.
    """
    with refusals():
        if form in _OF_MODELS:
            if volumes:
                raise click.UsageError(f"--format {form} is of a model, which has no volumes")
            from pmg.export import export_model

            written = export_model(Path(source), out, form)  # type: ignore[arg-type]
            click.echo("\n".join(map(str, written)))
            return

        from pmg.output import write_stored
        from storage.store import Store

        opened = Store.open(source)
        for volume_id in volumes or opened.rows.column("volume_id").tolist():
            (patient,) = opened.rows.get(opened.require(volume_id), "patient")
            path = write_stored(opened.read(volume_id), out, form, patient, volume_id)  # type: ignore[arg-type]
            click.echo(str(path))
