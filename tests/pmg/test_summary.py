"""The tables of an evaluation, from results written down by hand."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from pmg.bootstrap import interval
from pmg.evaluate import CaseResult
from pmg.quantity import Amount, Quantity
from pmg.summary import Row, Value, per_case, summarise
from pmg.tables import number, shown, span, write_tables

MAE = Quantity("body MAE", "HU")
AORTA = Quantity("aorta", "HU", of_truth=True)
KEPT = Quantity("plaques kept", "%", "at least half", "plaque")


def case(name: str, subject: str = "", **candidates) -> CaseResult:
    """A number is a quantity of the case; (total, count) one over things."""
    return CaseResult(
        name,
        subject or name,
        {
            candidate: {
                quantity: Amount(*amount) if isinstance(amount, tuple) else Amount(amount)
                for quantity, amount in figures.items()
            }
            for candidate, figures in candidates.items()
        },
    )


def by_name(results) -> dict[str, Row]:
    rows = summarise(results)
    assert len({row.name for row in rows}) == len(rows)
    return {row.name: row for row in rows}


def test_a_figure_is_the_mean_over_cases_beside_that_of_identity():
    results = [
        case("a", translated={MAE: 20}, identity={MAE: 40}),
        case("b", translated={MAE: 30}, identity={MAE: 80}),
    ]
    row = by_name(results)["body MAE"]
    assert (row.unit, row.identity.value, row.translated.value) == ("HU", 60, 25)
    assert (row.matched, row.truth) == (None, None)
    assert row.note == "2 cases"


def test_plaques_of_all_cases_count_the_same():
    results = [case("a", translated={KEPT: (100, 1)}), case("b", translated={KEPT: (100, 3)})]
    row = by_name(results)["plaques kept"]
    assert row.translated.value == 50
    assert row.note == "at least half; 4 plaques in 2 cases"


def test_one_of_anything_is_singular():
    row = by_name([case("a", translated={KEPT: (100, 1), MAE: 3})])
    assert row["plaques kept"].note == "at least half; 1 plaque in 1 case"
    assert row["body MAE"].note == "1 case"


def test_intervals_are_over_subjects_whose_cases_stay_together():
    errors = {"a": 10.0, "b": 40.0, "c": 25.0}
    results = [
        case(f"{subject}{n}", subject, translated={MAE: error})
        for subject, error in errors.items()
        for n in range(3)
    ]
    value = by_name(results)["body MAE"].translated
    assert (value.value, value.subjects) == (25, 3)
    assert value.interval == interval([3 * error for error in errors.values()], [3, 3, 3])
    low, high = value.interval
    assert high - low > 15  # nine independent cases would give about half of it
    one = by_name([r for r in results if r.subject == "a"])["body MAE"].translated
    assert one == Value(10, None, 1)


def test_cases_that_have_nothing_to_count_are_left_out():
    results = [
        case("a", translated={KEPT: (0, 0)}),
        case("b", translated={KEPT: (300, 4)}),
    ]
    row = by_name(results)["plaques kept"]
    assert row.translated == Value(75, None, 1)
    assert row.note.endswith("4 plaques in 1 case")
    assert summarise(results[:1]) == []
    assert summarise([]) == []


def test_rows_come_in_the_order_of_measuring_and_the_truth_has_none_of_its_own():
    alone = Quantity("only the truth's", "HU", of_truth=True)
    results = [
        case("a", identity={AORTA: 40}, translated={AORTA: 140}, truth={AORTA: 150, alone: 1}),
        case("b", identity={MAE: 30, AORTA: 44}, translated={MAE: 10, AORTA: 180}),
    ]
    rows = summarise(results)
    assert [row.name for row in rows] == ["aorta", "body MAE"]
    assert (rows[0].identity.value, rows[0].translated.value, rows[0].truth.value) == (42, 160, 150)
    assert rows[1].note == "1 case"


def results() -> list[CaseResult]:
    psnr = Quantity("PSNR", "dB")
    return [
        case(
            "a",
            "x",
            identity={MAE: 40, psnr: 30, KEPT: (0, 0)},
            translated={MAE: 20, psnr: np.inf, KEPT: (0, 0)},
            truth={AORTA: 150},
        ),
        case("b", identity={MAE: 60}, translated={MAE: 21}),
    ]


def test_every_case_has_its_own_figures():
    rows = {(row.case, row.name): row for row in per_case(results())}
    assert rows.keys() == {
        ("a", "body MAE"),
        ("a", "PSNR"),
        ("a", "plaques kept"),
        ("a", "aorta"),
        ("b", "body MAE"),
    }
    first = rows["a", "body MAE"]
    assert (first.subject, first.identity, first.translated, first.matched) == ("x", 40, 20, None)
    assert (rows["a", "plaques kept"].translated, rows["a", "plaques kept"].count) == (None, 0)
    assert rows["a", "aorta"].truth == 150


def test_tables_are_written_as_csv_and_as_json_that_any_program_reads(tmp_path):
    write_tables(tmp_path / "out", summarise(results()), results())

    def strict(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    for name, count in (("metrics", 2), ("cases", 5)):
        text = (tmp_path / "out" / f"{name}.json").read_text()
        records = json.loads(text, parse_constant=strict)
        assert len(records) == count
        with (tmp_path / "out" / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        as_text = [{k: "" if v is None else str(v) for k, v in r.items()} for r in records]
        assert rows == as_text
    metrics = {r["name"]: r for r in json.loads((tmp_path / "out" / "metrics.json").read_text())}
    mae = metrics["body MAE"]
    assert (mae["identity"], mae["translated"], mae["matched"], mae["subjects"]) == (
        50,
        20.5,
        None,
        2,
    )
    assert mae["translated_low"] < 20.5 < mae["translated_high"]
    assert metrics["PSNR"]["translated"] is None


def test_tables_of_nothing_are_empty(tmp_path):
    write_tables(tmp_path, [], [])
    assert json.loads((tmp_path / "metrics.json").read_text()) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (123.456, "123.5"),
        (10, "10.0"),
        (9.8765, "9.88"),
        (-0.01234, "-0.0123"),
        (0, "0.0"),
        (2e-5, "0.000"),
        (np.inf, "inf"),
    ],
)
def test_numbers_have_three_digits_or_one_decimal(value, text):
    assert number(Value(value)) == text


def test_what_is_not_known_is_empty():
    assert number(None) == span(None) == span(Value(3)) == ""
    assert span(Value(3, (2.5, 31))) == "2.50 to 31.0"


def test_a_candidate_that_no_row_has_gets_no_column():
    row = Row("a", "HU", Value(1), None, Value(2), None)
    assert list(shown([row])) == ["identity", "translated"]
    matched = replace(row, matched=Value(3))
    assert shown([row, matched]) == {
        "identity": "no translation",
        "matched": "histogram",
        "translated": "pmg",
    }
