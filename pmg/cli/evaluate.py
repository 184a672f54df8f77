"""`pmg evaluate`"""

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
    from pmg.model import Domain


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
@click.option(
    "--targets",
    metavar="FOLDER|URL",
    help="real scans of the other domain, a store or a folder of series, to compare with; "
    "default: the store that the model was trained on",
)
@identity_options
@device_option
def command(
    cases: Path,
    model: Path,
    out: Path,
    domain: int,
    targets: str | None,
    key: Path | None,
    keep_identity: bool,
    device: str,
) -> None:
    """Translate cases, measure them, and write the report.

    CASES holds a folder per case: source/ with a series; where it is known truth/ with
    target.nii.gz, organs.nii.gz (TotalSegmentator's numbers), plaques.nii.gz and plaques.csv on the
    source's grid; where there is none, organs.nii.gz and regions.csv (name,x_mm,y_mm,z_mm,radius_mm
    in patient coordinates), whose HU are shown before and after, if you have them. The model's
    data.contrast_domain, 2 by default, is the one with contrast agent.

    OUT gets every translation, report.html and report.png, metrics.csv and .json over all cases
    with intervals over patients, and cases.csv and .json. The source itself stands beside every
    figure as "no translation", and with its histogram matched to real scans. Written DICOM is
    de-identified as by `pmg translate`; the report shows the cases' folder names.
    """
    with refusals():
        from pmg.cli.pipeline import evaluate_and_report

        names = pseudonyms_of(key, keep_identity, out)
        direction: Domain = 1 if domain == 1 else 2
        evaluate_and_report(cases, model, out, names, direction, device, targets=targets)
