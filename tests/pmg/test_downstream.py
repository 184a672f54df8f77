"""Scores of the downstream tasks, against counts by hand and MONAI's Dice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice

from pmg.bootstrap import difference_interval
from pmg.downstream import Score, compare, score
from pmg.segmentation import CLASSES, Labelled, SegmentationSettings, segment, train_segmentation

SPACING_MM = (3.0, 2.0, 2.0)
PANCREAS, PLAQUE = CLASSES["pancreas"], CLASSES["plaque"]
CPU = torch.device("cpu")


def empty() -> np.ndarray:
    return np.zeros((6, 40, 40), np.uint8)


def test_dice_is_monais():
    rng = np.random.default_rng(0)
    found, true = (rng.integers(3, size=(6, 40, 40)).astype(np.uint8) for _ in range(2))
    scores = score(found, true, SPACING_MM)
    one_hot = [torch.from_numpy(np.eye(3)[a]).movedim(-1, 0)[None] for a in (found, true)]
    _, pancreas, plaque = compute_dice(*one_hot)[0].tolist()
    assert scores["pancreas, Dice"].value == pytest.approx(pancreas)
    assert scores["plaque, Dice"].value == pytest.approx(plaque)


def test_a_plaque_is_detected_within_3_mm_and_others_are_false_or_missed():
    true, found = empty(), empty()
    true[2, 10, 10:12] = true[2, 30, 30] = true[4, 20, 5] = PLAQUE
    found[2, 11, 10] = PLAQUE  # 2 mm from the first
    found[2, 32, 30] = PLAQUE  # 4 mm from the second: missed, and false
    found[0, 5, 35] = PLAQUE  # false
    f1 = score(found, true, SPACING_MM)["plaque, F1"]
    assert f1.value == pytest.approx(2 * 1 / (2 * 1 + 2 + 2))


def test_what_the_truth_has_not_has_no_dice_and_false_plaques_still_count():
    found = empty()
    found[1, 3, 3] = PLAQUE
    scores = score(found, empty(), SPACING_MM)
    assert set(scores) == {"plaque, F1"}
    assert scores["plaque, F1"] == Score(0.0, 1.0)
    nothing = score(empty(), empty(), SPACING_MM)["plaque, F1"]
    assert nothing.count == 0  # nothing to find and nothing found is no figure


def test_the_difference_is_taken_subject_by_subject():
    hard_and_easy = [0.1, 0.3, 0.5, 0.7, 0.9]
    before = [{"pancreas, Dice": Score(value, 1.0)} for value in hard_and_easy]
    after = [{"pancreas, Dice": Score(value + 0.05, 1.0)} for value in hard_and_easy]
    (row,) = compare(before, after)
    assert row.untranslated == pytest.approx(0.5)
    assert row.difference == pytest.approx(0.05)
    assert row.difference_interval == pytest.approx((0.05, 0.05))
    low, high = row.untranslated_interval
    assert high - low > 0.3


def test_f1_is_pooled_over_plaques():
    before = [{"plaque, F1": Score(0.0, 4.0)}, {"plaque, F1": Score(2.0, 2.0)}]
    after = [{"plaque, F1": Score(4.0, 5.0)}, {"plaque, F1": Score(2.0, 3.0)}]
    (row,) = compare(before, after)
    assert (row.untranslated, row.translated) == (2 / 6, 6 / 8)
    low, high = row.difference_interval
    assert (low, high) == pytest.approx((2 / 3 - 1, 4 / 5 - 0))
    assert difference_interval(([1.0], [2.0]), ([1.0], [1.0])) is None


@pytest.mark.slow
def test_the_network_learns_what_it_is_shown():
    """A grey disc is the pancreas; a white dot is plaque at its side, but not elsewhere."""
    rng = np.random.default_rng(1)

    def scan() -> Labelled:
        hu = rng.normal(-100, 15, (4, 64, 64))
        classes = np.zeros(hu.shape, np.uint8)
        y, x = np.mgrid[:64, :64]
        cy, cx = rng.integers(20, 44, 2)
        disc = np.hypot(y - cy, x - cx) < 8
        hu[:, disc], classes[:, disc] = 95 + rng.normal(0, 15, (4, disc.sum())), PANCREAS
        dot = np.index_exp[2, cy : cy + 2, cx + 9 : cx + 11]
        hu[dot], classes[dot] = 700, PLAQUE
        return Labelled(hu.astype(np.int16), classes)

    settings = SegmentationSettings(channels=(8, 16), patch=32, batch=8, steps=150)
    network = train_segmentation([scan() for _ in range(6)], settings, CPU)
    unseen = scan()
    scores = score(segment(network, unseen.hu, settings, CPU), unseen.classes, SPACING_MM)
    assert scores["pancreas, Dice"].value > 0.9
    assert scores["plaque, Dice"].value > 0.5


def test_training_needs_a_scan():
    with pytest.raises(ValueError, match="no scans"):
        train_segmentation([], SegmentationSettings(), CPU)
