"""Ingest: exact voxels and geometry, one grid for a cohort, and every step in the provenance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from ingesting import SHAPE, Ingests, write_manifest, write_nifti
from make_cohort import body_hu, write_dicom

from storage.errors import StoreError
from storage.ingest import Step
from storage.store import Store


class TestContents:
    def test_a_dicom_series_enters_as_simpleitk_reads_it(
        self, run: Ingests, tmp_path: Path
    ) -> None:
        write_dicom(tmp_path / "in", body_hu(SHAPE, 1))
        run.below(tmp_path / "in", tmp_path / "s", domain=1, phase="arterial")
        store = Store.open(tmp_path / "s")
        volume = store.read(store.rows[0].volume_id)
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "in")))
        image = reader.Execute()
        np.testing.assert_array_equal(volume.hu, sitk.GetArrayFromImage(image))
        for index in ((0, 0, 0), (3, 5, 7), (13, 47, 55)):
            expected = image.TransformIndexToPhysicalPoint(index[::-1])
            np.testing.assert_allclose((volume.affine @ (*index, 1))[:3], expected, atol=1e-6)
        row = store.rows[0]
        assert (row.domain, row.phase) == (1, "arterial")
        assert json.loads(row.provenance)["source"]["acquisition"] == {"KVP": 120.0}

    def test_a_nifti_file_enters_as_simpleitk_reads_it(self, run: Ingests, tmp_path: Path) -> None:
        write_nifti(tmp_path / "in" / "a.nii.gz", body_hu(SHAPE, 1))
        path = tmp_path / "in" / "a.nii.gz"
        run.below(path, tmp_path / "s", domain=2)
        store = Store.open(tmp_path / "s")
        volume = store.read(store.rows[0].volume_id)
        image = sitk.ReadImage(str(path))
        np.testing.assert_array_equal(volume.hu, sitk.GetArrayFromImage(image))
        for index in ((0, 0, 0), (13, 47, 55)):
            expected = image.TransformIndexToPhysicalPoint(index[::-1])
            np.testing.assert_allclose((volume.affine @ (*index, 1))[:3], expected, atol=1e-4)
        assert (store.rows[0].domain, store.rows[0].phase) == (2, "unspecified")

    def test_a_cohort_gets_one_grid(self, run: Ingests, cohort: Path, tmp_path: Path) -> None:
        run(cohort, tmp_path / "s", spacing_mm=(4.0, 2.0, 2.0))
        store = Store.open(tmp_path / "s")
        assert len(store.rows) == 4
        for row in store.rows:
            np.testing.assert_allclose(row.spacing_mm, (4.0, 2.0, 2.0))
            assert "resample" in [step["step"] for step in json.loads(row.provenance)["steps"]]
        assert store.verify() == []
        with pytest.raises(StoreError, match="choose a new path"):
            run(cohort, tmp_path / "s", spacing_mm=(3.0, 2.0, 2.0))

    def test_patients_are_told_apart_by_header_manifest_or_file(
        self, run: Ingests, cohort: Path, tmp_path: Path
    ) -> None:
        write_dicom(cohort.parent / "ct3", body_hu(SHAPE, 3), patient="P1")
        manifest = write_manifest(
            cohort.parent / "named.csv",
            ("ct1", "1", "a", ""),
            ("ct3", "2", "a", ""),
            ("ct2", "1", "a", "P9"),
            ("late/1.nii.gz", "2", "a", "P9"),
            ("late/2.nii.gz", "2", "a", ""),
        )
        report = run(manifest, tmp_path / "s")
        store = Store.open(tmp_path / "s")
        ct1, ct3, ct2, late1, late2 = (store.row(s.series).patient for s in report.series)
        assert ct1 == ct3
        assert ct2 == late1
        assert len({ct1, ct2, late2}) == 3

    def test_progress_is_told_after_every_series(
        self, run: Ingests, cohort: Path, tmp_path: Path
    ) -> None:
        told: list[Step] = []
        run(cohort, tmp_path / "s", progress=told.append)
        assert max(step.scanned for step in told) == 2 * SHAPE[0] + 2
        done = [step for step in told if step.report is not None]
        assert [step.series for step in done] == [1, 2, 3, 4]
        assert done[-1].share == 1
        assert done[-1].files == 2 * SHAPE[0] + 2


class TestProvenance:
    def test_every_step_is_told_with_its_numbers(
        self, run: Ingests, cohort: Path, tmp_path: Path
    ) -> None:
        run(cohort, tmp_path / "s", spacing_mm=(4.0, 2.0, 2.0))
        rows = {row.phase: json.loads(row.provenance) for row in Store.open(tmp_path / "s").rows}
        dicom, nifti = rows["non-contrast"], rows["portal venous"]
        steps = {step["step"]: step for step in dicom["steps"]}
        assert list(steps) == [
            "rescale to HU",
            "reorder axes",
            "resample",
            "round",
            "mark the body",
            "place the frame",
        ]
        assert steps["rescale to HU"]["first_slice"] == {"slope": 1.0, "intercept": -24.0}
        assert (steps["reorder axes"]["from"], steps["reorder axes"]["to"]) == ("SPL", "SPL")
        resampled = steps["resample"]
        np.testing.assert_allclose(resampled["from_mm"], (3, 1.5, 1.25))
        np.testing.assert_allclose(resampled["to_mm"], (4, 2, 2))
        # The Gaussian whose full width at half maximum makes a voxel as wide as the new one.
        widths = np.sqrt(np.subtract(np.square((4, 2, 2)), np.square((3, 1.5, 1.25))))
        np.testing.assert_allclose(resampled["antialiasing_sigma_mm"], widths / 2.35482, rtol=1e-5)
        assert dicom["source"]["shape"] == list(SHAPE)
        assert dicom["source"]["files"] == SHAPE[0]
        assert set(dicom["versions"]) >= {"pydicom", "simpleitk", "scipy", "zarr", "pmg"}
        assert nifti["steps"][0]["rule"] == "scl_slope and scl_inter of the file"
        assert nifti["steps"][1]["from"] == "SPL"

    def test_padding_is_told(self, run: Ingests, tmp_path: Path) -> None:
        write_dicom(tmp_path / "in", body_hu(SHAPE, 1), PixelPaddingValue=-2000)
        run.below(tmp_path / "in", tmp_path / "s", domain=1)
        steps = json.loads(Store.open(tmp_path / "s").rows[0].provenance)["steps"]
        assert {"step": "replace padding", "stored": [-2000.0], "hu": -1024.0} in steps
