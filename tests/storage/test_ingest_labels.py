"""Which domain, phase and patient a series gets: by manifest, by rules, or for a whole folder."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from ingesting import SHAPE, Ingests, verdicts
from make_cohort import body_hu, write_dicom

from storage.errors import IngestError


def test_a_line_may_mean_one_series_of_a_folder(run: Ingests, cohort: Path, tmp_path: Path) -> None:
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


def test_rules_give_each_series_its_label(run: Ingests, cohort: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "- {domain: 1, phase: native, when: {PatientID: P1}}\n"
        "- {domain: 2, phase: late, when: {PatientID: P2}}\n"
    )
    root = cohort.parent
    write_dicom(root / "ct3", body_hu(SHAPE, 3), patient="P3")
    report = run.below(root, tmp_path / "s", rules=rules)
    assert verdicts(report) == {"ingested": 2, "refused": 3}
    by_phase = {one.phase: one.domain for one in report.series if one.verdict == "ingested"}
    assert by_phase == {"native": 1, "late": 2}
    again = run.below(root, tmp_path / "s", rules=rules)
    assert {one.phase for one in again.series if one.verdict == "skipped"} == set(by_phase)
    rules.write_text(rules.read_text().replace("P3", "P9").replace("late", "portal"))
    assert verdicts(run.below(root, tmp_path / "s", rules=rules))["ingested"] == 1
    with pytest.raises(IngestError, match="expected one of them"):
        run.below(root, tmp_path / "s", rules=rules, domain=1)


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
    run: Ingests, tmp_path: Path, header: str, line: str, message: str
) -> None:
    (tmp_path / "m.csv").write_text(f"{header}\n{line}\n")
    with pytest.raises(IngestError, match=message):
        run(tmp_path / "m.csv", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_parquet_manifest_says_the_same(run: Ingests, cohort: Path, tmp_path: Path) -> None:
    table = pa.table({"path": ["ct1", "late"], "domain": [1, 2], "phase": ["a", "b"]})
    pq.write_table(table, cohort.parent / "m.parquet")
    assert verdicts(run(cohort.parent / "m.parquet", tmp_path / "s")) == {"ingested": 3}


def test_a_folder_needs_its_domain(run: Ingests, cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(IngestError, match="domain is None; expected 1 or 2"):
        run.below(cohort.parent, tmp_path / "s")
