"""Label rules: the first that holds gives the label, and refusals say what was looked at."""

from __future__ import annotations

from pathlib import Path

import pytest
from make_cohort import body_hu, write_dicom
from pydicom.dataset import Dataset

from storage.errors import IngestError
from storage.rules import label_source, read_rules
from storage.series import find_sources

RULES = """
- domain: 2
  phase: portal venous
  when:
    ContrastBolusAgent: present
    SeriesDescription: {matches: "(?i)portal|venous"}
    KVP: {at_least: 80, at_most: 140}
- domain: 2
  phase: arterial
  when:
    ContrastBolusAgent: present
    ImageType: AXIAL
- domain: 1
  phase: non_contrast
  when:
    ContrastBolusAgent: absent
    StudyDescription: {equals: CT ABDOMEN UNENHAN}
"""


@pytest.fixture
def rules(tmp_path: Path):
    path = tmp_path / "rules.yaml"
    path.write_text(RULES)
    return read_rules(path)


def header(**elements: object) -> Dataset:
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


ENHANCED = {"ContrastBolusAgent": "Iomeron 400", "KVP": "100", "ImageType": ["ORIGINAL", "AXIAL"]}


@pytest.mark.parametrize(
    ("elements", "label"),
    [
        ({**ENHANCED, "SeriesDescription": "Abd VENOUS 3mm"}, (2, "portal venous")),
        ({**ENHANCED, "SeriesDescription": "Abd art"}, (2, "arterial")),
        ({**ENHANCED, "SeriesDescription": "Abd venous", "KVP": "150"}, (2, "arterial")),
        ({**ENHANCED, "SeriesDescription": "Abd venous", "KVP": None}, (2, "arterial")),
        ({"StudyDescription": "CT ABDOMEN UNENHAN"}, (1, "non_contrast")),
        (
            {"StudyDescription": "CT ABDOMEN UNENHAN", "ContrastBolusAgent": ""},
            (1, "non_contrast"),
        ),
    ],
)
def test_the_first_rule_whose_conditions_all_hold_gives_the_label(rules, elements, label) -> None:
    assert rules.label(header(**elements)) == label
    assert rules.label(elements) == label


def test_where_no_rule_holds_the_reason_names_all_that_was_looked_at(rules) -> None:
    with pytest.raises(IngestError) as refused:
        rules.label(header(ContrastBolusAgent="Ultravist", SeriesDescription="Topo", KVP=80))
    assert str(refused.value) == (
        "no rule of rules.yaml gives it a domain (rule 1: SeriesDescription is 'Topo', without "
        "'(?i)portal|venous'; rule 2: ImageType is missing or empty; rule 3: ContrastBolusAgent is "
        "'Ultravist', not absent); add a rule, or name the series in a manifest"
    )


def test_a_sequence_counts_as_its_items_meanings(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(
        "- {domain: 2, phase: x, when: {ContrastBolusAgentSequence: {matches: Iohexol}}}"
    )
    item = header(CodeMeaning="Iohexol 300")
    assert read_rules(path).label(header(ContrastBolusAgentSequence=[item])) == (2, "x")


def test_numbers_are_compared_as_numbers_and_words_never_lie_in_a_range(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("- {domain: 1, phase: x, when: {SliceThickness: {at_most: 3}}}")
    rules = read_rules(path)
    assert rules.label({"SliceThickness": "1.25"}) == (1, "x")
    for other in ("10", "thin", "nan", ["1", "10"]):
        with pytest.raises(IngestError, match="not from -inf to 3"):
            rules.label({"SliceThickness": other})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds nothing; expected a list"),
        ("rules: 1", "expected a list"),
        ("- a: [", "not readable as YAML"),
        ("- 3", "rule 1: is 3; expected a mapping"),
        ("- {phase: x, when: {KVP: present}}", "rule 1: domain is missing"),
        ("- {domain: 1, phase: x}", "when is missing"),
        ("- {domain: 3, phase: x, when: {KVP: present}}", "domain is 3; expected 1 or 2"),
        ("- {domain: 1, phase: J0hn, when: {KVP: present}}", "phase is 'J0hn'"),
        ("- {domain: 1, pase: x, when: {KVP: present}}", "pase: unknown field; did you mean phase"),
        ("- {domain: 1, phase: x, when: {}}", "when is {}"),
        (
            "- {domain: 1, phase: x, when: {ContrastBolusAgnt: present}}",
            "when.ContrastBolusAgnt: no DICOM keyword; did you mean ContrastBolusAgent?",
        ),
        (
            "- {domain: 1, phase: x, when: {KVP: {atleast: 3}}}",
            "when.KVP: atleast: unknown field; did you mean at_least?",
        ),
        ("- {domain: 1, phase: x, when: {KVP: {}}}", "when.KVP: no test"),
        ("- {domain: 1, phase: x, when: {KVP: {at_most: many}}}", "at_most is 'many'"),
        ("- {domain: 1, phase: x, when: {KVP: {matches: '('}}}", "no regular expression"),
        (
            "- {domain: 1, phase: x, when: {StudyDescription: {matches: native}}}",
            "exports say 'UnEnhan' on enhanced series",
        ),
    ],
)
def test_a_file_that_is_no_list_of_rules_is_refused_by_rule_and_field(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    with pytest.raises(IngestError) as refused:
        read_rules(path)
    assert str(path) in str(refused.value)
    assert words in str(refused.value)


def test_a_series_is_labelled_by_its_header_and_a_file_without_one_is_not(
    tmp_path: Path, rules
) -> None:
    write_dicom(tmp_path / "in" / "a", body_hu((2, 8, 8), 0), **ENHANCED)
    (tmp_path / "in" / "b.nii").write_bytes(b"")
    sources, _ = find_sources(tmp_path / "in")
    series, nifti = sorted(sources, key=lambda source: source.kind)
    assert label_source(series, rules) == (2, "arterial")
    with pytest.raises(IngestError, match=r"b\.nii: rules look at DICOM headers"):
        label_source(nifti, rules)
    with pytest.raises(IngestError, match=r"in/a: no rule of empty"):
        label_source(series, type(rules)("empty", ()))
