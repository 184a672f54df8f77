"""Labels by suggestion, by manifest and by rules, from the command to the store."""

import csv

import pytest
from click.testing import CliRunner
from pydicom.dataset import Dataset

from pmg.cli import main
from storage.dicom_write import write_series
from storage.phantom import Protocol, draw_subject, render
from storage.store import Store

SMALL = Protocol(shape=(24, 80, 80), spacing_mm=(7.0, 5.0, 5.0), thickness_mm=7.0)


def run(*arguments, fails=False):
    result = CliRunner().invoke(main, [str(one) for one in arguments])
    assert bool(result.exit_code) == fails, result.output
    return result.output


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """One folder with all series of a study, described as hospitals do it."""
    folder = tmp_path_factory.mktemp("export")
    subject = draw_subject(31)
    for phase in ("non_contrast", "portal"):
        header = Dataset()
        header.StudyInstanceUID, header.PatientID = "1.2.3.4", "P1"
        header.StudyDescription = "CT ABD UnEnhan"
        if phase == "portal":
            header.ContrastBolusAgent = "Iomeron"
        for file in write_series(render(subject, phase, SMALL, 3), folder / phase, header):
            file.rename(folder / f"{phase}_{file.name}")
        (folder / phase).rmdir()
    (folder / "broken.dcm").write_bytes(bytes(128) + b"DICMnothing")
    return folder


def labels(store):
    return sorted((row.domain, row.phase) for row in Store.open(store).rows)


def test_a_suggestion_is_shown_written_edited_and_ingested(tmp_path, export):
    out = tmp_path / "labels.csv"
    shown = run("ingest", "--suggest", export, "--out", out)
    assert "2 series, 0 without a domain, 1 with contradictions; nothing was ingested" in shown
    assert "broken.dcm" in shown
    assert [one.name for one in tmp_path.iterdir()] == ["labels.csv"]
    assert "choose a new file" in run("ingest", "--suggest", export, "--out", out, fails=True)

    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["domain"] for row in rows] == ["1", "2"]
    assert "says 'UnEnh', but blood has" in rows[1]["contradictions"]
    rows[1]["phase"] = "portal venous"
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    run("ingest", "--manifest", out, "--store", tmp_path / "store", "--key", tmp_path / "key")
    assert labels(tmp_path / "store") == [(1, "non_contrast"), (2, "portal venous")]


def test_a_suggestion_without_a_file_writes_none(tmp_path, export, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "nothing was ingested" in run("ingest", "--suggest", export)
    assert not list(tmp_path.iterdir())
    (tmp_path / "empty").mkdir()
    assert "no series" in run("ingest", "--suggest", tmp_path / "empty", fails=True)


def test_rules_label_the_series_of_one_folder_and_refuse_the_rest_by_name(tmp_path, export):
    rules = tmp_path / "rules.yaml"
    rules.write_text("- {domain: 2, phase: portal, when: {ContrastBolusAgent: present}}")
    where = ("--store", tmp_path / "store", "--key", tmp_path / "key")
    shown = run("ingest", export, "--rules", rules, *where)
    assert "rule 1: ContrastBolusAgent is missing or empty" in shown
    assert labels(tmp_path / "store") == [(2, "portal")]
    rules.write_text("- {domain: 1, phase: native, when: {StudyDescription: CT ABD UnEnhan}}")
    assert "on enhanced series" in run("ingest", export, "--rules", rules, *where, fails=True)
