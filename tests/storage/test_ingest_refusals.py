"""One bad series at a time: it is refused and told, and the others go on."""

from __future__ import annotations

from pathlib import Path

from ingesting import Ingests, digests, verdicts, write_manifest

from storage.store import Store


def test_one_bad_series_stops_nobody_and_leaves_nothing(
    run: Ingests, cohort: Path, tmp_path: Path
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
    run: Ingests, cohort: Path, tmp_path: Path
) -> None:
    first = run(cohort, tmp_path / "s")
    (cohort.parent / "ct1" / "slice_005.dcm").unlink()
    report = run(cohort, tmp_path / "s")
    assert verdicts(report) == {"skipped": 3, "refused": 1}
    assert first.series[0].series not in digests(tmp_path / "s")
    assert Store.open(tmp_path / "s").verify() == []


def test_the_same_series_twice_is_ingested_once(run: Ingests, cohort: Path, tmp_path: Path) -> None:
    manifest = write_manifest(
        cohort.parent / "twice.csv", ("ct1", "1", "a"), ("ct2", "1", "a"), ("ct1", "2", "b")
    )
    report = run(manifest, tmp_path / "s")
    assert [one.verdict for one in report.series] == ["ingested", "ingested", "refused"]
    assert "as domain 1, phase a" in report.series[2].reason


def test_a_path_with_nothing_in_it_is_reported(run: Ingests, cohort: Path, tmp_path: Path) -> None:
    (cohort.parent / "empty").mkdir()
    manifest = write_manifest(
        cohort.parent / "m.csv", ("empty", "1", "a"), ("absent", "2", "a"), ("ct1", "1", "a")
    )
    report = run(manifest, tmp_path / "s")
    assert [one.verdict for one in report.series] == ["refused", "refused", "ingested"]
    assert "holds no DICOM" in report.series[0].reason
    assert "absent" in report.series[1].reason
