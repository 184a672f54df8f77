"""The table of an evaluation, from results written down by hand."""

from __future__ import annotations

import pytest

from pmg.evaluate import CaseResult, Measures, Region, RegionResult
from pmg.metrics import PlaqueContrast
from pmg.summary import summarise


def by_name(results):
    rows = summarise(results)
    assert len({row.name for row in rows}) == len(rows)
    return {row.name: row for row in rows}


def case(name, *, mae=(0, 0), organs=({}, {}, {}), plaques=((), ())):
    """Figures of translation and identity, and the truth's organs."""
    translated, identity = (
        Measures(error, means, tuple(PlaqueContrast(*plaque) for plaque in contrasts))
        for error, means, contrasts in zip(mae, organs[:2], plaques, strict=True)
    )
    return CaseResult(name, translated, identity, organs[2])


def test_body_mae_is_the_mean_over_cases_beside_that_of_identity():
    results = [case("a", mae=(20, 40)), case("b", mae=(30, 80))]
    row = by_name(results)["body MAE"]
    assert (row.unit, row.identity, row.translated, row.truth) == ("HU", 60, 25, None)
    assert row.note == "2 cases"


def test_organs_stand_beside_their_truth_over_the_cases_that_have_them():
    results = [
        case(
            "a",
            organs=(
                {"aorta": 140, "liver": 100},
                {"aorta": 40, "liver": 50},
                {"aorta": 150, "liver": 110},
            ),
        ),
        case("b", organs=({"aorta": 180}, {"aorta": 44}, {"aorta": 160})),
    ]
    rows = by_name(results)
    aorta = rows["aorta"]
    assert (aorta.identity, aorta.translated, aorta.truth) == (42, 160, 155)
    # Errors of -10 and +20 do not cancel.
    assert aorta.note == "off by 15 HU on average over 2 cases"
    assert rows["liver"].note == "off by 10 HU on average over 1 cases"


def test_plaques_count_from_2_mm_if_the_truth_shows_them():
    translated = [
        (3.0, 100, 80),  # kept
        (2.0, 200, 80),  # lost
        (1.9, 100, 0),  # too small to count
        (5.0, 10, 0),  # not to be seen in the truth
    ]
    identity = [(d, true, true) for d, true, _ in translated]
    row = by_name([case("a", plaques=(translated, identity))])
    kept, contrast = row["plaques kept"], row["plaque contrast / true contrast"]
    assert (kept.unit, kept.identity, kept.translated) == ("%", 100, 50)
    assert kept.note.startswith("2 plaques of 2 mm or more")
    assert (contrast.identity, contrast.translated, contrast.truth) == (100, pytest.approx(60), 100)


def test_without_plaques_there_is_no_row_of_them():
    assert not [name for name in by_name([case("a", mae=(1, 2))]) if "plaque" in name]


def region(name, mm3, calcium, other):
    return RegionResult(Region(name, (0.0, 0.0, 0.0), 5.0), mm3, calcium, other)


def test_regions_show_calcium_and_the_rest_before_and_after():
    regions = (region("arch", 12.4, (400, 380), (45, 140)), region("blood", 0.0, None, (40, 150)))
    rows = by_name([CaseResult("pat_3", regions=regions)])
    assert rows.keys() == {
        "pat_3: arch, mean",
        "pat_3: arch, calcium",
        "pat_3: blood, mean",
    }
    calcium = rows["pat_3: arch, calcium"]
    assert (calcium.identity, calcium.translated, calcium.unit) == (400, 380, "HU")
    assert calcium.note == "12 mm3 of 130 HU or more in the source"
    assert (rows["pat_3: arch, mean"].identity, rows["pat_3: arch, mean"].translated) == (45, 140)


def test_a_region_of_nothing_but_calcium_has_no_other_mean():
    rows = by_name([CaseResult("a", regions=(region("stone", 8.0, (900, 700), None),))])
    assert rows.keys() == {"a: stone, calcium"}


def test_cases_without_truth_add_no_figures_of_those_with():
    results = [case("a", mae=(20, 40)), CaseResult("b")]
    row = by_name(results)["body MAE"]
    assert (row.translated, row.note) == (20, "1 cases")
    assert summarise([]) == []
