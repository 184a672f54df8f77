"""`pmg phantom`"""

from __future__ import annotations

from pathlib import Path

import click

from pmg.cli import refusals
from pmg.cli.options import OUT_FOLDER


@click.command(name="phantom")
@click.option("--out", type=OUT_FOLDER, required=True, help="folder to write; must be new")
@click.option("--seed", default=0, show_default=True, help="another seed, other subjects")
@click.option("--subjects", default=12, show_default=True, help="training subjects of each domain")
@click.option("--tests", default=4, show_default=True, help="test subjects, with truth")
@click.option(
    "--phase",
    type=click.Choice(["portal", "arterial"]),
    default="portal",
    show_default=True,
    help="contrast phase of domain 2",
)
@click.option(
    "--tests-from",
    type=click.IntRange(1, 2),
    default=1,
    show_default=True,
    help="domain of the test cases' sources; their truth is in the other",
)
@click.option("--labelled", default=0, show_default=True, help="labelled series with contrast")
@click.option("--iliacs", is_flag=True, help="scan 72 mm further down, to the iliac arteries")
def command(
    out: Path,
    seed: int,
    subjects: int,
    tests: int,
    phase: str,
    tests_from: int,
    labelled: int,
    iliacs: bool,
) -> None:
    """Write a cohort of synthetic CT series in DICOM.

    OUT/domain1 holds non-contrast series, OUT/domain2 series of other subjects with contrast,
    OUT/manifest.csv names both for `pmg ingest`. OUT/test holds cases for `pmg evaluate`: a source
    series and the truth. OUT/labelled holds series with contrast of further subjects with their
    organs and plaques, for `pmg downstream`. The same seed writes the same cohort.
    """
    from storage.phantom import TO_ILIACS, write_cohort

    with (
        refusals(),
        click.progressbar(length=2 * subjects + tests + labelled, label="phantom") as bar,
    ):
        manifest = write_cohort(
            out,
            seed,
            subjects,
            tests,
            TO_ILIACS if iliacs else None,
            phase=phase,  # type: ignore[arg-type]
            test_domain=1 if tests_from == 1 else 2,
            labelled_subjects=labelled,
            progress=lambda done, total, name: bar.update(1),
        )
    click.echo(f"next: pmg ingest --manifest {manifest} --store STORE --key KEYFILE")
