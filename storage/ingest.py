"""Ingest: from files on disk to volumes in the store, many series at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from storage.catalogue import Catalogue, Row
from storage.errors import IngestError
from storage.ingest_report import IngestReport, SeriesReport
from storage.ingest_series import (
    INGEST_VERSION,
    Cohort,
    Job,
    Outcome,
    ingest_series,
    without_names,
)
from storage.interrupts import uninterrupted
from storage.manifest import Entry, read_manifest, rule_entry, single_entry
from storage.place import Place
from storage.plan import Known, Line, Planner, listed
from storage.pseudonym import load_key
from storage.rules import read_rules
from storage.store import Spacing, Store, Writer
from storage.workers import Done, Executor, Lost, Workers, default_workers, memory_limit

__all__ = ["INGEST_VERSION", "Progress", "Step", "ingest"]

# The catalogue is written as a whole: after every volume would be quadratic in their number. What
# a crash loses of uncommitted work is bounded by this instead.
_COMMIT_EVERY_S = 10.0
_COMMIT_SHARE = 0.05  # of the time, at most, for catalogues that take long to write


@dataclass(frozen=True)
class Step:
    """How far an ingest is; `report` is the series that was just done, None while headers are read.

    files: of all series done, scanned: whose headers have been read. share: of the whole ingest,
    by lines of the manifest and the series that are known so far.
    """

    report: SeriesReport | None
    series: int
    files: int
    scanned: int
    share: float


Progress = Callable[[Step], None]


def ingest(
    root: Path | None,
    store: str | os.PathLike[str] | Place,
    *,
    manifest: Path | None = None,
    domain: int | None = None,
    phase: str | None = None,
    rules: Path | None = None,
    spacing_mm: Spacing | None = None,
    key_path: Path,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> IngestReport:
    """Bring all series under `root` (of one domain), or those that a manifest names, into a store.

    store: a path or URL. manifest: CSV or Parquet, see `read_manifest`; instead of root, domain and
    phase. rules: see `read_rules`; instead of domain and phase.
    spacing_mm: z, y, x of a new store's grid; None lets every volume keep its own, so that its
    voxels come out again as they went in. An existing store keeps the grid it was made with.
    key_path: the key of the pseudonyms, outside the store; made when there is none.
    workers: processes of this machine, by default one for each core that there is memory for; or an
    executor that does the work elsewhere.

    A series whose files are unchanged since an earlier ingest is skipped, unread where their sizes
    and times say so, else by their contents. A series that cannot be read is refused with a reason,
    and nothing of it stays in the store, not even what an earlier state of its files had left
    there; the others go on. The report is kept in the store as `ingest-report.parquet` and
    `ingest-report.txt`, free of names, UIDs and paths.

    However it ends, what was done is committed first; only SIGKILL and the like lose what was done
    in the last seconds. Volumes lie in the store whole or not at all.

    Raises IngestError for an unusable manifest or rules, StoreError when the store is being written
    to by another process, has another grid or key, or when the disk is full.
    """
    entries = _entries(root, manifest, domain, phase, rules)
    cohort_rules = None if rules is None else read_rules(rules)
    place = Place.of(store)
    names = load_key(key_path, Path(place.address))
    opened = Store.open_or_create(place, spacing_mm)
    with opened.writer() as writer:
        writer.bind_key(names.of("key"))
        cohort = Cohort(place, writer.spacing_mm, key_path.resolve(), names.of("key"), cohort_rules)
        run = _Run(writer, cohort, len(entries), progress)
        try:
            # The workers end before what they left unfinished is swept.
            with _hands(workers, executor) as hands:
                planner = Planner(cohort, run.known, hands, run.scanned)
                for lines in listed(entries):
                    run.through(lines, planner, hands)
        finally:
            report = run.finish()
    return report


def _entries(
    root: Path | None,
    manifest: Path | None,
    domain: int | None,
    phase: str | None,
    rules: Path | None,
) -> list[Entry]:
    if (root is None) == (manifest is None):
        raise IngestError(f"root is {root}, manifest is {manifest}; expected exactly one of them")
    if root is None:
        assert manifest is not None
        if rules is not None or domain is not None or phase is not None:
            raise IngestError(
                f"{manifest} gives every line's domain and phase; expected no rules, domain or "
                "phase beside it"
            )
        return read_manifest(manifest)
    if rules is None:
        return [single_entry(root, domain, phase)]
    if domain is not None or phase is not None:
        raise IngestError(f"rules {rules} beside a domain or phase; expected one of them")
    return [rule_entry(root)]


def _hands(workers: int | None, executor: Executor | None) -> AbstractContextManager[Executor]:
    if executor is not None:
        return nullcontext(executor)
    count = default_workers() if workers is None else workers
    if count < 1:
        raise IngestError(f"workers is {count}; expected at least 1")
    return Workers(count, memory_limit(count))


class _Run:
    """One ingest into one store: what was there, what is staged, what has been said."""

    def __init__(
        self, writer: Writer, cohort: Cohort, lines: int, progress: Progress | None
    ) -> None:
        self._writer = writer
        self._cohort = cohort
        self._progress = progress
        self._lines, self._lines_done = lines, 0
        self._there = writer.rows
        self._positions = {name: n for n, name in enumerate(self._there.column("volume_id"))}
        self.known = _known(self._there)
        self._first: dict[str, Job] = {}
        self._jobs = 0  # of the lines that were done before
        self._reports: dict[int, SeriesReport] = {}
        self._files = self._scanned = 0
        self._staged: list[Row] = []
        self._removed: list[str] = []
        self._committed_at, self._commit_s = time.monotonic(), 0.0

    def scanned(self, files: int) -> None:
        self._scanned += files
        self._tell(None, 0.0)

    def through(self, lines: Sequence[Line], planner: Planner, hands: Executor) -> None:
        """Ingest, skip or refuse all series of some lines."""
        jobs = planner.jobs(lines)
        waiting = []
        for number, job in enumerate(jobs):
            outcome = self._without_work(job)
            if outcome is None:
                waiting.append(number)
            else:
                self._note(number, len(jobs), len(lines), job, outcome)
        work = partial(ingest_series, self._cohort)
        with closing(hands.map(work, (jobs[number] for number in waiting))) as outcomes:
            for done in outcomes:
                number = waiting[done.index]
                outcome = self._taken(jobs[number], done)
                self._note(number, len(jobs), len(lines), jobs[number], outcome, done)
                # Large catalogues take long to write: not more than a share of the time.
                pause = max(_COMMIT_EVERY_S, self._commit_s / _COMMIT_SHARE)
                if time.monotonic() - self._committed_at >= pause:
                    self._commit()
        self._jobs += len(jobs)
        self._lines_done += len(lines)

    def finish(self) -> IngestReport:
        """Commit, sweep what was begun, and leave the report."""
        report = IngestReport(tuple(one for _, one in sorted(self._reports.items())))
        try:
            self._commit()
        finally:
            self._writer.sweep()  # on a full disk it makes room for the report
            report.write(self._cohort.place)
        return report

    def _commit(self) -> None:
        started = time.monotonic()
        if self._staged or self._removed:
            with uninterrupted():
                self._writer.commit(self._staged, removed=self._removed)
                self._staged, self._removed = [], []
        self._committed_at = time.monotonic()
        self._commit_s = self._committed_at - started

    def _without_work(self, job: Job) -> Outcome | None:
        """What can be told of a job here; None for one that a worker must look at."""
        if job.refusal:
            return None
        twin = self._first.setdefault(job.series, job)
        if twin is not job:
            reason = (
                f"{job.path}: this series came earlier in this ingest, at {twin.path} as domain "
                f"{twin.entry.domain}, phase {twin.entry.phase}; expected each one once"
            )
            return self._refused(job, reason)
        if job.unchanged:
            known = self.known[job.series]
            return Outcome("skipped", known.domain, known.phase)
        return None

    def _taken(self, job: Job, done: Done[Outcome]) -> Outcome:
        """The outcome of a worker, with what it does to the catalogue taken down."""
        result = done.result
        outcome = self._refused(job, result.reason) if isinstance(result, Lost) else result
        if outcome.row is not None:
            self._staged.append(outcome.row)
        elif job.series in self._positions:
            if outcome.verdict == "skipped":  # the same contents in other files
                row = self._there[self._positions[job.series]]
                self._staged.append(replace(row, source_stat=job.stat))
            else:  # an earlier state of a refused series is no volume of the cohort any more
                self._removed.append(job.series)
        return outcome

    def _refused(self, job: Job, reason: str) -> Outcome:
        stored = without_names(reason, job, self._cohort.names, read_headers=False)
        return Outcome("refused", job.entry.domain, job.entry.phase, reason, stored)

    def _note(
        self,
        number: int,
        jobs: int,
        lines: int,
        job: Job,
        outcome: Outcome,
        done: Done[Outcome] | None = None,
    ) -> None:
        """Put a series into the report and tell of it."""
        report = SeriesReport(
            path=job.path,
            series=job.series,
            domain=outcome.domain,
            phase=outcome.phase,
            files=len(job.files),
            verdict=outcome.verdict,
            reason=outcome.reason,
            stored_reason=outcome.stored_reason,
            seconds=done.seconds if done else 0.0,
            worker=done.worker if done else -1,
        )
        self._reports[self._jobs + number] = report
        self._files += len(job.files)
        self._tell(report, lines * (len(self._reports) - self._jobs) / jobs)

    def _tell(self, report: SeriesReport | None, lines_of_these: float) -> None:
        if self._progress is not None:
            share = (self._lines_done + lines_of_these) / self._lines
            self._progress(Step(report, len(self._reports), self._files, self._scanned, share))


def _known(rows: Catalogue) -> dict[str, Known]:
    """The volumes that this version of the ingest has made."""
    names = ("volume_id", "source_digest", "source_stat", "domain", "phase")
    columns = (rows.column(name).tolist() for name in names)
    current = (rows.column("ingest_version") == INGEST_VERSION).tolist()
    known = (Known(*values) for values in zip(*columns, strict=True))
    return {one.volume_id: one for one, made in zip(known, current, strict=True) if made}
