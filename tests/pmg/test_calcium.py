"""Specks of calcium planted by hand: kept, lost, invented, and what is none."""

from __future__ import annotations

import numpy as np
import pytest

from pmg.calcium import invented, kept, specks

SHAPE = (12, 48, 48)
SPACING_MM = (3.0, 1.0, 1.0)
BODY = np.ones(SHAPE, bool)
SPECK = np.s_[4:6, 10:13, 10:13]  # 54 mm^3
NONE = np.zeros(SHAPE, bool)


def source() -> np.ndarray:
    return np.random.default_rng(0).normal(40, 15, SHAPE).round()


def planted(hu: np.ndarray, *boxes, by: float) -> np.ndarray:
    out = hu.copy()
    for box in boxes:
        out[box] += by
    return out


def count(candidate, *known, plaque=NONE, body=BODY, from_hu=130) -> int:
    return invented(candidate, known, body, SPACING_MM, from_hu=from_hu, plaque=plaque)


def test_what_is_planted_is_counted_and_the_source_itself_invents_nothing():
    hu = source()
    assert count(hu, hu, hu) == 0
    others = np.s_[1:2, 30:33, 30:33], np.s_[8:10, 20:22, 40:42]
    assert count(planted(hu, SPECK, *others, by=250), hu, hu) == 3


def test_a_rise_counts_from_100_hu_above_both_source_and_truth():
    hu = np.full(SHAPE, 60.0)
    assert count(planted(hu, SPECK, by=100), hu, hu) == 1
    assert count(planted(hu, SPECK, by=99), hu, hu) == 0
    brighter = planted(hu, SPECK, by=150)
    assert count(planted(hu, SPECK, by=240), hu, brighter) == 0  # the truth has most of it
    assert count(planted(hu, SPECK, by=240), brighter, hu) == 0  # the source has
    assert count(planted(hu, SPECK, by=250), brighter, hu) == 1


def test_what_stays_below_the_calcium_threshold_is_none():
    hu = np.full(SHAPE, -100.0)
    assert count(planted(hu, SPECK, by=200), hu, hu) == 0
    assert count(planted(hu, SPECK, by=230), hu, hu) == 1
    assert count(planted(hu, SPECK, by=230), hu, hu, from_hu=300) == 0


@pytest.mark.parametrize(
    ("box", "counts"),
    [
        (np.s_[4:5, 10:11, 10:11], 1),  # 3 mm^3
        (np.s_[4:5, 10:20, 10:12], 1),  # 10 mm long
        (np.s_[4:5, 10:21, 10:12], 0),  # 11 mm: a vessel or an organ's border
        (np.s_[4:8, 10:12, 10:12], 0),  # 12 mm along z
        (np.s_[2:9, 10:40, 10:40], 0),  # an organ
    ],
)
def test_only_compact_pieces_of_3_mm3_or_more_are_specks(box, counts):
    hu = np.full(SHAPE, 40.0)
    assert count(planted(hu, box, by=300), hu, hu) == counts
    small = invented(planted(hu, box, by=300), (hu, hu), BODY, (2.9, 1.0, 1.0), from_hu=130)
    assert small == (0 if counts and np.zeros(SHAPE)[box].size == 1 else counts)


def test_pieces_that_touch_at_a_corner_are_one():
    mask = NONE.copy()
    mask[4, 10:12, 10:12] = mask[5, 12:14, 12:14] = True
    (one,) = specks(mask, SPACING_MM)
    assert len(one.voxels) == 8
    assert mask[one.index].all()


def test_blooming_of_a_true_plaque_is_not_invented():
    hu, plaque = np.full(SHAPE, 40.0), NONE.copy()
    plaque[SPECK] = True
    near, far = np.s_[4:6, 10:13, 15:17], np.s_[4:6, 10:13, 16:18]  # 3 and 4 mm away
    assert count(planted(hu, near, by=300), hu, hu, plaque=plaque) == 0
    assert count(planted(hu, far, by=300), hu, hu, plaque=plaque) == 1


def test_nothing_outside_of_the_body_is_a_plaque():
    hu, body = np.full(SHAPE, 40.0), NONE.copy()
    body[:, 20:] = True
    assert count(planted(hu, SPECK, by=300), hu, hu, body=body) == 0


def test_int16_does_not_wrap():
    hu = np.full(SHAPE, -1000, np.int16)
    candidate = hu.copy()
    candidate[SPECK] = 32_000
    assert count(candidate, hu, hu) == 1


def test_calcium_is_kept_while_half_of_what_stands_out_is_there():
    hu = planted(np.full(SHAPE, 40.0), SPECK, by=300)
    enhanced = hu + 100

    def stay(candidate) -> tuple[int, int]:
        return kept(candidate, hu, BODY, SPACING_MM, from_hu=130)

    assert stay(hu) == (1, 1)
    assert stay(enhanced) == (1, 1)
    assert stay(planted(hu, SPECK, by=-150)) == (1, 1)
    assert stay(planted(hu, SPECK, by=-151)) == (0, 1)
    buried = np.full(SHAPE, 345.0)  # an arterial lumen as bright as the calcium: it is still there
    assert stay(buried) == (1, 1)
    assert stay(np.full(SHAPE, 150.0)) == (0, 1)


def test_bone_and_noise_are_no_calcium_of_which_any_could_be_lost():
    hu = np.full(SHAPE, 40.0)
    bone = planted(hu, np.s_[2:9, 5:30, 5:30], by=400)
    faint = planted(hu, SPECK, by=95)  # 135 HU, 95 above its surrounding
    for one in (hu, bone, faint):
        assert kept(hu, one, BODY, SPACING_MM, from_hu=130) == (0, 0)
