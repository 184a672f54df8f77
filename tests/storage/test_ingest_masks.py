"""Masks beside the series: the cells that they mark, and those that do not fit."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from ingesting import SHAPE, Ingests, verdicts, write_manifest

from storage.store import Store


def write_mask(path: Path, labels: np.ndarray, affine: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(labels.astype(np.uint8).T, affine), path)


def masked(cohort: Path, mask: str) -> Path:
    """A manifest of the two NIfTI files, the first of them with this mask."""
    manifest = cohort.parent / "m.csv"
    with manifest.open("w", newline="") as file:
        lines = [("late/1.nii.gz", 2, "a", mask), ("late/2.nii.gz", 2, "a", "")]
        csv.writer(file).writerows([("path", "domain", "phase", "mask"), *lines])
    return manifest


@pytest.mark.parametrize("spacing_mm", [None, (4.0, 2.0, 2.0)])
def test_a_mask_marks_the_cells_that_it_touches(
    run: Ingests, cohort: Path, tmp_path: Path, spacing_mm: tuple[float, float, float] | None
) -> None:
    image = nib.load(cohort.parent / "late" / "1.nii.gz")
    labels = np.zeros(SHAPE)
    labels[8:11, 20:24, 30:33] = 3
    write_mask(cohort.parent / "calcium.nii.gz", labels, image.affine)
    report = run(masked(cohort, "calcium.nii.gz"), tmp_path / "s", spacing_mm=spacing_mm)
    store = Store.open(tmp_path / "s")
    row, without = (store.row(one.series) for one in report.series)
    assert without.mask_cells == b""
    bits = np.unpackbits(np.frombuffer(row.mask_cells, np.uint8), bitorder="little")
    cells = np.argwhere(bits[: np.prod(row.cells_grid)].reshape(row.cells_grid))
    # The marked voxels' bounds in the patient, against those of the marked cells.
    affine = np.reshape(row.affine, (4, 4))
    ends = [cells.min(axis=0), cells.max(axis=0) + 1] * np.array(row.cell_shape) - 0.5
    found = np.sort([(affine @ (*end, 1))[:3] for end in ends], axis=0)
    x, y, z = (30, 33), (20, 24), (8, 11)
    corners = [image.affine @ (i - 0.5, j - 0.5, k - 0.5, 1) for i in x for j in y for k in z]
    marked = np.array(corners)[:, :3] * (-1, -1, 1)
    near = np.array(row.spacing_mm[::-1]) / 2 + 0.01  # a nearest neighbour is half a voxel off
    slack = np.array(row.cell_shape[::-1]) * row.spacing_mm[::-1]
    assert (found[0] <= marked.min(axis=0) + near).all()
    assert (found[1] >= marked.max(axis=0) - near).all()
    assert (found[0] >= marked.min(axis=0) - slack - near).all()
    assert (found[1] <= marked.max(axis=0) + slack + near).all()


def test_another_mask_is_a_change(run: Ingests, cohort: Path, tmp_path: Path) -> None:
    affine = nib.load(cohort.parent / "late" / "1.nii.gz").affine
    manifest = masked(cohort, "calcium.nii.gz")
    for verdict in ("ingested", "skipped"):
        if verdict == "ingested":
            write_mask(cohort.parent / "calcium.nii.gz", np.ones(SHAPE), affine)
        assert run(manifest, tmp_path / "s").series[0].verdict == verdict
    labels = np.zeros(SHAPE)
    labels[3, 20, 20] = 1
    write_mask(cohort.parent / "calcium.nii.gz", labels, affine)
    assert run(manifest, tmp_path / "s").series[0].verdict == "ingested"


def test_a_mask_that_does_not_lie_on_its_series_is_refused(
    run: Ingests, cohort: Path, tmp_path: Path
) -> None:
    affine = nib.load(cohort.parent / "late" / "1.nii.gz").affine.copy()
    affine[2, 3] += 1.5
    write_mask(cohort.parent / "calcium.nii.gz", np.ones(SHAPE), affine)
    report = run(masked(cohort, "calcium.nii.gz"), tmp_path / "s")
    assert [one.verdict for one in report.series] == ["refused", "ingested"]
    assert "calcium.nii.gz: has shape (14, 48, 56)" in report.series[0].reason
    assert "calcium" not in report.series[0].stored_reason
    report = run(masked(cohort, "absent.nii.gz"), tmp_path / "s")
    assert "absent.nii.gz: cannot be read" in report.series[0].reason
    manifest = write_manifest(cohort.parent / "late.csv", ("late", "2", "a"))
    manifest.write_text("path,domain,phase,mask\nlate,2,a,calcium.nii.gz\n")
    report = run(manifest, tmp_path / "s")
    assert verdicts(report) == {"refused": 2}
    assert "expected one for a mask" in report.series[0].reason
