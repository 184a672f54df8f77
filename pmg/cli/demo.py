"""`pmg demo`"""

from __future__ import annotations

import csv
import shutil
import sysconfig
import time
from pathlib import Path

import click

from pmg.cli import refusals
from pmg.cli.options import OUT_FOLDER, overrides_argument

# Where pycerr, installed by `make demo-real`, carries four chest CT series: 1 and 2 with contrast.
_REAL_SERIES = Path("cerr/datasets/radiomics_phantom_dicom")
_REAL_DOMAINS = {"pat_1": 2, "pat_2": 2, "pat_3": 1, "pat_4": 1}
# With two patients a side the discriminators soon know them by heart, and ask for those patients'
# anatomy instead of for contrast: 3400 steps turned the aorta into lung. In 400 the demo's own
# weights and rates leave blood at 46 HU, of 44; with these it comes to 94.
_REAL_OVERRIDES = (
    "train.steps=400",
    "data.scale_hu=60",
    "model.position=false",
    "discriminator.scales=2",
    "loss.lambda_kl=0.01",
    "loss.lambda_cycle_kl=0.01",
    "loss.lambda_change=4",
    "loss.lambda_identity=0",
    "loss.r1=1",
    "optim.lr=1e-3",
    "optim.lr_discriminator=2e-3",
)
_PHASES = {1: "non_contrast", 2: "contrast"}
# In pat_3, LPS mm: found by eye in the soft-tissue window.
_REAL_REGIONS = (
    ("arch wall", 20.0, -12.0, -347.0, 16.0),
    ("arch blood pool", 25.0, 20.0, -335.5, 9.0),
)


@click.command(name="demo")
@click.option("--out", type=OUT_FOLDER, default=Path("demo"), show_default=True)
@click.option("--seed", default=7, show_default=True, help="of the phantom's subjects")
@click.option("--real", is_flag=True, help="four real chest CT series instead of the phantom")
@click.option("--subjects", default=12, show_default=True, help="phantom subjects of each domain")
@click.option("--tests", default=4, show_default=True, help="phantom test subjects, with truth")
@overrides_argument
def command(
    out: Path, seed: int, real: bool, subjects: int, tests: int, overrides: tuple[str, ...]
) -> None:
    """The whole line: DICOM, store, training with Ray and DeepSpeed, translation, report.

    What an earlier run into the same folder has finished is not done again; Ctrl-C while training
    saves a checkpoint, from which the same command goes on. Translations are de-identified, under
    the key of the ingest.
    """
    with refusals():
        clock = _Clock()
        manifest, cases = _real_inputs(out) if real else _phantom_inputs(out, seed, subjects, tests)
        clock.lap("DICOM")

        from storage.ingest import ingest
        from storage.pseudonym import load_key

        key = out / "pseudonyms.key"
        click.echo("ingest: DICOM to HU on one grid, de-identified, into a Zarr store")
        report = ingest(
            None,
            out / "store",
            manifest=manifest,
            spacing_mm=(3.0, 2.0, 2.0),
            key_path=key,
        )
        click.echo(report.table())
        clock.lap("ingest")

        from launch.train import train
        from pmg.config import load_config

        settings = (*_REAL_OVERRIDES, *overrides) if real else overrides
        config = load_config("demo", settings, data={"store": out / "store"})
        click.echo(
            f"train: {config.launch.workers} DeepSpeed workers (ZeRO-{config.launch.zero_stage}) "
            f"under Ray, {config.train.steps} steps of {config.train.batch} patch pairs, "
            f"K = {config.prior.components}"
        )
        run = train(config, out / "run")
        clock.lap("training")

        from pmg.cli.pipeline import evaluate_and_report

        shutil.rmtree(out / "report", ignore_errors=True)  # an earlier demo's
        names = load_key(key, out / "report")
        evaluate_and_report(cases, run.root, out / "report", names, facts=clock.facts())


class _Clock:
    """Seconds per stage, for the report."""

    def __init__(self) -> None:
        self._laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self._laps[name] = now - self._last
        self._last = now

    def facts(self) -> dict[str, str]:
        return {name: f"{seconds:.0f} s" for name, seconds in self._laps.items()}


def _phantom_inputs(out: Path, seed: int, subjects: int, tests: int) -> tuple[Path, Path]:
    """The phantom's manifest and test cases, written unless they are there."""
    folder = out / "dicom"
    manifest = folder / "manifest.csv"
    if not manifest.exists():  # it is written last
        from storage.phantom import write_cohort

        shutil.rmtree(folder, ignore_errors=True)
        with click.progressbar(length=2 * subjects + tests, label="phantom: CT as DICOM") as bar:
            write_cohort(
                folder, seed, subjects, tests, progress=lambda done, total, name: bar.update(1)
            )
    return manifest, folder / "test"


def _real_inputs(out: Path) -> tuple[Path, Path]:
    """A manifest of the four real series, and pat_3 as the case to translate."""
    series = Path(sysconfig.get_path("purelib")) / _REAL_SERIES
    if not series.is_dir():
        raise click.ClickException(f"{series} is missing; `make demo-real` installs it (pycerr)")
    out.mkdir(parents=True, exist_ok=True)
    manifest = out / "manifest.csv"
    rows = [(series / name, domain, _PHASES[domain]) for name, domain in _REAL_DOMAINS.items()]
    _write_csv(manifest, ("path", "domain", "phase"), rows)
    case = out / "cases" / "pat_3"
    case.mkdir(parents=True, exist_ok=True)
    source = case / "source"
    if not source.is_symlink():
        source.symlink_to(series / "pat_3")
    _write_csv(case / "regions.csv", ("name", "x_mm", "y_mm", "z_mm", "radius_mm"), _REAL_REGIONS)
    return manifest, out / "cases"


def _write_csv(path: Path, columns: tuple[str, ...], rows: object) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(rows)  # type: ignore[arg-type]
