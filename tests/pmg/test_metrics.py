"""Figures of a translated case, against hand-made volumes and voxel-by-voxel loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmg.metrics import (
    Plaque,
    PlaqueContrast,
    Truth,
    body_mae,
    organ_means,
    plaque_contrasts,
)

SHAPE = (3, 40, 40)


def truth_of(target: np.ndarray, **fields) -> Truth:
    """A truth without organs and plaques, all of it body; other fields by name."""
    empty = Truth(
        target,
        np.ones(target.shape, bool),
        np.zeros(target.shape, np.uint8),
        {},
        np.zeros(target.shape, np.float32),
        (),
    )
    return replace(empty, **fields)


def test_body_mae_counts_the_body_alone():
    target = np.zeros(SHAPE, np.int16)
    body = np.zeros(SHAPE, bool)
    body[:, 10:20, 10:20] = True
    candidate = target.copy()
    candidate[:, :10] = 900
    candidate[0, 10:20, 10:20] = -30
    assert body_mae(candidate, truth_of(target, body=body)) == pytest.approx(10)
    assert body_mae(target, truth_of(target, body=body)) == 0


def test_body_mae_of_int16_does_not_wrap():
    target = np.full(SHAPE, 30_000, np.int16)
    assert body_mae(np.full(SHAPE, -30_000, np.int16), truth_of(target)) == 60_000


def test_organ_means_leave_out_the_border_in_plane():
    organs = np.zeros(SHAPE, np.uint8)
    organs[1, 10:16, 10:15] = 5
    hu = np.where(organs == 5, 500.0, -1000.0)
    hu[1, 11:15, 11:14] = np.arange(12).reshape(4, 3)
    truth = truth_of(hu, organs=organs, organ_names={"liver": (5,)})
    assert organ_means(hu, truth) == {"liver": pytest.approx(5.5)}


def test_labels_of_one_organ_are_one_region():
    organs = np.zeros(SHAPE, np.uint8)
    organs[:, 10:20, 10:15], organs[:, 10:20, 15:20] = 2, 3
    hu = np.zeros(SHAPE)
    hu[:, 11:19, 14:16] = 90  # where the two touch: inside of both together
    truth = truth_of(hu, organs=organs, organ_names={"kidney": (2, 3), "right": (2,)})
    means = organ_means(hu, truth)
    assert means["kidney"] == pytest.approx(90 * 2 / 8)
    assert means["right"] == 0


def test_organs_without_an_inside_are_absent():
    organs = np.zeros(SHAPE, np.uint8)
    organs[1, 5:7, 5:30] = 1
    names = {"thin": (1,), "missing": (9,)}
    hu = np.zeros(SHAPE)
    assert organ_means(hu, truth_of(hu, organs=organs, organ_names=names)) == {}


LUMEN_HU = 150.0
KEPT = {1.0: True, 0.6: True, 0.4: False, 0.0: False, -0.5: False}


def plaques_of(factors: list[float]) -> tuple[np.ndarray, Truth]:
    """A candidate that keeps a share of each plaque's contrast, and the truth."""
    share = np.zeros((3, 20, 20 * len(factors)), np.float32)
    kept = share.copy()
    plaques = []
    for n, factor in enumerate(factors):
        middle = 10 + 20 * n
        share[1, 9:12, middle - 1 : middle + 2] = [[0.2, 0.5, 0.2], [0.5, 1, 0.5], [0.2, 0.5, 0.2]]
        kept[1, 9:12, middle - 1 : middle + 2] = factor
        plaques.append(Plaque(2.0 + n, (1.0, 10.0, float(middle))))
    target = LUMEN_HU + 400 * share
    candidate = 35 + 400 * share * kept  # another lumen: contrast is what counts
    return candidate, truth_of(target, plaque_share=share, plaques=tuple(plaques))


def test_a_plaque_keeps_the_share_of_contrast_that_the_translation_leaves_it():
    candidate, truth = plaques_of(list(KEPT))
    contrasts = plaque_contrasts(candidate, truth)
    assert [c.diameter_mm for c in contrasts] == [2.0, 3.0, 4.0, 5.0, 6.0]
    share = np.array([0.2] * 4 + [0.5] * 4 + [1.0])
    true_hu = 400 * (share**2).sum() / share.sum()
    for contrast, (factor, kept) in zip(contrasts, KEPT.items(), strict=True):
        assert contrast.true_hu == pytest.approx(true_hu, rel=1e-5)
        assert contrast.candidate_hu == pytest.approx(factor * true_hu, rel=1e-4, abs=1e-2)
        assert contrast.kept is kept
        assert contrast.measurable


def test_of_the_true_contrast_a_half_is_enough_and_20_hu_are_measurable():
    assert PlaqueContrast(3.0, 100.0, 50.0).kept
    assert not PlaqueContrast(3.0, 100.0, 49.9).kept
    assert PlaqueContrast(3.0, 20.0, 0.0).measurable
    assert not PlaqueContrast(3.0, 19.9, 0.0).measurable


def test_the_truth_itself_keeps_every_plaque():
    _, truth = plaques_of([1.0, 1.0])
    assert all(c.candidate_hu == c.true_hu for c in plaque_contrasts(truth.target, truth))


def contrast_by_loops(hu: np.ndarray, truth: Truth, index: int) -> float | None:
    """Straight from the definition: every voxel asks how far the plaques' voxels are in plane."""
    plaque_voxels = np.argwhere(truth.plaque_share > 0)
    owners = [
        int(np.argmin([np.linalg.norm(v - np.array(p.centre)) for p in truth.plaques]))
        for v in plaque_voxels
    ]
    own = [tuple(v) for v, owner in zip(plaque_voxels, owners, strict=True) if owner == index]
    if not own:
        return None

    def in_plane(a, b) -> float:
        return max(abs(a[1] - b[1]), abs(a[2] - b[2])) if a[0] == b[0] else np.inf

    ring = [
        v
        for v in np.ndindex(hu.shape)
        if min(in_plane(v, o) for o in own) <= 3 and min(in_plane(v, p) for p in plaque_voxels) > 1
    ]
    if not ring:
        return None
    weights = [truth.plaque_share[v] for v in own]
    return float(np.average([hu[v] for v in own], weights=weights) - np.mean([hu[v] for v in ring]))


@settings(max_examples=15, deadline=None)
@given(
    centres=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 11), st.integers(0, 13)), min_size=1, max_size=3
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_contrasts_are_those_of_the_definition_wherever_plaques_lie(centres, seed):
    rng = np.random.default_rng(seed)
    share = np.zeros((3, 12, 14), np.float32)
    for centre in centres:
        box = tuple(slice(max(c - r, 0), c + r + 1) for c, r in zip(centre, (0, 1, 1), strict=True))
        share[box] = np.maximum(share[box], rng.uniform(0.1, 1, share[box].shape))
    plaques = tuple(Plaque(2.0 + n, c) for n, c in enumerate(dict.fromkeys(centres)))
    target, candidate = rng.normal(100, 50, (2, *share.shape))
    truth = truth_of(target, plaque_share=share, plaques=plaques)
    found = {c.diameter_mm: c for c in plaque_contrasts(candidate, truth)}
    for index, plaque in enumerate(plaques):
        expected = contrast_by_loops(target, truth, index)
        if expected is None:
            assert plaque.diameter_mm not in found
            continue
        contrast = found[plaque.diameter_mm]
        assert contrast.true_hu == pytest.approx(expected, abs=1e-3)
        assert contrast.candidate_hu == pytest.approx(
            contrast_by_loops(candidate, truth, index), abs=1e-3
        )


def test_plaques_that_fill_no_voxel_are_left_out():
    candidate, truth = plaques_of([1.0])
    ghost = Plaque(9.0, (0.0, 0.0, 0.0))
    contrasts = plaque_contrasts(candidate, replace(truth, plaques=(*truth.plaques, ghost)))
    assert [c.diameter_mm for c in contrasts] == [2.0]
    nothing = replace(truth, plaque_share=np.zeros_like(truth.plaque_share))
    assert plaque_contrasts(candidate, nothing) == []
    assert plaque_contrasts(candidate, replace(truth, plaques=())) == []
