"""Intervals over subjects, against theory and plain resampling."""

from __future__ import annotations

import numpy as np
import pytest

from pmg.bootstrap import interval


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = np.random.default_rng(0).normal(20, 6, 400)
    low, high = interval(values, np.ones(400))
    half = 1.96 * values.std() / np.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.1)
    assert high == pytest.approx(values.mean() + half, abs=0.1)


def test_things_of_one_subject_stay_together():
    # Ten plaques in each of six subjects, all kept or all lost.
    totals, counts = [10, 10, 10, 0, 0, 10], [10] * 6
    rng = np.random.default_rng(5)
    drawn = rng.integers(6, size=(20_000, 6))
    shares = np.take(totals, drawn).sum(axis=1) / np.take(counts, drawn).sum(axis=1)
    low, high = interval(totals, counts)
    assert (low, high) == pytest.approx(np.percentile(shares, [2.5, 97.5]), abs=0.01)
    assert high - low > 0.6


def test_subjects_weigh_by_what_they_have():
    low, high = interval([1, 90], [1, 100])
    assert low == pytest.approx(0.9)
    assert high == pytest.approx(1.0)


def test_the_same_figures_give_the_same_interval():
    values = [3.0, 9.0, 4.0, 7.5]
    assert interval(values, [1] * 4) == interval(values, [1] * 4)


def test_one_subject_or_an_infinite_figure_has_none():
    assert interval([3.0], [1]) is None
    assert interval([], []) is None
    assert interval([3.0, np.inf], [1, 1]) is None


@pytest.mark.filterwarnings("error")
def test_a_figure_that_a_draw_of_the_subjects_may_not_have_has_none():
    assert interval([0.0, 0.0, 1.0], [0, 0, 1]) is None


def test_subjects_that_agree_have_an_interval_without_width():
    assert interval([7.0, 7.0, 7.0], [1, 1, 1]) == (7.0, 7.0)
