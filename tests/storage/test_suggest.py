"""Suggested labels: what decides, what contradicts, and the manifest that comes of them."""

import csv
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from storage.blood import BloodPool
from storage.dicom_write import write_series
from storage.errors import IngestError
from storage.manifest import read_manifest
from storage.phantom import Protocol, draw_subject, render
from storage.series import find_sources
from storage.suggest import COLUMNS, Evidence, examine, suggest, table, write_labels

NOON = datetime(2020, 1, 1, 12)


def evidence(hu=None, **fields):
    plain = Evidence(
        path=Path("/data/a"),
        series="1.2.3",
        study="1.2",
        agent="",
        given=None,
        acquired=None,
        delay_s=None,
        blood=None if hu is None else BloodPool(hu, hu - 5, hu + 5, 9),
        descriptions={},
    )
    return replace(plain, **fields)


@pytest.mark.parametrize(
    ("one", "domain", "phase"),
    [
        (evidence(40), 1, "non_contrast"),
        (evidence(150), 2, "contrast"),
        (evidence(310), 2, "arterial"),
        (evidence(150, delay_s=70.0), 2, "portal venous"),
        (evidence(150, delay_s=30.0), 2, "arterial"),
        (evidence(150, delay_s=240.0), 2, "delayed"),
        (evidence(150, descriptions={"SeriesDescription": "Abd PORTAL 3mm"}), 2, "portal venous"),
        (
            evidence(150, descriptions={"SeriesDescription": "venous + arterial"}),
            2,
            "contrast",
        ),
        (evidence(agent="Iomeron", given=True), 2, "contrast"),
        (evidence(agent="NONE", given=False), 1, "non_contrast"),
        (evidence(82, agent="Iomeron", given=True), 2, "contrast"),
        (evidence(82), None, ""),
        (evidence(descriptions={"StudyDescription": "CT native"}), None, ""),
    ],
)
def test_blood_decides_then_the_agent_and_never_a_description(one, domain, phase):
    (suggested,) = suggest([one])
    assert (suggested.domain, suggested.phase) == (domain, phase)


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (
            evidence(152, descriptions={"StudyDescription": "CT ABD UnEnhan"}),
            ["StudyDescription says 'UnEnh', but blood has 152 HU"],
        ),
        (
            evidence(40, descriptions={"SeriesDescription": "portal venous"}),
            ["SeriesDescription says 'portal', but blood has 40 HU"],
        ),
        (
            evidence(40, agent="Ultravist", given=True),
            ["contrast agent is 'Ultravist', but blood has 40 HU"],
        ),
        (
            evidence(150, agent="None", given=False),
            ["contrast agent is 'None', but blood has 150 HU"],
        ),
        (evidence(82), ["blood has 82 HU, between without and with contrast agent"]),
        (
            evidence(agent="Ultravist", given=True, descriptions={"ProtocolName": "Abdomen nativ"}),
            ["ProtocolName says 'nativ', but contrast agent is 'Ultravist'"],
        ),
        (evidence(40, descriptions={"StudyDescription": "CT without and with contrast"}), []),
        (evidence(40, descriptions={"SeriesDescription": "unenhanced"}), []),
        (evidence(40, descriptions={"SeriesDescription": "non-contrast"}), []),
        (evidence(150, descriptions={"SeriesDescription": "Abd 3.0 Br36"}), []),
    ],
)
def test_what_speaks_against_the_label_is_said_with_both_sides(one, words):
    assert list(suggest([one])[0].contradictions) == words


def test_series_are_ordered_by_time_within_their_study():
    first = evidence(40, acquired=NOON, path=Path("/data/1"))
    second = evidence(300, acquired=NOON + timedelta(seconds=95), path=Path("/data/2"))
    third = evidence(40, acquired=NOON + timedelta(seconds=140), path=Path("/data/3"))
    elsewhere = evidence(40, acquired=NOON + timedelta(seconds=150), study="1.9")
    undated = evidence(40)
    found = suggest([third, undated, first, elsewhere, second])
    assert [one.order for one in found] == [
        "3 of 3, 140 s after the first",
        "",
        "1 of 3",
        "1 of 1",
        "2 of 3, 95 s after the first",
    ]
    assert [one.contradictions for one in found] == [
        ("acquired 45 s after an enhanced series of its study",),
        (),
        (),
        (),
        (),
    ]


SMALL = Protocol(shape=(24, 96, 96), spacing_mm=(7.0, 4.2, 4.2), thickness_mm=7.0)


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """One study as hospitals export it, in one folder: native and portal, both "UnEnhan"."""
    folder = tmp_path_factory.mktemp("export")
    subject = draw_subject(31)
    for number, (phase, time) in enumerate((("non_contrast", "120000"), ("portal", "120330"))):
        header = Dataset()
        header.StudyInstanceUID, header.PatientID = "1.2.3.4", "P1"
        header.StudyDescription = "CT ABD UnEnhan"
        header.SeriesDescription = "=HYPERLINK(1)"
        header.AcquisitionDate, header.AcquisitionTime = "20200101", time
        if phase == "portal":
            header.ContrastBolusAgent, header.ContrastBolusVolume = "Iomeron", 80
            header.ContrastBolusStartTime = "120220.5"
        files = write_series(render(subject, phase, SMALL, 3), folder / f"tmp{number}", header)
        for file in files:
            file.rename(folder / f"{number}_{file.name}")
        (folder / f"tmp{number}").rmdir()
    return folder


def test_an_export_of_one_folder_becomes_a_manifest_that_tells_its_series_apart(export, tmp_path):
    sources, refused = find_sources(export)
    assert not refused
    suggested = suggest([examine(source) for source in sources])
    path = tmp_path / "labels.csv"
    write_labels(suggested, path)
    rows = list(csv.DictReader(path.open()))
    assert [(row["domain"], row["phase"]) for row in rows] == [
        ("1", "non_contrast"),
        ("2", "portal venous"),
    ]
    assert [row["contrast_agent"] for row in rows] == ["", "Iomeron, 80.0"]
    assert [row["order_in_study"] for row in rows] == ["1 of 2", "2 of 2, 210 s after the first"]
    assert rows[0]["contradictions"] == ""
    assert rows[1]["contradictions"].startswith("StudyDescription says 'UnEnh', but blood has ")
    entries = read_manifest(path)
    assert [entry.path.resolve() for entry in entries] == [export, export]
    assert {entry.series for entry in entries} == {source.key for source in sources}
    with pytest.raises(FileExistsError):
        write_labels(suggested, path)


def test_a_cell_is_never_a_formula_for_a_spreadsheet(tmp_path):
    path = tmp_path / "labels.csv"
    write_labels(suggest([evidence(agent="=cmd()", given=True)]), path)
    (row,) = csv.DictReader(path.open())
    assert row["contrast_agent"] == "'=cmd()"


def test_a_series_without_a_domain_has_to_be_labelled_by_the_user(tmp_path):
    path = tmp_path / "labels.csv"
    write_labels(suggest([evidence(82)]), path)
    with pytest.raises(IngestError, match=r"line 1: domain is ''; expected 1 or 2"):
        read_manifest(path)


def test_the_table_has_a_cell_for_every_column():
    ((*cells,),) = table(suggest([evidence(40)]), Path("/data"))
    assert dict(zip(COLUMNS, cells, strict=True))["blood_hu"] == "40 (35 to 45)"
    assert cells[0] == "a"


@pytest.mark.parametrize(
    ("elements", "agent", "given"),
    [
        ({}, "", None),
        ({"ContrastBolusAgent": ""}, "", None),
        ({"ContrastBolusAgent": "NONE"}, "NONE", False),
        ({"ContrastBolusAgent": "No contrast"}, "No contrast", False),
        ({"ContrastBolusVolume": "0"}, "0", False),
        ({"ContrastBolusAgent": "NONE", "ContrastBolusRoute": "IV"}, "NONE, IV", False),
        ({"ContrastBolusRoute": "IV"}, "IV", None),
        ({"ContrastBolusAgent": "Telebrix", "ContrastBolusRoute": "ORAL"}, "Telebrix, ORAL", None),
        ({"ContrastBolusAgent": "Iohexol", "ContrastBolusRoute": "IV"}, "Iohexol, IV", True),
    ],
)
def test_an_agent_counts_where_the_header_says_that_it_was_given(tmp_path, elements, agent, given):
    header = Dataset()
    for keyword, value in elements.items():
        setattr(header, keyword, value)
    volume = render(draw_subject(1), "portal", Protocol(shape=(3, 16, 16)), 3)
    write_series(volume, tmp_path / "in", header)
    (source,), _ = find_sources(tmp_path)
    found = examine(source)
    assert (found.agent, found.given, found.blood) == (agent, given, None)
