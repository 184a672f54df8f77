"""Ingest: exact voxels and geometry, one bad series at a time, no names, and any crash."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
import SimpleITK as sitk
import zarr
from make_cohort import body_hu, write_dicom
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from storage.errors import IngestError, StoreError
from storage.ingest import Step, ingest
from storage.ingest_report import IngestReport
from storage.store import Store
from storage.workers import Workers

SHAPE = (14, 48, 56)


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


@pytest.fixture(scope="module", autouse=True)
def workers() -> Iterator[None]:
    """Processes that all tests of this file share, since starting them takes longer than a test."""
    with Workers(2) as _shared["executor"]:
        yield


_shared: dict[str, Any] = {}


def run(manifest: Path, store: Path, **options: Any) -> IngestReport:
    return run_below(None, store, manifest=manifest, **options)


def run_below(root: Path | None, store: Path, **options: Any) -> IngestReport:
    return ingest(root, store, **({"key_path": store.parent / "key"} | _shared | options))


def verdicts(report: IngestReport) -> dict[str, int]:
    kinds = ("ingested", "skipped", "refused")
    return {kind: report.count(kind) for kind in kinds if report.count(kind)}  # type: ignore[arg-type]


def digests(store: Path) -> dict[str, str]:
    return {row.volume_id: row.digest for row in Store.open(store).rows}


class TestContents:
    def test_a_dicom_series_enters_as_simpleitk_reads_it(self, tmp_path: Path) -> None:
        write_dicom(tmp_path / "in", body_hu(SHAPE, 1))
        run_below(tmp_path / "in", tmp_path / "s", domain=1, phase="arterial")
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

    def test_a_nifti_file_enters_as_simpleitk_reads_it(self, tmp_path: Path) -> None:
        write_nifti(tmp_path / "in" / "a.nii.gz", body_hu(SHAPE, 1))
        path = tmp_path / "in" / "a.nii.gz"
        run_below(path, tmp_path / "s", domain=2)
        store = Store.open(tmp_path / "s")
        volume = store.read(store.rows[0].volume_id)
        image = sitk.ReadImage(str(path))
        np.testing.assert_array_equal(volume.hu, sitk.GetArrayFromImage(image))
        for index in ((0, 0, 0), (13, 47, 55)):
            expected = image.TransformIndexToPhysicalPoint(index[::-1])
            np.testing.assert_allclose((volume.affine @ (*index, 1))[:3], expected, atol=1e-4)
        assert (store.rows[0].domain, store.rows[0].phase) == (2, "unspecified")

    def test_a_cohort_gets_one_grid(self, cohort: Path, tmp_path: Path) -> None:
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
        self, cohort: Path, tmp_path: Path
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

    def test_progress_is_told_after_every_series(self, cohort: Path, tmp_path: Path) -> None:
        told: list[Step] = []
        run(cohort, tmp_path / "s", progress=told.append)
        assert max(step.scanned for step in told) == 2 * SHAPE[0] + 2
        done = [step for step in told if step.report is not None]
        assert [step.series for step in done] == [1, 2, 3, 4]
        assert done[-1].share == 1
        assert done[-1].files == 2 * SHAPE[0] + 2


class TestAgain:
    def test_a_second_ingest_skips_everything(self, cohort: Path, tmp_path: Path) -> None:
        assert verdicts(run(cohort, tmp_path / "s")) == {"ingested": 4}
        before = (tmp_path / "s" / "catalogue.parquet").read_bytes()
        assert verdicts(run(cohort, tmp_path / "s")) == {"skipped": 4}
        assert (tmp_path / "s" / "catalogue.parquet").read_bytes() == before

    def test_moved_and_renamed_dicom_files_are_the_same_series(
        self, cohort: Path, tmp_path: Path
    ) -> None:
        root = cohort.parent / "ct1"
        options: dict[str, Any] = {"domain": 1, "phase": "a"}
        run_below(root, tmp_path / "s", **options)
        root = root.rename(root.with_name("elsewhere"))
        for path in list(root.iterdir()):
            path.rename(root / f"{100 - int(path.stem[-3:])}.dcm")
        assert verdicts(run_below(root, tmp_path / "s", **options)) == {"skipped": 1}

    def test_what_changed_is_done_again_in_place_of_the_old(
        self, cohort: Path, tmp_path: Path
    ) -> None:
        first = run(cohort, tmp_path / "s")
        write_nifti(cohort.parent / "late" / "2.nii.gz", body_hu(SHAPE, 99))
        second = run(cohort, tmp_path / "s")
        assert [one.verdict for one in second.series] == ["skipped"] * 3 + ["ingested"]
        assert [one.series for one in second.series] == [one.series for one in first.series]
        store = Store.open(tmp_path / "s")
        np.testing.assert_array_equal(
            np.sort(store.read(second.series[3].series).hu, axis=None),
            np.sort(body_hu(SHAPE, 99), axis=None),
        )
        folders = [e for e in (tmp_path / "s" / "volumes").iterdir() if e.is_dir()]
        assert len(folders) == len(store.rows) == 4

    def test_another_label_is_a_change(self, cohort: Path, tmp_path: Path) -> None:
        run(cohort, tmp_path / "s")
        relabelled = cohort.read_text().replace("portal venous", "arterial")
        cohort.write_text(relabelled)
        assert verdicts(run(cohort, tmp_path / "s")) == {"skipped": 2, "ingested": 2}
        phases = Store.open(tmp_path / "s").rows.column("phase").tolist()
        assert sorted(phases) == ["arterial"] * 2 + ["non-contrast"] * 2

    def test_another_patient_in_the_manifest_is_a_change_and_so_is_none(
        self, cohort: Path, tmp_path: Path
    ) -> None:
        patients = []
        for patient in ("", "P7", ""):
            manifest = write_manifest(cohort.parent / "m.csv", ("ct1", "1", "a", patient))
            report = run(manifest, tmp_path / "s")
            assert verdicts(report) == {"ingested": 1}
            patients.append(Store.open(tmp_path / "s").rows[0].patient)
        assert patients[0] == patients[2] != patients[1]

    def test_another_key_is_refused(self, cohort: Path, tmp_path: Path) -> None:
        run(cohort, tmp_path / "s")
        with pytest.raises(StoreError, match="not the one"):
            run(cohort, tmp_path / "s", key_path=tmp_path / "other")


class TestUnread:
    """What sizes and times say is unchanged is not opened."""

    def test_a_second_ingest_opens_no_file_of_a_whole_series(
        self, cohort: Path, tmp_path: Path
    ) -> None:
        run(cohort, tmp_path / "s")
        contents = {}
        for path in sorted((cohort.parent / "ct1").iterdir()):
            contents[path] = path.stat()
            path.chmod(0)
            os.utime(path, ns=(contents[path].st_atime_ns, contents[path].st_mtime_ns))
        told: list[Step] = []
        # chmod changed the files' ctime: they must be read, and cannot be by whoever is not root.
        report = run(cohort, tmp_path / "s", progress=told.append)
        assert told[-1].scanned == SHAPE[0]
        if os.geteuid() == 0:
            assert verdicts(report) == {"skipped": 4}
        again: list[Step] = []
        run(cohort, tmp_path / "s", progress=again.append)
        if os.geteuid() == 0:
            assert again[-1].scanned == 0
            assert all(step.report.worker == -1 for step in again if step.report)

    def test_the_same_size_and_time_do_not_hide_a_change(
        self, cohort: Path, tmp_path: Path
    ) -> None:
        first = run(cohort, tmp_path / "s")
        path = cohort.parent / "ct1" / "slice_003.dcm"
        before = path.stat()
        data = bytearray(path.read_bytes())
        data[-40] ^= 1
        path.write_bytes(data)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_size == before.st_size
        report = run(cohort, tmp_path / "s")
        assert [one.verdict for one in report.series] == ["ingested"] + ["skipped"] * 3
        assert report.series[0].series == first.series[0].series

    def test_files_that_come_to_a_series_from_another_folder_are_seen(
        self, cohort: Path, tmp_path: Path
    ) -> None:
        root = cohort.parent
        options: dict[str, Any] = {"domain": 1, "phase": "a"}
        first = run_below(root, tmp_path / "s", **options)
        (root / "more").mkdir()
        shutil.copy(root / "ct1" / "slice_003.dcm", root / "more" / "copy.dcm")
        second = run_below(root, tmp_path / "s", **options)
        changed = next(one for one in second.series if one.verdict != "skipped")
        assert changed.verdict == "refused"
        assert changed.files == SHAPE[0] + 1
        assert changed.series in {one.series for one in first.series}
        assert changed.series not in digests(tmp_path / "s")
        shutil.rmtree(root / "more")
        run_below(root, tmp_path / "s", **options)
        assert changed.series in digests(tmp_path / "s")

    def test_two_series_in_one_folder_are_skipped_too(self, tmp_path: Path) -> None:
        for number in (1, 2):
            write_dicom(tmp_path / str(number), body_hu(SHAPE, number))
        both = tmp_path / "in"
        both.mkdir()
        for path in tmp_path.glob("[12]/*.dcm"):
            path.rename(both / f"{path.parent.name}-{path.name}")
        options: dict[str, Any] = {"domain": 1, "phase": "a"}
        assert verdicts(run_below(both, tmp_path / "s", **options)) == {"ingested": 2}
        report = run_below(both, tmp_path / "s", **options)
        assert verdicts(report) == {"skipped": 2}
        assert {one.worker for one in report.series} == {-1}


class TestLabels:
    def test_a_line_may_mean_one_series_of_a_folder(self, cohort: Path, tmp_path: Path) -> None:
        uids = []
        for name in ("ct1", "ct2"):
            path = cohort.parent / name / "slice_000.dcm"
            uids.append(str(pydicom.dcmread(path).SeriesInstanceUID))
        manifest = cohort.parent / "m.csv"
        with manifest.open("w", newline="") as file:
            lines = [(".", 1, "a", uids[0]), (".", 2, "b", uids[1]), (".", 2, "b", "1.2.3")]
            csv.writer(file).writerows([("path", "domain", "phase", "series"), *lines])
        report = run(manifest, tmp_path / "s")
        assert [one.verdict for one in report.series] == ["ingested", "ingested", "refused"]
        assert "holds no DICOM series 1.2.3" in report.series[2].reason
        assert "1.2.3" not in report.series[2].stored_reason
        assert [one.domain for one in report.series] == [1, 2, 2]
        assert verdicts(run(manifest, tmp_path / "s")) == {"skipped": 2, "refused": 1}

    def test_rules_give_each_series_its_label(self, cohort: Path, tmp_path: Path) -> None:
        rules = tmp_path / "rules.yaml"
        rules.write_text(
            "- {domain: 1, phase: native, when: {PatientID: P1}}\n"
            "- {domain: 2, phase: late, when: {PatientID: P2}}\n"
        )
        root = cohort.parent
        write_dicom(root / "ct3", body_hu(SHAPE, 3), patient="P3")
        report = run_below(root, tmp_path / "s", rules=rules)
        assert verdicts(report) == {"ingested": 2, "refused": 3}
        by_phase = {one.phase: one.domain for one in report.series if one.verdict == "ingested"}
        assert by_phase == {"native": 1, "late": 2}
        again = run_below(root, tmp_path / "s", rules=rules)
        assert {one.phase for one in again.series if one.verdict == "skipped"} == set(by_phase)
        rules.write_text(rules.read_text().replace("P3", "P9").replace("late", "portal"))
        assert verdicts(run_below(root, tmp_path / "s", rules=rules))["ingested"] == 1
        with pytest.raises(IngestError, match="expected one of them"):
            run_below(root, tmp_path / "s", rules=rules, domain=1)


class TestMasks:
    def write_mask(self, path: Path, labels: np.ndarray, affine: np.ndarray) -> None:
        nib.save(nib.Nifti1Image(labels.astype(np.uint8).T, affine), path)

    def manifest(self, cohort: Path, mask: str) -> Path:
        manifest = cohort.parent / "m.csv"
        with manifest.open("w", newline="") as file:
            lines = [("late/1.nii.gz", 2, "a", mask), ("late/2.nii.gz", 2, "a", "")]
            csv.writer(file).writerows([("path", "domain", "phase", "mask"), *lines])
        return manifest

    @pytest.mark.parametrize("spacing_mm", [None, (4.0, 2.0, 2.0)])
    def test_a_mask_marks_the_cells_that_it_touches(
        self, cohort: Path, tmp_path: Path, spacing_mm: tuple[float, float, float] | None
    ) -> None:
        image = nib.load(cohort.parent / "late" / "1.nii.gz")
        labels = np.zeros(SHAPE)
        labels[8:11, 20:24, 30:33] = 3
        self.write_mask(cohort.parent / "calcium.nii.gz", labels, image.affine)
        report = run(self.manifest(cohort, "calcium.nii.gz"), tmp_path / "s", spacing_mm=spacing_mm)
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

    def test_another_mask_is_a_change(self, cohort: Path, tmp_path: Path) -> None:
        affine = nib.load(cohort.parent / "late" / "1.nii.gz").affine
        manifest = self.manifest(cohort, "calcium.nii.gz")
        for verdict in ("ingested", "skipped"):
            if verdict == "ingested":
                self.write_mask(cohort.parent / "calcium.nii.gz", np.ones(SHAPE), affine)
            assert run(manifest, tmp_path / "s").series[0].verdict == verdict
        labels = np.zeros(SHAPE)
        labels[3, 20, 20] = 1
        self.write_mask(cohort.parent / "calcium.nii.gz", labels, affine)
        assert run(manifest, tmp_path / "s").series[0].verdict == "ingested"

    def test_a_mask_that_does_not_lie_on_its_series_is_refused(
        self, cohort: Path, tmp_path: Path
    ) -> None:
        affine = nib.load(cohort.parent / "late" / "1.nii.gz").affine.copy()
        affine[2, 3] += 1.5
        self.write_mask(cohort.parent / "calcium.nii.gz", np.ones(SHAPE), affine)
        report = run(self.manifest(cohort, "calcium.nii.gz"), tmp_path / "s")
        assert [one.verdict for one in report.series] == ["refused", "ingested"]
        assert "calcium.nii.gz: has shape (14, 48, 56)" in report.series[0].reason
        assert "calcium" not in report.series[0].stored_reason
        report = run(self.manifest(cohort, "absent.nii.gz"), tmp_path / "s")
        assert "absent.nii.gz: cannot be read" in report.series[0].reason
        manifest = write_manifest(cohort.parent / "late.csv", ("late", "2", "a"))
        manifest.write_text("path,domain,phase,mask\nlate,2,a,calcium.nii.gz\n")
        report = run(manifest, tmp_path / "s")
        assert verdicts(report) == {"refused": 2}
        assert "expected one for a mask" in report.series[0].reason


class TestProvenance:
    def test_every_step_is_told_with_its_numbers(self, cohort: Path, tmp_path: Path) -> None:
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

    def test_padding_is_told(self, tmp_path: Path) -> None:
        write_dicom(tmp_path / "in", body_hu(SHAPE, 1), PixelPaddingValue=-2000)
        run_below(tmp_path / "in", tmp_path / "s", domain=1)
        steps = json.loads(Store.open(tmp_path / "s").rows[0].provenance)["steps"]
        assert {"step": "replace padding", "stored": [-2000.0], "hu": -1024.0} in steps


class TestRefusals:
    def test_one_bad_series_stops_nobody_and_leaves_nothing(
        self, cohort: Path, tmp_path: Path
    ) -> None:
        bad = cohort.parent / "ct1"
        (bad / "slice_005.dcm").unlink()
        (cohort.parent / "late" / "1.nii.gz").write_bytes(b"\x1f\x8bnot much")
        report = run(cohort, tmp_path / "s")
        assert verdicts(report) == {"ingested": 2, "refused": 2}
        refused = [one for one in report.series if one.verdict == "refused"]
        assert "slice_004.dcm" in refused[0].reason or "slice_006.dcm" in refused[0].reason
        assert "1.nii.gz" in refused[1].reason
        assert str(bad) in report.table()
        assert "4 series: 2 ingested, 0 skipped, 2 refused" in report.table()
        names = {entry.name for entry in (tmp_path / "s" / "volumes").iterdir()}
        assert not any(name.startswith(one.series) for name in names for one in refused)
        assert not set(digests(tmp_path / "s")) & {one.series for one in refused}

    def test_what_became_bad_does_not_stay_in_its_earlier_state(
        self, cohort: Path, tmp_path: Path
    ) -> None:
        first = run(cohort, tmp_path / "s")
        (cohort.parent / "ct1" / "slice_005.dcm").unlink()
        report = run(cohort, tmp_path / "s")
        assert verdicts(report) == {"skipped": 3, "refused": 1}
        assert first.series[0].series not in digests(tmp_path / "s")
        assert Store.open(tmp_path / "s").verify() == []

    def test_the_same_series_twice_is_ingested_once(self, cohort: Path, tmp_path: Path) -> None:
        manifest = write_manifest(
            cohort.parent / "twice.csv", ("ct1", "1", "a"), ("ct2", "1", "a"), ("ct1", "2", "b")
        )
        report = run(manifest, tmp_path / "s")
        assert [one.verdict for one in report.series] == ["ingested", "ingested", "refused"]
        assert "as domain 1, phase a" in report.series[2].reason

    def test_a_path_with_nothing_in_it_is_reported(self, cohort: Path, tmp_path: Path) -> None:
        (cohort.parent / "empty").mkdir()
        manifest = write_manifest(
            cohort.parent / "m.csv", ("empty", "1", "a"), ("absent", "2", "a"), ("ct1", "1", "a")
        )
        report = run(manifest, tmp_path / "s")
        assert [one.verdict for one in report.series] == ["refused", "refused", "ingested"]
        assert "holds no DICOM" in report.series[0].reason
        assert "absent" in report.series[1].reason

    @pytest.mark.parametrize(
        ("header", "line", "message"),
        [
            ("path,domain,phase", "ct1,3,a", r"line 1: domain is '3'; expected 1 or 2"),
            ("path,domain", "ct1,1", r"line 1: column 'phase' is missing"),
            ("path,domain,phase", ",1,a", r"line 1: path is empty"),
            ("path,domain,phase", "ct1,1,Doe^J 1950", r"line 1: phase is 'Doe\^J 1950'"),
            ("path,domain,phase", "", r"no lines"),
        ],
    )
    def test_a_wrong_manifest_is_refused_before_anything_happens(
        self, tmp_path: Path, header: str, line: str, message: str
    ) -> None:
        (tmp_path / "m.csv").write_text(f"{header}\n{line}\n")
        with pytest.raises(IngestError, match=message):
            run(tmp_path / "m.csv", tmp_path / "s")
        assert not (tmp_path / "s").exists()

    def test_a_parquet_manifest_says_the_same(self, cohort: Path, tmp_path: Path) -> None:
        table = pa.table({"path": ["ct1", "late"], "domain": [1, 2], "phase": ["a", "b"]})
        pq.write_table(table, cohort.parent / "m.parquet")
        assert verdicts(run(cohort.parent / "m.parquet", tmp_path / "s")) == {"ingested": 3}

    def test_a_folder_needs_its_domain(self, cohort: Path, tmp_path: Path) -> None:
        with pytest.raises(IngestError, match="domain is None; expected 1 or 2"):
            run_below(cohort.parent, tmp_path / "s")


class TestNames:
    """Unique strings in all text of a series, and in its paths, are nowhere in the store."""

    def plant(self, dataset: Dataset, planted: list[str]) -> None:
        """A value in one element of every text VR, at top level, nested and private."""
        examples = {
            "AE": "StationAETitle",
            "AS": "PatientAge",
            "CS": "BodyPartExamined",
            "DA": "StudyDate",
            "DT": "AcquisitionDateTime",
            "LO": "InstitutionName",
            "LT": "AdditionalPatientHistory",
            "PN": "PatientName",
            "SH": "AccessionNumber",
            "ST": "InstitutionAddress",
            "TM": "StudyTime",
            "UC": "StrainDescription",
            "UR": "RetrieveURL",
            "UT": "LabelText",
            "UI": "IrradiationEventUID",
        }
        fixed = {"AS": "077Y", "DA": "19470523", "TM": "031415.926", "DT": "19470523031415"}
        for number, (vr, keyword) in enumerate(examples.items()):
            value = fixed.get(vr, f"PLANT{len(planted)}{vr}{number}")
            if vr == "UI":
                value = f"1.2.826.0.1.3680043.9.{4711 + len(planted)}"
            setattr(dataset, keyword, value)
            planted.append(value)
        for keyword in ("PatientID", "DeviceSerialNumber", "StudyDescription", "Manufacturer"):
            setattr(dataset, keyword, f"PLANT{len(planted)}{keyword}"[:60])
            planted.append(getattr(dataset, keyword))

    def write(self, folder: Path, planted: list[str]) -> None:
        write_dicom(folder, body_hu(SHAPE, 4))
        for index, path in enumerate(sorted(folder.iterdir())):
            dataset = pydicom.dcmread(path)
            outer, inner = Dataset(), Dataset()
            marks: list[str] = []
            self.plant(inner, marks)
            outer.RequestAttributesSequence = [inner]
            self.plant(outer, marks)
            dataset.ReferencedStudySequence = [outer]
            self.plant(dataset, marks)
            block = dataset.private_block(0x0099, "PLANTcreator", create=True)
            block.add_new(1, "LO", "PLANTprivate")
            block.add_new(2, "UN", b"PLANTunknown")
            dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "PLANTTYPE"]
            dataset.save_as(path)
            if index == 0:
                planted += [*marks, "PLANTcreator", "PLANTprivate", "PLANTunknown", "PLANTTYPE"]
                planted += [str(dataset.SeriesInstanceUID), str(dataset.StudyInstanceUID)]
            planted.append(str(dataset.SOPInstanceUID))
            path.rename(folder / f"PLANTFILE{index}.dcm")

    def everything(self, store: Path) -> str:
        """All text of the store: every file's bytes, and what they decompress to."""
        parts = []
        for path in store.rglob("*"):
            parts.append(str(path.relative_to(store)))
            if path.is_file():
                parts.append(path.read_bytes().decode("latin-1"))
            if path.suffix == ".parquet":
                parts.append(repr(pq.read_table(path).to_pydict()))
                parts.append(repr(pq.read_metadata(path).metadata))
        root = zarr.open_group(store, mode="r")
        for name, array in root["volumes"].arrays():  # type: ignore[union-attr]
            parts.append(repr((name, dict(array.attrs))))
            parts.append(array[...].tobytes().decode("latin-1"))
        return "\n".join(parts)

    def test_nothing_that_names_a_person_enters_the_store(self, tmp_path: Path) -> None:
        planted = ["PLANTROOT", "PLANTFOLDER", "PLANTFILE", "PLANTNIFTI", "PLANTMANIFEST"]
        root = tmp_path / "PLANTROOT"
        self.write(root / "PLANTFOLDER1", planted)
        for number, broken in enumerate(("gap", "slope", "type", "pixels", "garbage"), start=2):
            folder = root / f"PLANTFOLDER{number}"
            self.write(folder, planted)
            self.break_series(folder, broken, planted)
        write_nifti(root / "PLANTNIFTI.nii.gz", body_hu(SHAPE, 5))
        (root / "PLANTNIFTI2.nii.gz").write_bytes(b"PLANTbytes")
        manifest = write_manifest(
            root / "manifest.csv",
            *((f"PLANTFOLDER{n}", "1", "arterial", f"PLANTMANIFEST{n}") for n in range(1, 7)),
            ("PLANTNIFTI.nii.gz", "2", "arterial", "PLANTMANIFEST9"),
            ("PLANTNIFTI2.nii.gz", "2", "arterial", ""),
        )
        report = run(manifest, tmp_path / "s")
        assert report.count("ingested") == 2
        assert report.count("refused") >= 6
        text = self.everything(tmp_path / "s")
        assert [value for value in planted if value in text] == []
        assert "PLANT" not in text
        reasons = pq.read_table(tmp_path / "s" / "ingest-report.parquet")["reason"].to_pylist()
        assert any("ImagePositionPatient" in reason and "file " in reason for reason in reasons)

    def break_series(self, folder: Path, how: str, planted: list[str]) -> None:
        path = folder / "PLANTFILE5.dcm"
        dataset = pydicom.dcmread(path)
        if how == "gap":
            path.unlink()
        elif how == "slope":
            dataset.RescaleType = "PLANTRESCALE"
            dataset.save_as(path)
        elif how == "type":
            uid = generate_uid()
            dataset.FrameOfReferenceUID = uid
            planted.append(uid)
            dataset.save_as(path)
        elif how == "pixels":
            path.write_bytes(path.read_bytes()[:-100])
        else:
            path.write_bytes(path.read_bytes()[:700])
