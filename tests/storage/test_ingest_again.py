"""A second ingest: what has not changed is skipped, unread if sizes and times say so."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ingesting import SHAPE, Ingests, digests, verdicts, write_manifest, write_nifti
from make_cohort import body_hu, write_dicom

from storage.errors import StoreError
from storage.ingest import Step
from storage.store import Store


class TestAgain:
    def test_a_second_ingest_skips_everything(
        self, run: Ingests, cohort: Path, tmp_path: Path
    ) -> None:
        assert verdicts(run(cohort, tmp_path / "s")) == {"ingested": 4}
        before = (tmp_path / "s" / "catalogue.parquet").read_bytes()
        assert verdicts(run(cohort, tmp_path / "s")) == {"skipped": 4}
        assert (tmp_path / "s" / "catalogue.parquet").read_bytes() == before

    def test_moved_and_renamed_dicom_files_are_the_same_series(
        self, run: Ingests, cohort: Path, tmp_path: Path
    ) -> None:
        root = cohort.parent / "ct1"
        options: dict[str, Any] = {"domain": 1, "phase": "a"}
        run.below(root, tmp_path / "s", **options)
        root = root.rename(root.with_name("elsewhere"))
        for path in list(root.iterdir()):
            path.rename(root / f"{100 - int(path.stem[-3:])}.dcm")
        assert verdicts(run.below(root, tmp_path / "s", **options)) == {"skipped": 1}

    def test_what_changed_is_done_again_in_place_of_the_old(
        self, run: Ingests, cohort: Path, tmp_path: Path
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

    def test_another_label_is_a_change(self, run: Ingests, cohort: Path, tmp_path: Path) -> None:
        run(cohort, tmp_path / "s")
        relabelled = cohort.read_text().replace("portal venous", "arterial")
        cohort.write_text(relabelled)
        assert verdicts(run(cohort, tmp_path / "s")) == {"skipped": 2, "ingested": 2}
        phases = Store.open(tmp_path / "s").rows.column("phase").tolist()
        assert sorted(phases) == ["arterial"] * 2 + ["non-contrast"] * 2

    def test_another_patient_in_the_manifest_is_a_change_and_so_is_none(
        self, run: Ingests, cohort: Path, tmp_path: Path
    ) -> None:
        patients = []
        for patient in ("", "P7", ""):
            manifest = write_manifest(cohort.parent / "m.csv", ("ct1", "1", "a", patient))
            report = run(manifest, tmp_path / "s")
            assert verdicts(report) == {"ingested": 1}
            patients.append(Store.open(tmp_path / "s").rows[0].patient)
        assert patients[0] == patients[2] != patients[1]

    def test_another_key_is_refused(self, run: Ingests, cohort: Path, tmp_path: Path) -> None:
        run(cohort, tmp_path / "s")
        with pytest.raises(StoreError, match="not the one"):
            run(cohort, tmp_path / "s", key_path=tmp_path / "other")


class TestUnread:
    """What sizes and times say is unchanged is not opened."""

    def test_a_second_ingest_opens_no_file_of_a_whole_series(
        self, run: Ingests, cohort: Path, tmp_path: Path
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
        self, run: Ingests, cohort: Path, tmp_path: Path
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
        self, run: Ingests, cohort: Path, tmp_path: Path
    ) -> None:
        root = cohort.parent
        options: dict[str, Any] = {"domain": 1, "phase": "a"}
        first = run.below(root, tmp_path / "s", **options)
        (root / "more").mkdir()
        shutil.copy(root / "ct1" / "slice_003.dcm", root / "more" / "copy.dcm")
        second = run.below(root, tmp_path / "s", **options)
        changed = next(one for one in second.series if one.verdict != "skipped")
        assert changed.verdict == "refused"
        assert changed.files == SHAPE[0] + 1
        assert changed.series in {one.series for one in first.series}
        assert changed.series not in digests(tmp_path / "s")
        shutil.rmtree(root / "more")
        run.below(root, tmp_path / "s", **options)
        assert changed.series in digests(tmp_path / "s")

    def test_two_series_in_one_folder_are_skipped_too(self, run: Ingests, tmp_path: Path) -> None:
        for number in (1, 2):
            write_dicom(tmp_path / str(number), body_hu(SHAPE, number))
        both = tmp_path / "in"
        both.mkdir()
        for path in tmp_path.glob("[12]/*.dcm"):
            path.rename(both / f"{path.parent.name}-{path.name}")
        options: dict[str, Any] = {"domain": 1, "phase": "a"}
        assert verdicts(run.below(both, tmp_path / "s", **options)) == {"ingested": 2}
        report = run.below(both, tmp_path / "s", **options)
        assert verdicts(report) == {"skipped": 2}
        assert {one.worker for one in report.series} == {-1}
