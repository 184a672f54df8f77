"""`pmg downstream`"""

from __future__ import annotations

from pathlib import Path

import click

from pmg.cli import refusals
from pmg.cli.options import FOLDER, OUT_FOLDER, device_option


@click.command(name="downstream")
@click.argument("labelled", type=FOLDER)
@click.argument("cases", type=FOLDER)
@click.option("--model", type=FOLDER, required=True, help="a run's folder, or its model folder")
@click.option("--out", type=OUT_FOLDER, required=True, help="for the table")
@click.option("--steps", default=1500, show_default=True, help="of the segmentation's training")
@click.option("--seed", default=0, show_default=True, help="of the segmentation's training")
@device_option
def command(
    labelled: Path, cases: Path, model: Path, out: Path, steps: int, seed: int, device: str
) -> None:
    """Segment pancreas and plaque in sources and in their translations, and compare.

    LABELLED holds a folder per scan with contrast: source/ with a series, organs.nii.gz
    (TotalSegmentator's numbers) and plaques.nii.gz (a mask, or each voxel's share), both on the
    series' grid. CASES holds the like of scans without contrast, or cases as `pmg evaluate` takes
    them, whose labels lie in truth/. A network (MONAI's U-Net) is trained on LABELLED and applied
    to CASES as they are and translated.

    OUT gets downstream.csv: Dice of pancreas and plaque, F1 of the detection of plaques, and the
    differences that translation makes, with 95 % intervals over cases.
    """
    with refusals():
        try:
            import monai  # noqa: F401
        except ImportError:
            raise click.ClickException(
                "pmg downstream needs MONAI: pip install -c constraints.txt 'pmg[downstream]'"
            ) from None
        from pmg.cli.judgement import judge

        judge(labelled, cases, model, out, steps=steps, seed=seed, device=device)
