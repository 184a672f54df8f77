"""Worker processes and the cohort that the tests of ingest share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ingesting import SHAPE, Ingests, write_manifest, write_nifti
from make_cohort import body_hu, write_dicom

from storage.workers import Workers


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    """Two that a file's tests share, since starting them takes longer than a test."""
    with Workers(2) as workers:
        yield workers


@pytest.fixture
def run(workers: Workers) -> Ingests:
    return Ingests(workers)


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """A manifest of two DICOM series of domain 1 and two NIfTI files of domain 2."""
    for number in (1, 2):
        hu = body_hu(SHAPE, number)
        write_dicom(tmp_path / "in" / f"ct{number}", hu, patient=f"P{number}")
        write_nifti(tmp_path / "in" / "late" / f"{number}.nii.gz", body_hu(SHAPE, 10 + number))
    return write_manifest(
        tmp_path / "in" / "manifest.csv",
        ("ct1", "1", "non-contrast"),
        ("ct2", "1", "non-contrast"),
        ("late", "2", "portal venous"),
    )
