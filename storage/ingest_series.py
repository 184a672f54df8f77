"""The work on one series, in a process of its own: from files to a volume to be committed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from blake3 import blake3
from pydicom.dataset import Dataset

from storage.array import as_int16
from storage.body import find_body
from storage.bounds import reading
from storage.catalogue import Row
from storage.errors import GeometryError, IngestError, StoreError
from storage.grid import canonical, nearest_like, reorder_like, resample, same_grid
from storage.ingest_report import Verdict
from storage.manifest import Entry
from storage.nifti import read_nifti
from storage.place import Place
from storage.provenance import provenance
from storage.pseudonym import Pseudonyms, load_key, scrub, text_values
from storage.rules import Rules, label_source
from storage.series import Source, read_source
from storage.store import Spacing, measuring, stage_volume
from storage.volume import Volume

__all__ = [
    "INGEST_VERSION",
    "Cohort",
    "Job",
    "Outcome",
    "file_stat",
    "ingest_series",
    "place_of",
    "source_stat",
    "stat_digest",
    "without_names",
]

# To be raised with every change that gives other voxels, body masks or frames for the same files:
# volumes of an older version are then done again.
INGEST_VERSION = 5

# More voxels than any CT has, 1 GiB as int16: a grid that is too fine for the series, or a series
# that claims to be metres long.
_MAX_VOXELS = 1 << 29
_HASH_BYTES = 1 << 20
_MASK_WITHIN = 0.1  # of a voxel; NIfTI rounds positions


@dataclass(frozen=True)
class Cohort:
    """What all series of one ingest share. It may travel between machines: instead of the key it
    holds the key's path, and `key_check`, which is the pseudonym of "key", to know the key by.

    rules: give the labels, instead of the entries.
    """

    place: Place
    spacing_mm: Spacing | None
    key_path: Path
    key_check: str
    rules: Rules | None = None

    @property
    def names(self) -> Pseudonyms:
        return _names(self.key_path, self.place.address, self.key_check)


@dataclass(frozen=True)
class Job:
    """One series to ingest, or what was found in place of one (`refusal`).

    path: for the user's eyes, never stored. series: its pseudonym, the volume id.
    stat: see `source_stat`. unchanged: the store's volume is of files with that stat.
    known_digest: the source digest of the volume that the store has of it, by this version of the
    ingest; "" for none.
    """

    entry: Entry
    path: Path
    series: str
    files: tuple[Path, ...]
    source: Source | None = None
    refusal: str = ""
    stat: str = ""
    known_digest: str = ""
    unchanged: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a job. reason: may name the patient; stored_reason: without names, UIDs and
    paths. source_digest: "" where the files could not be read. row: of the staged volume."""

    verdict: Verdict
    domain: int
    phase: str
    reason: str = ""
    stored_reason: str = ""
    source_digest: str = ""
    row: Row | None = None


def ingest_series(cohort: Cohort, job: Job) -> Outcome:
    """Read, bring onto the grid, find the body, and stage the volume in the store.

    What is wrong with the series becomes a refusal. Raises StoreError where the store cannot be
    written or the key is another one.
    """
    names = cohort.names
    entry, digest = job.entry, ""
    domain, phase = entry.domain, entry.phase
    try:
        if job.source is None:
            raise IngestError(job.refusal)
        if cohort.rules is not None:
            domain, phase = label_source(job.source, cohort.rules)
        labels = (str(domain), phase, entry.patient or "")
        if job.known_digest:
            digest = _source_digest(job.source, entry, labels, names, {})
            if digest == job.known_digest:
                return Outcome("skipped", domain, phase, source_digest=digest)
        digests: dict[Path, bytes] = {}
        volume, headers = read_source(job.source, digests)
        mask = None if entry.mask is None else _mask(entry.mask, volume)
        digest = _source_digest(job.source, entry, labels, names, digests)
        if source_stat(job.source.files, entry, names, cohort.rules) != job.stat:
            digest = ""
            raise IngestError(
                f"{job.path}: its files change while they are read; run again when they are all "
                "there"
            )
        row = _staged(cohort, job, job.source, (volume, headers, mask), (domain, phase), digest)
        return Outcome("ingested", domain, phase, source_digest=digest, row=row)
    except StoreError:
        raise
    except (GeometryError, IngestError) as error:
        reason = str(error)
    except MemoryError as error:
        reason = (
            f"{job.path}: takes more memory than a worker may have; use fewer workers ({error})"
        )
    except Exception as error:  # hostile files raise what no list of exceptions foresees
        reason = f"{job.path}: cannot be read ({error!r})"
    return Outcome("refused", domain, phase, reason, without_names(reason, job, names), digest)


def source_stat(files: Sequence[Path], entry: Entry, names: Pseudonyms, rules: Rules | None) -> str:
    """Keyed hash of the files' relative paths, sizes and times, and of the labels they came with.

    It changes when a file does, without the contents being read: a write sets the time of change
    (ctime) too, which no program can set back. Raises IngestError for a file that is not there.
    """
    return stat_digest([file_stat(file, entry) for file in files], entry, names, rules)


def file_stat(file: Path, entry: Entry) -> str:
    """Relative path, size and times of one file."""
    try:
        status = os.stat(file)
    except OSError as error:
        raise IngestError(f"{file}: cannot be read: {error.strerror}") from error
    name = str(file).removeprefix(f"{entry.base}{os.sep}")
    return f"{name}\0{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def stat_digest(stats: Sequence[str], entry: Entry, names: Pseudonyms, rules: Rules | None) -> str:
    """`source_stat` of files whose stats are known."""
    mask = file_stat(entry.mask, entry) if entry.mask else ""
    labels = repr((entry.domain, entry.phase, entry.patient, mask, rules))
    return names.digest("stat", labels, *sorted(stats)).hex()


def place_of(path: Path, entry: Entry) -> str:
    """What tells files apart that have no UID."""
    return os.path.relpath(path, entry.base)


def without_names(reason: str, job: Job, names: Pseudonyms, *, read_headers: bool = True) -> str:
    """The reason as the store may keep it.

    read_headers: look for names in the files' headers, which is for a bounded process only.
    """
    private = {job.entry.patient or "", job.entry.series or "", *job.entry.base.parts}
    is_nifti = job.source is not None and job.source.kind == "nifti"
    for path in job.files:
        private.update(Path(place_of(path, job.entry)).parts)
        if read_headers and not is_nifti and path.is_file():
            try:
                with reading(path):
                    private |= text_values(path)
            except Exception:  # what cannot be parsed cannot be searched for names either
                return "not readable; the reason was shown when the series was refused"
    if job.entry.mask is not None:
        private.update(Path(place_of(job.entry.mask, job.entry)).parts)
    return scrub(reason, names, private, job.files)


@lru_cache(maxsize=4)
def _names(key_path: Path, store: str, key_check: str) -> Pseudonyms:
    if not key_path.exists():
        raise StoreError(f"key file {key_path} is missing on this machine; every worker needs it")
    names = load_key(key_path, Path(store))
    if names.of("key") != key_check:
        raise StoreError(
            f"key file {key_path} on this machine is another one than where the ingest was started"
        )
    return names


def _staged(
    cohort: Cohort,
    job: Job,
    source: Source,
    image: tuple[Volume, Sequence[Dataset], Volume | None],
    labels: tuple[int, str],
    digest: str,
) -> Row:
    read, headers, read_mask = image
    own = canonical(read)
    volume = as_int16(own if cohort.spacing_mm is None else _resampled(own, cohort.spacing_mm, job))
    with measuring(volume) as measured:
        body, origin = find_body(volume)
        return stage_volume(
            cohort.place,
            cohort.spacing_mm,
            volume,
            body,
            origin,
            volume_id=job.series,
            patient=_patient(job, headers, cohort.names),
            domain=labels[0],
            phase=labels[1],
            source_digest=digest,
            source_stat=job.stat,
            ingest_version=INGEST_VERSION,
            provenance=provenance(source, headers, read, own, volume, body, origin),
            mask=None if read_mask is None else nearest_like(read_mask, volume) != 0,
            measured=measured,
        )


def _resampled(own: Volume, spacing_mm: Spacing, job: Job) -> Volume:
    extent_mm = np.array(own.shape) * own.spacing_mm
    voxels = float(np.prod(np.ceil(extent_mm / spacing_mm)))
    if voxels > _MAX_VOXELS:
        raise GeometryError(
            f"{job.path}: {extent_mm.round().tolist()} mm (z, y, x) make {voxels:.3g} voxels of "
            f"{spacing_mm} mm; expected at most {_MAX_VOXELS}"
        )
    return resample(own, spacing_mm)


def _mask(path: Path, volume: Volume) -> Volume:
    """The label map, voxel by voxel in the order of the volume that it lies on."""
    with reading(path):
        mask = reorder_like(read_nifti(path), volume)
    if not same_grid(mask, volume, within_mm=_MASK_WITHIN * min(volume.spacing_mm)):
        raise GeometryError(
            f"{path}: has shape {mask.shape}, spacing {_rounded(mask.spacing_mm)} mm and its first "
            f"voxel at {_rounded(mask.affine[:3, 3])} mm (LPS); expected the points of its series: "
            f"shape {volume.shape}, spacing {_rounded(volume.spacing_mm)} mm, first voxel at "
            f"{_rounded(volume.affine[:3, 3])} mm"
        )
    return Volume(mask.hu, volume.affine)


def _rounded(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in values)


def _patient(job: Job, headers: Sequence[Dataset], names: Pseudonyms) -> str:
    """Pseudonym of the patient: the manifest's word, the header's, or one of the study or file."""
    if job.entry.patient:
        return names.of("patient", job.entry.patient)
    if not len(headers):
        return names.of("patient", "file", place_of(job.path, job.entry))
    named = str(headers[0].get("PatientID") or "").strip()
    if named:
        return names.of("patient", named)
    return names.of("patient", "study", str(headers[0].get("StudyInstanceUID") or job.series))


def _source_digest(
    source: Source,
    entry: Entry,
    labels: Sequence[str],
    names: Pseudonyms,
    known: Mapping[Path, bytes],
) -> str:
    """Keyed hash of the files' contents, whatever their names and order, and of their labels.

    known: the BLAKE3 of files that have been read; the others are read here.
    """
    files = (*source.files, *([entry.mask] if entry.mask else []))
    digests = [known.get(file) or _digest(file) for file in files]
    return names.digest("source", source.kind, *labels, *sorted(digests)).hex()


def _digest(path: Path) -> bytes:
    """BLAKE3 of a file's contents. Raises IngestError for a file beyond the bounds of `reading`."""
    digest = blake3()
    buffer = bytearray(_HASH_BYTES)
    try:
        with reading(path), path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(memoryview(buffer)[:count])
    except OSError as error:
        raise IngestError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.digest()
