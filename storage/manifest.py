"""The manifest: which folders and files an ingest takes in, and what the user says they are."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import IngestError

__all__ = ["Entry", "domain_of", "phase_of", "read_manifest", "rule_entry", "single_entry"]

# A phase goes into the store as it is written: it is a label, no place for notes on a patient.
_PHASE = re.compile(r"[A-Za-z][A-Za-z _-]{0,31}")


@dataclass(frozen=True)
class Entry:
    """One line: `path` is a folder of series or one file.

    base: the folder that paths are told apart by; patient: who it is, where files do not say it.
    series: the SeriesInstanceUID of the one that is meant, of several below `path`.
    mask: a NIfTI label map on the points of that series.
    """

    path: Path
    base: Path
    domain: int
    phase: str
    patient: str | None = None
    series: str | None = None
    mask: Path | None = None


def read_manifest(path: Path) -> list[Entry]:
    """Lines of a CSV file or Parquet table with columns path, domain (1 or 2) and phase.

    Paths are relative to the manifest's folder. An optional column `patient` names the patient
    where DICOM headers don't (NIfTI, or exports with one PatientID for all); only its pseudonym
    enters the store. An optional column `series` holds the SeriesInstanceUID of the one that is
    meant where a folder holds several. An optional column `mask` holds the path of a NIfTI label
    map, of calcium for instance, on the series' own points; what is not 0 in it is marked in the
    store for patches to be drawn there. Other columns are for the reader.

    Raises IngestError naming the line and the column.
    """
    lines = _lines(path)
    if not lines:
        raise IngestError(f"{path}: no lines; expected columns path, domain, phase and one or more")
    return [_entry(path, number, line) for number, line in enumerate(lines, start=1)]


def single_entry(root: Path, domain: int | None, phase: str | None) -> Entry:
    """All of a folder (or one file) as one domain. Raises IngestError for another than 1 or 2."""
    where = f"{root}: "
    base = root if root.is_dir() else root.parent
    return Entry(root, base, domain_of(domain, where), phase_of(phase, where))


def rule_entry(root: Path) -> Entry:
    """All of a folder (or one file), each series labelled by rules: domain 0 until then."""
    return Entry(root, root if root.is_dir() else root.parent, 0, "by rules")


def _entry(manifest: Path, number: int, line: Mapping[str, Any]) -> Entry:
    where = f"{manifest}, line {number}: "
    for column in ("path", "domain", "phase"):
        if column not in line:
            raise IngestError(f"{where}column {column!r} is missing; there are {sorted(line)}")
    if not line["path"]:
        raise IngestError(f"{where}path is empty; expected a folder or file")
    return Entry(
        path=manifest.parent / str(line["path"]),
        base=manifest.parent,
        domain=domain_of(line["domain"], where),
        phase=phase_of(line["phase"], where),
        patient=str(line["patient"]) if line.get("patient") else None,
        series=str(line["series"]).strip() if line.get("series") else None,
        mask=manifest.parent / str(line["mask"]) if line.get("mask") else None,
    )


def domain_of(value: object, where: str) -> int:
    """1 or 2. Raises IngestError, beginning with `where`, for all else."""
    if str(value).strip() not in ("1", "2"):
        raise IngestError(f"{where}domain is {value!r}; expected 1 or 2")
    return int(str(value))


def phase_of(value: object, where: str) -> str:
    """A phase's name. Raises IngestError, beginning with `where`, for what is no label."""
    phase = str(value or "unspecified").strip()
    if not _PHASE.fullmatch(phase):
        raise IngestError(
            f"{where}phase is {phase!r}; expected up to 32 letters, spaces, - and _, "
            "e.g. 'portal venous'"
        )
    return phase


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        if path.suffix == ".parquet":
            lines: list[dict[str, Any]] = pq.read_table(path).to_pylist()
            return lines
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise IngestError(f"{path}: not readable as a CSV or Parquet manifest: {error}") from error
