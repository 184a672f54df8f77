"""Evaluate a model over a cohort: `python -m launch.evaluate --run RUN --store STORE --out FOLDER`.

The figures of every volume or case are kept in a folder of its own under OUT, which appears when it
is complete; a second run does what is missing and writes the report anew over all of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from launch.cluster import cluster
from launch.cohort import Share, over_cluster, share_options, show_outcome
from launch.job_exit import job_exit
from launch.run_folder import RunFolder
from pmg.assess import Assessor, read_assessed, write_assessed
from pmg.cases import Case, find_cases
from pmg.config import LaunchConfig, load_config
from pmg.done import finishing, is_done, made_by
from pmg.model import Domain, other
from pmg.report import write_report
from pmg.summary import Row, summarise
from pmg.tables import console_table, write_tables
from pmg.weights import model_folder
from storage.errors import IngestError
from storage.place import Place
from storage.pseudonym import load_key, throwaway_key
from storage.sampling import split_patients
from storage.store import Store

__all__ = ["CohortEvaluation", "evaluate_on_cluster"]

_MOST_SHOWN = 2  # volumes or cases on the report's pictures


@dataclass(frozen=True)
class _Item:
    """One volume of a store, or one case on disk."""

    name: str
    subject: str
    case: Case | None
    show: bool


@dataclass(frozen=True)
class CohortEvaluation:
    """What a worker needs to evaluate items: picklable, called once for the model.

    store: of the items that are volumes. targets: see `pmg.assess`. key_path: of the cases'
    pseudonyms.
    """

    model: Path
    out: Path
    by: str
    direction: Domain
    store: str | None
    targets: str | None
    key_path: Path | None

    def __call__(self) -> _Evaluating:
        return _Evaluating(self)


class _Evaluating:
    """A loaded model that evaluates one item after another."""

    def __init__(self, plan: CohortEvaluation) -> None:
        self._plan = plan
        self._assessor = Assessor.open(plan.model, plan.direction, targets=plan.targets)
        self._store = None if plan.store is None else Store.open(plan.store)
        self._names = (
            throwaway_key() if plan.key_path is None else load_key(plan.key_path, plan.out)
        )

    def __call__(self, item: _Item) -> str:
        """Returns what the report says of the real scans that were compared with."""
        with finishing(self._plan.out / item.name, self._plan.by) as folder:
            if item.case is not None:
                one = self._assessor.case(item.case, self._names, folder, show=item.show)
            else:
                assert self._store is not None
                volume = self._store.read(item.name)
                one = self._assessor.volume(item.name, volume, item.subject, show=item.show)
            write_assessed(folder, one)
        return self._assessor.compared


def evaluate_on_cluster(
    run: Path,
    out: Path,
    *,
    store: str | None = None,
    cases: Path | None = None,
    direction: Domain = 1,
    held_out: bool = False,
    targets: str | None = None,
    key_path: Path | None = None,
    address: str | None = None,
    share: Share | None = None,
    console: Console | None = None,
) -> tuple[list[Row], int]:
    """Measure the volumes of a store or the cases of a folder; returns the rows, and the failures.

    held_out: only the patients that training held out by data.validation_fraction. targets: real
    scans of the other domain to compare with; by default those of the store. Raises IngestError if
    there is nothing to evaluate or nothing could be.
    """
    console = console or Console()
    config = load_config(model_folder(run) / "config.yaml")
    address_of_store = None if store is None else Place.of(store).address
    items = _volumes(address_of_store, config, direction, held_out) if store else _cases(cases)
    targets = targets or address_of_store
    results = out.resolve() / "cases"
    by = made_by(run, direction=direction, targets=targets, store=address_of_store)
    plan = CohortEvaluation(
        run.resolve(),
        results,
        by,
        direction,
        address_of_store,
        targets,
        key_path and key_path.resolve(),
    )
    left = [item for item in items if not is_done(results / item.name, by)]
    console.print(f"{len(items)} to evaluate, {len(items) - len(left)} of them done")
    started, failed, compared = time.monotonic(), 0, "see the earlier run"
    with cluster(LaunchConfig(address=address)) if left else nullcontext():
        for done, outcome in enumerate(over_cluster(plan, left, share or Share()), 1):
            item = left[outcome.index]
            show_outcome(console, done, len(left), item.name, started, outcome.failure)
            failed += outcome.failure is not None
            compared = outcome.result or compared
    finished = [item for item in items if is_done(results / item.name, by)]
    if not finished:
        raise IngestError(f"evaluation {out}: none of {len(items)} could be evaluated")
    every = [read_assessed(results / item.name) for item in finished]
    rows = summarise([one.result for one in every])
    write_tables(out, rows, [one.result for one in every])
    report = write_report(
        out,
        title="pmg: translation report",
        rows=rows,
        panels=[panel for one in every for panel in one.panels],
        config=config,
        history=list(RunFolder(run).read_metrics()),
        facts={
            "model": str(run),
            "direction": f"domain {direction} to {other(direction)}",
            "evaluated": f"{len(finished)} of {store or cases}, {failed} failed",
            "real scans to compare with": compared,
            "evaluation": f"{time.monotonic() - started:.0f} s",
        },
    )
    console.print(console_table(rows, console.width))
    console.print(f"report: {report}", soft_wrap=True)
    return rows, failed


def _volumes(store: str | None, config: Any, direction: Domain, held_out: bool) -> Sequence[_Item]:
    rows = Store.open(str(store)).rows
    if held_out:
        _, rows = split_patients(rows, config.data.validation_fraction, config.train.seed)
    chosen = sorted((r.volume_id, r.patient) for r in rows if r.domain == direction)
    if not chosen:
        raise IngestError(
            f"store {store}: no volume of domain {direction}"
            + (
                f" that training held out (data.validation_fraction "
                f"{config.data.validation_fraction:g})"
                if held_out
                else ""
            )
        )
    return [_Item(name, subject, None, n < _MOST_SHOWN) for n, (name, subject) in enumerate(chosen)]


def _cases(folder: Path | None) -> Sequence[_Item]:
    assert folder is not None
    found = find_cases(folder.resolve())
    return [_Item(case.name, case.name, case, n < _MOST_SHOWN) for n, case in enumerate(found)]


@click.command()
@click.option(
    "--run",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="a run's folder, or its model folder",
)
@click.option("--store", metavar="FOLDER|URL", help="whose volumes are translated and measured")
@click.option(
    "--cases",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="instead of a store: cases as `pmg evaluate` takes them, with a truth where it is known",
)
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER"
)
@click.option("--direction", type=click.Choice(["1to2", "2to1"]), default="1to2", show_default=True)
@click.option("--held-out", is_flag=True, help="only the patients that training did not see")
@click.option("--targets", metavar="FOLDER|URL", help="real scans to compare with; or --store's")
@click.option(
    "--key",
    "key_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="file with the secret key of the cases' pseudonyms",
)
@share_options
def main(
    run: Path,
    store: str | None,
    cases: Path | None,
    direction: str,
    address: str | None,
    workers: int | None,
    cpus: float,
    gpus: float,
    memory: float,
    **options: Any,
) -> None:
    """Measure a model over a store or over cases with a Ray cluster, and write the report.

    Paths must be the same on every node. Ends with 0 when all is done or told as failed, 130 when
    it was stopped, 1 when nothing could be evaluated.
    """
    if (store is None) == (cases is None):
        raise click.UsageError("give --store or --cases")
    with job_exit():
        _, failed = evaluate_on_cluster(
            run,
            store=store,
            cases=cases,
            direction=1 if direction == "1to2" else 2,
            address=address,
            share=Share(workers, cpus, gpus, int(memory * 2**30)),
            **options,
        )
    if failed:
        click.echo(f"{failed} failed; the same command tries them again")


if __name__ == "__main__":
    # By its name: what is pickled here must be found by actors, whose __main__ is another.
    from launch.evaluate import main as by_name

    by_name()
