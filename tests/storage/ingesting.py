"""Ingests of small series, which the tests of ingest share."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from storage.ingest import ingest
from storage.ingest_report import IngestReport
from storage.store import Store
from storage.workers import Workers

SHAPE = (14, 48, 56)


@dataclass(frozen=True)
class Ingests:
    """Ingests into stores, with the key beside each: `run(manifest, store)`."""

    workers: Workers

    def __call__(self, manifest: Path, store: Path, **options: Any) -> IngestReport:
        return self.below(None, store, manifest=manifest, **options)

    def below(self, root: Path | None, store: Path, **options: Any) -> IngestReport:
        own = {"key_path": store.parent / "key", "executor": self.workers}
        return ingest(root, store, **(own | options))


def write_nifti(path: Path, hu: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-1.25, -1.5, 3.0, 1.0])
    affine[:3, 3] = [35.0, 36.5, -20.0]
    nib.save(nib.Nifti1Image(hu.T, affine), path)


def write_manifest(path: Path, *lines: tuple[str, ...]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("path", "domain", "phase", "patient")[: len(lines[0])], *lines]
        )
    return path


def verdicts(report: IngestReport) -> dict[str, int]:
    kinds = ("ingested", "skipped", "refused")
    return {kind: report.count(kind) for kind in kinds if report.count(kind)}  # type: ignore[arg-type]


def digests(store: Path) -> dict[str, str]:
    return {row.volume_id: row.digest for row in Store.open(store).rows}
