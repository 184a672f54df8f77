"""Translate a cohort on a cluster: `python -m launch.translate --run RUN --in FOLDER --out FOLDER`.

Every series gets a folder of its own, named by its pseudonym, which appears when it is complete;
a second run does what is missing. A series that fails is told and the others go on.
"""

from __future__ import annotations

import csv
import hashlib
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console

from launch.cluster import cluster
from launch.cohort import Outcome, Share, over_cluster, share_options, show_outcome
from launch.job_exit import job_exit
from pmg.config import LaunchConfig
from pmg.done import finishing, is_done, made_by
from pmg.model import Domain, other
from pmg.output import write_translation
from pmg.translate import VolumeTranslator
from storage.bounded import find_sources, read_source
from storage.errors import StoreError
from storage.pseudonym import Pseudonyms, load_key
from storage.series import Source

__all__ = ["SeriesTranslation", "translate_on_cluster"]

_REPORT = "translate-report.csv"


@dataclass(frozen=True)
class SeriesTranslation:
    """What a worker needs to translate series: picklable, called once for the model.

    key_path: of the pseudonyms, None keeps identities; the key itself is never sent through Ray.
    key_check: that of the driver's key, so that a node with another one is refused.
    """

    model: Path
    out: Path
    by: str
    direction: Domain
    description: str
    key_path: Path | None
    key_check: str | None

    def __call__(self) -> _Translating:
        return _Translating(self)

    def names(self) -> Pseudonyms | None:
        if self.key_path is None:
            return None
        names = load_key(self.key_path, self.out)
        if self.key_check is not None and names.of("key") != self.key_check:
            raise StoreError(
                f"key file {self.key_path} on this machine is another one than where the "
                f"translation was started"
            )
        return names


class _Translating:
    """A loaded model that translates one series after another."""

    def __init__(self, plan: SeriesTranslation) -> None:
        self._plan, self._names = plan, plan.names()
        self._translator = VolumeTranslator.open(plan.model, plan.direction)

    def __call__(self, job: tuple[Source, str]) -> None:
        source, place = job
        plan = self._plan
        volume, headers = read_source(source)
        translated = self._translator.translate(volume)
        with finishing(plan.out / place, plan.by) as folder:
            write_translation(translated, source, headers, folder, plan.description, self._names)


def translate_on_cluster(
    run: Path,
    sources: Path,
    out: Path,
    *,
    key_path: Path | None,
    direction: Domain = 1,
    description: str | None = None,
    address: str | None = None,
    share: Share | None = None,
    console: Console | None = None,
) -> list[Outcome[None]]:
    """Translate all series below `sources` that `out` does not hold yet. Returns their outcomes.

    key_path: of the pseudonyms, made if there is none; None keeps the identity of the source.
    direction: the sources' domain. Raises IngestError, ModelError and StoreError before anything is
    started.
    """
    console = console or Console()
    text = description or f"pmg synthetic, domain {other(direction)}, not for diagnosis"
    out.mkdir(parents=True, exist_ok=True)
    names = None if key_path is None else load_key(key_path, out)
    by = made_by(run, direction=direction, description=text)
    plan = SeriesTranslation(
        run.resolve(),
        out.resolve(),
        by,
        direction,
        text,
        key_path and key_path.resolve(),
        None if names is None else names.of("key"),
    )
    found, refused = find_sources(sources.resolve())
    for refusal in refused:
        console.print(f"ignored {refusal.path}: {refusal.reason}", markup=False, soft_wrap=True)
    jobs = [(source, _place(source, names)) for source in found]
    left = [job for job in jobs if not is_done(out / job[1], by)]
    console.print(f"{len(jobs)} series, {len(jobs) - len(left)} of them done")
    outcomes = []
    with (
        cluster(LaunchConfig(address=address)) if left else nullcontext(),
        (out / _REPORT).open("a", newline="", encoding="utf-8") as file,
    ):
        report, started = csv.writer(file), time.monotonic()
        for outcome in over_cluster(plan, left, share or Share()):
            source, place = left[outcome.index]
            outcomes.append(outcome)
            what = f"{source.files[0].parent} -> {out / place}"
            show_outcome(console, len(outcomes), len(left), what, started, outcome.failure)
            # Without the reason, which may quote what the source says of a patient.
            verdict = "translated" if outcome.failure is None else "failed"
            report.writerow((place, verdict, f"{outcome.seconds:.1f}"))
            file.flush()
    return outcomes


def _place(source: Source, names: Pseudonyms | None) -> str:
    """The folder's name, the same in every run."""
    if names is not None:
        return names.of("series", source.key)
    return f"series-{hashlib.sha256(source.key.encode()).hexdigest()[:16]}"


@click.command()
@click.option(
    "--run",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="a run's folder, or its model folder",
)
@click.option(
    "--in", "sources", required=True, type=click.Path(exists=True, path_type=Path), metavar="FOLDER"
)
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER"
)
@click.option("--direction", type=click.Choice(["1to2", "2to1"]), default="1to2", show_default=True)
@click.option(
    "--key",
    "key_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="file with the secret key of the pseudonyms; the folders' names come of it",
)
@click.option("--keep-identity", is_flag=True, help="write the source's patient, study and dates")
@click.option("--description", help="SeriesDescription of what is written")
@share_options
def main(
    run: Path,
    sources: Path,
    out: Path,
    direction: str,
    key_path: Path | None,
    keep_identity: bool,
    description: str | None,
    address: str | None,
    workers: int | None,
    cpus: float,
    gpus: float,
    memory: float,
) -> None:
    """Translate all series below a folder with a Ray cluster; a second run does what is missing.

    Paths must be the same on every node. Ends with 0 when all is done or told as failed, 130 when
    it was stopped, 1 when nothing could be translated.
    """
    if (key_path is None) != keep_identity:
        raise click.UsageError("give --key FILE, or --keep-identity")
    with job_exit():
        outcomes = translate_on_cluster(
            run,
            sources,
            out,
            key_path=key_path,
            direction=1 if direction == "1to2" else 2,
            description=description,
            address=address,
            share=Share(workers, cpus, gpus, int(memory * 2**30)),
        )
    failed = sum(outcome.failure is not None for outcome in outcomes)
    click.echo(f"{len(outcomes) - failed} series translated, {failed} failed; {out / _REPORT}")
    if outcomes and failed == len(outcomes):
        raise click.ClickException("no series could be translated")


if __name__ == "__main__":
    # By its name: what is pickled here must be found by actors, whose __main__ is another.
    from launch.translate import main as by_name

    by_name()
