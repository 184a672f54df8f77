"""Ingest: from files on disk to volumes in the store, one series after the other."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from storage.body import body_mask, frame_origin
from storage.catalogue import Row
from storage.errors import GeometryError, IngestError, StoreError
from storage.grid import canonical, resample, same_grid
from storage.ingest_report import IngestReport, SeriesReport, Verdict
from storage.manifest import Entry, read_manifest, single_entry
from storage.pseudonym import Pseudonyms, load_key, scrub, text_values
from storage.series import Refusal, Source, find_sources, read_source
from storage.store import Store, Writer
from storage.volume import Volume

__all__ = ["INGEST_VERSION", "Progress", "ingest"]

# To be raised with every change that gives other voxels, body masks or frames for the same files:
# volumes of an older version are then done again.
INGEST_VERSION = 2

# The catalogue is written as a whole: after every volume would be quadratic in their number. What
# a crash loses of uncommitted work is bounded by this instead.
_COMMIT_EVERY_S = 10.0

Progress = Callable[[int, int, SeriesReport], None]


def ingest(
    root: Path | None,
    store_path: Path,
    *,
    manifest: Path | None = None,
    domain: int | None = None,
    phase: str | None = None,
    spacing_mm: tuple[float, float, float] | None = None,
    key_path: Path,
    progress: Progress | None = None,
) -> IngestReport:
    """Bring all series under `root` (of one domain), or those that a manifest names, into a store.

    manifest: CSV or Parquet, see `read_manifest`; instead of root, domain and phase.
    spacing_mm: z, y, x of a new store's grid; None lets every volume keep its own, so that its
    voxels come out again as they went in. An existing store keeps the grid it was made with.
    key_path: the key of the pseudonyms, outside the store; made when there is none.
    progress: called with (series done, series in all, the last one's report).

    A series whose files are unchanged since an earlier ingest is skipped. A series that cannot be
    read is refused with a reason, and nothing of it stays in the store, not even what an earlier
    state of its files had left there; the others go on. The report is kept in the store as
    `ingest-report.parquet`, free of names, UIDs and paths.

    Raises IngestError for an unusable manifest, StoreError when the store is being written to by
    another process, has another grid or key, or when the disk is full.
    """
    if manifest is not None and root is None:
        entries = read_manifest(manifest)
    elif root is not None and manifest is None:
        entries = [single_entry(root, domain, phase)]
    else:
        raise IngestError(f"root is {root}, manifest is {manifest}; expected exactly one of them")
    names = load_key(key_path, store_path)
    store = Store.open_or_create(store_path, spacing_mm)
    with store.writer() as writer:
        writer.bind_key(names.of("key"))
        run = _Run(writer, names)
        try:
            jobs = [job for entry in entries for job in _jobs(entry, names)]
            for done, job in enumerate(jobs, start=1):
                outcome = run.one(job)
                if progress is not None:
                    progress(done, len(jobs), outcome)
        finally:
            run.commit()
            writer.sweep()
            report = IngestReport(tuple(run.reports))
            report.write(store_path / "ingest-report.parquet")
    return report


@dataclass(frozen=True)
class _Job:
    """One series to ingest, or what was found in place of one (`refusal`)."""

    entry: Entry
    path: Path  # for the user's eyes; never stored
    series: str  # its pseudonym: the volume id
    source: Source | None
    refusal: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        return self.source.files if self.source else (self.path,)


def _jobs(entry: Entry, names: Pseudonyms) -> Iterator[_Job]:
    try:
        sources, refusals = find_sources(entry.path)
        if not sources and not refusals:
            raise IngestError(f"{entry.path}: holds no DICOM series and no NIfTI file")
    except (IngestError, OSError) as error:
        sources, refusals = [], [Refusal(entry.path, str(error))]
    for source in sources:
        first = source.files[0]
        # A series is known by its UID wherever it lies; a NIfTI file only by its place.
        identity = source.key if source.kind == "dicom" else _place(first, entry)
        path = first if len(source.files) == 1 else first.parent
        yield _Job(entry, path, names.of("series", source.kind, identity), source)
    for refusal in refusals:
        series = names.of("path", _place(refusal.path, entry))
        yield _Job(entry, refusal.path, series, None, refusal.reason)


def _place(path: Path, entry: Entry) -> str:
    return os.path.relpath(path, entry.base)


class _Run:
    """One ingest into one store: what was there, what is staged, what has been said."""

    def __init__(self, writer: Writer, names: Pseudonyms) -> None:
        self.reports: list[SeriesReport] = []
        self._writer = writer
        self._names = names
        self._known = {row.volume_id: row for row in writer.rows}
        self._seen: dict[str, _Job] = {}
        self._staged: list[Row] = []
        self._removed: list[str] = []
        self._committed_at = time.monotonic()
        self._versions = {name: version(name) for name in ("pmg", "pydicom", "simpleitk", "zarr")}

    def one(self, job: _Job) -> SeriesReport:
        """Ingest, skip or refuse one series. What is wrong with it does not leave this method."""
        verdict, reason = self._verdict(job)
        report = SeriesReport(
            path=job.path,
            series=job.series,
            domain=job.entry.domain,
            phase=job.entry.phase,
            files=len(job.files),
            verdict=verdict,
            reason=reason,
            stored_reason=_without_names(reason, job, self._names) if reason else "",
        )
        self.reports.append(report)
        if time.monotonic() - self._committed_at > _COMMIT_EVERY_S:
            self.commit()
        return report

    def commit(self) -> None:
        if self._staged or self._removed:
            self._writer.commit(self._staged, removed=self._removed)
        self._staged, self._removed = [], []
        self._committed_at = time.monotonic()

    def _verdict(self, job: _Job) -> tuple[Verdict, str]:
        if job.source is None:
            return "refused", job.refusal
        twin = self._seen.setdefault(job.series, job)
        if twin is not job:
            return "refused", (
                f"{job.path}: this series came earlier in this ingest, as domain "
                f"{twin.entry.domain}, phase {twin.entry.phase}; expected each one once"
            )
        known = self._known.get(job.series)
        source_digest = ""
        try:
            source_digest = _source_digest(job.source, job.entry, self._names)
            if known and (known.source_digest, known.ingest_version) == (
                source_digest,
                INGEST_VERSION,
            ):
                return "skipped", ""
            self._staged.append(self._ingested(job, job.source, source_digest))
            return "ingested", ""
        except StoreError:
            raise
        except (GeometryError, IngestError) as error:
            reason = str(error)
        except Exception as error:  # hostile files raise what no list of exceptions foresees
            reason = f"{job.path}: cannot be read ({error!r})"
        # An earlier state of these files is no volume of the cohort any more.
        if known is not None and source_digest not in ("", known.source_digest):
            self._removed.append(job.series)
        return "refused", reason

    def _ingested(self, job: _Job, source: Source, source_digest: str) -> Row:
        read, headers = read_source(source)
        volume = canonical(read)
        steps = ["HU", "canonical axes"]
        if self._writer.spacing_mm is not None:
            own = volume
            volume = resample(own, self._writer.spacing_mm)
            steps += [] if same_grid(own, volume) else ["resampled"]
        body = body_mask(volume)
        return self._writer.stage(
            volume,
            body,
            frame_origin(volume, body),
            volume_id=job.series,
            patient=_patient(job, headers, self._names),
            domain=job.entry.domain,
            phase=job.entry.phase,
            source_digest=source_digest,
            ingest_version=INGEST_VERSION,
            provenance={
                "source": _origin(source, read, headers),
                "steps": [*steps, "int16"],
                "versions": self._versions,
            },
        )


def _source_digest(source: Source, entry: Entry, names: Pseudonyms) -> str:
    """Keyed hash of the files' contents, whatever their names and order, and of their labels."""
    files = []
    for path in source.files:
        with path.open("rb") as file:
            files.append(hashlib.file_digest(file, "sha256").digest())
    labels = (str(entry.domain), entry.phase, entry.patient or "")
    return names.digest("source", source.kind, *labels, *sorted(files)).hex()


def _patient(job: _Job, headers: Sequence[Dataset], names: Pseudonyms) -> str:
    """Pseudonym of the patient: the manifest's word, the header's, or one of the study or file."""
    if job.entry.patient:
        return names.of("patient", job.entry.patient)
    if not headers:
        return names.of("patient", "file", _place(job.path, job.entry))
    named = str(headers[0].get("PatientID") or "").strip()
    if named:
        return names.of("patient", named)
    return names.of("patient", "study", str(headers[0].get("StudyInstanceUID") or job.series))


def _origin(source: Source, volume: Volume, headers: Sequence[Dataset]) -> dict[str, Any]:
    """What a volume was before. Numbers and our own words only: any text may name the patient."""
    acquisition = {}
    for keyword in ("KVP", "SliceThickness"):
        try:
            acquisition[keyword] = float(headers[0][keyword].value)
        except (IndexError, KeyError, TypeError, ValueError):
            continue
    return {
        "kind": source.kind,
        "files": len(source.files),
        "shape": volume.shape,
        "spacing_mm": volume.spacing_mm,
        "acquisition": acquisition,
    }


def _without_names(reason: str, job: _Job, names: Pseudonyms) -> str:
    """The reason as the store may keep it."""
    private = {job.entry.patient or "", *job.entry.base.parts}
    for path in job.files:
        private.update(Path(_place(path, job.entry)).parts)
        is_nifti = job.source is not None and job.source.kind == "nifti"
        if path.is_file() and not is_nifti:
            try:
                private |= text_values(path)
            except Exception:  # what cannot be parsed cannot be searched for names either
                return "not readable; the reason was shown when the series was refused"
    return scrub(reason, names, private, job.files)
