"""Agatston scores worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pmg.agatston import agatston, artery_region

SPACING_MM = (3.0, 0.5, 0.5)  # a pixel is 0.25 mm^2
SHAPE = (4, 30, 30)


def lesion(*pieces: tuple[tuple[slice, slice, slice], float]) -> np.ndarray:
    hu = np.full(SHAPE, 40, np.int16)
    for box, value in pieces:
        hu[box] = value
    return hu


def score(hu: np.ndarray, spacing_mm=SPACING_MM, inside: np.ndarray | None = None) -> float:
    return agatston(hu, np.ones(SHAPE, bool) if inside is None else inside, spacing_mm)


SQUARE = np.s_[1:2, 5:9, 5:9]  # 16 pixels: 4 mm^2


@pytest.mark.parametrize(
    ("peak_hu", "factor"),
    [(129, 0), (130, 1), (199, 1), (200, 2), (299, 2), (300, 3), (399, 3), (400, 4), (1500, 4)],
)
def test_a_piece_counts_its_area_times_the_factor_of_its_peak(peak_hu, factor):
    hu = lesion((SQUARE, min(peak_hu, 130)))
    hu[1, 6, 6] = peak_hu
    assert score(hu) == pytest.approx(4 * factor)


def test_pieces_of_less_than_1_mm2_do_not_count():
    assert score(lesion((np.s_[1:2, 5:6, 5:8], 500))) == 0  # 0.75 mm^2
    assert score(lesion((np.s_[1:2, 5:6, 5:9], 500))) == 4  # 1 mm^2 times 4


def test_pieces_that_touch_at_a_corner_are_one_and_have_one_peak():
    apart = lesion((np.s_[1:2, 5:7, 5:7], 150), (np.s_[1:2, 8:10, 8:10], 450))
    touching = lesion((np.s_[1:2, 5:7, 5:7], 150), (np.s_[1:2, 7:9, 7:9], 450))
    assert score(apart) == 1 * 1 + 1 * 4
    assert score(touching) == 2 * 4


def test_every_slice_is_scored_on_its_own():
    # 4 mm^2 at factor 4, then 4 mm^2 at factor 2, and a last slice of 0.25 mm^2: nothing.
    hu = lesion(
        (np.s_[0:1, 5:9, 5:9], 600), (np.s_[1:2, 5:9, 5:9], 250), (np.s_[2:3, 5:6, 5:6], 900)
    )
    assert score(hu) == 16 + 8


@pytest.mark.parametrize(("spacing_mm", "expected"), [(3.0, 32), (1.5, 16), (5.0, 32 * 5 / 3)])
def test_slices_of_another_distance_count_by_it(spacing_mm, expected):
    hu = lesion((np.s_[1:3, 5:9, 5:9], 600))
    assert score(hu, (spacing_mm, 0.5, 0.5)) == pytest.approx(expected)


def test_calcium_outside_of_the_region_does_not_count():
    hu = lesion((SQUARE, 600))
    inside = np.zeros(SHAPE, bool)
    inside[:, :, :7] = True  # half of the square
    assert score(hu, inside=inside) == 2 * 4
    assert score(hu, inside=np.zeros(SHAPE, bool)) == 0


def test_the_region_is_the_arteries_with_2_mm_round_them_without_bone():
    organs = np.zeros(SHAPE, np.uint8)
    organs[:, 10:20, 10:20] = 52
    organs[:, 20:, :] = 31  # a vertebra at the aorta
    region = artery_region(organs, SPACING_MM)
    assert region[:, 10:20, 10:20].all()
    assert region[0, 15, 6]  # 2 mm to the left
    assert not region[0, 15, 5]
    assert not region[0, 6, 6]  # 2.8 mm from the corner
    assert not region[:, 20:].any()
    organs[:, 10:20, 10:20] = 1  # a spleen is no artery
    assert not artery_region(organs, SPACING_MM).any()
