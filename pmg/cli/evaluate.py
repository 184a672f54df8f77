"""`pmg evaluate`"""

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


@click.command(name="evaluate")
@click.argument("cases", type=FOLDER)
@click.option("--model", type=FOLDER, required=True, help="a run's folder, or its model folder")
@click.option("--out", type=OUT_FOLDER, required=True, help="for the translations and the report")
@click.option(
    "--from",
    "domain",
    type=click.IntRange(1, 2),
    default=1,
    show_default=True,
    help="domain of the cases' sources",
)
@identity_options
@device_option
def command(
    cases: Path,
    model: Path,
    out: Path,
    domain: int,
    key: Path | None,
    keep_identity: bool,
    device: str,
) -> None:
    """Translate cases, measure them, and write the report.

    CASES holds a folder per case: source/ with a series; where it is known truth/ with
    target.nii.gz, organs.nii.gz (TotalSegmentator's numbers), plaques.nii.gz and plaques.csv on the
    source's grid; where there is no truth regions.csv (name,x_mm,y_mm,z_mm,radius_mm in patient
    coordinates), whose HU are shown before and after. OUT gets every translation, report.html,
    report.png and metrics.json; the source itself stands beside every figure as "no translation".
    Written DICOM is de-identified as by `pmg translate`; the report shows the cases' folder names.
    """
    with refusals():
        from pmg.cli.pipeline import evaluate_and_report

        names = pseudonyms_of(key, keep_identity, out)
        evaluate_and_report(cases, model, out, names, domain, device)
