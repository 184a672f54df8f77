"""What a translation is worth to a segmentation: python -m benchmarks.downstream RUN --out OUT.

`pmg downstream` on phantoms of the protocol of `benchmarks.fidelity` whose subjects RUN, a run of
that benchmark or any other from non-contrast CT, has not seen.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from benchmarks.fidelity_plan import SIZES
from pmg.cli import refusals
from pmg.cli.judgement import judge
from storage.phantom import write_cohort

_PHANTOM_SEED = 7  # benchmarks.fidelity has another
_COUNT = click.IntRange(min=1)


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="phantoms and table")
@click.option("--labelled", type=_COUNT, default=12, show_default=True, help="scans to learn from")
@click.option("--tests", type=_COUNT, default=24, show_default=True, help="scans to be segmented")
@click.option(
    "--steps", type=_COUNT, default=1500, show_default=True, help="of the segmentation's training"
)
@click.option("--seed", default=0, show_default=True, help="of the segmentation's training")
def main(run: Path, out: Path, labelled: int, tests: int, steps: int, seed: int) -> None:
    """Segment pancreas and plaque in phantoms without contrast, as they are and translated."""
    cohort = out / f"phantoms-{labelled}-{tests}"
    with refusals():
        if not (cohort / "manifest.csv").is_file():  # it is written last
            shutil.rmtree(cohort, ignore_errors=True)
            protocol = SIZES["small"].protocol
            write_cohort(cohort, _PHANTOM_SEED, 0, tests, protocol, labelled_subjects=labelled)
        test, learn = cohort / "test", cohort / "labelled"
        judge(learn, test, run, out, steps=steps, seed=seed, device="auto")


if __name__ == "__main__":
    main()
