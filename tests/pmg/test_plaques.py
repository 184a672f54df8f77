"""Contrast of plaques whose place is known, against loops over voxels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmg.plaques import SIZE_CLASSES, Plaque, PlaqueContrast, plaque_contrasts

CUBES_MM = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Truth:
    target: np.ndarray
    share: np.ndarray
    plaques: tuple[Plaque, ...]

    def contrasts(self, candidate: np.ndarray, spacing_mm=CUBES_MM) -> list[PlaqueContrast]:
        return plaque_contrasts(candidate, self.target, self.share, self.plaques, spacing_mm)


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
    return candidate, Truth(target, share, tuple(plaques))


def test_a_plaque_keeps_the_share_of_contrast_that_the_translation_leaves_it():
    candidate, truth = plaques_of(list(KEPT))
    contrasts = truth.contrasts(candidate)
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
    assert all(c.candidate_hu == c.true_hu for c in truth.contrasts(truth.target))


def contrast_by_loops(
    hu: np.ndarray, truth: Truth, index: int, spacing_mm: tuple[float, float, float]
) -> float | None:
    """Straight from the definition: every voxel asks how far the plaques' voxels are in plane."""
    plaque_voxels = np.argwhere(truth.share > 0)
    owners = [
        int(
            np.argmin(
                [np.linalg.norm((v - np.array(p.centre)) * spacing_mm) for p in truth.plaques]
            )
        )
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
    weights = [truth.share[v] for v in own]
    return float(np.average([hu[v] for v in own], weights=weights) - np.mean([hu[v] for v in ring]))


@settings(max_examples=15)
@given(
    centres=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 11), st.integers(0, 13)), min_size=1, max_size=3
    ),
    seed=st.integers(0, 2**32 - 1),
    spacing_mm=st.tuples(*[st.floats(0.5, 6)] * 3),
)
def test_contrasts_are_those_of_the_definition_wherever_plaques_lie(centres, seed, spacing_mm):
    rng = np.random.default_rng(seed)
    share = np.zeros((3, 12, 14), np.float32)
    for centre in centres:
        box = tuple(slice(max(c - r, 0), c + r + 1) for c, r in zip(centre, (0, 1, 1), strict=True))
        share[box] = np.maximum(share[box], rng.uniform(0.1, 1, share[box].shape))
    plaques = tuple(Plaque(2.0 + n, c) for n, c in enumerate(dict.fromkeys(centres)))
    target, candidate = rng.normal(100, 50, (2, *share.shape))
    truth = Truth(target, share, plaques)
    found = {c.diameter_mm: c for c in truth.contrasts(candidate, spacing_mm)}
    for index, plaque in enumerate(plaques):
        expected = contrast_by_loops(target, truth, index, spacing_mm)
        if expected is None:
            assert plaque.diameter_mm not in found
            continue
        contrast = found[plaque.diameter_mm]
        assert contrast.true_hu == pytest.approx(expected, abs=1e-3)
        assert contrast.candidate_hu == pytest.approx(
            contrast_by_loops(candidate, truth, index, spacing_mm), abs=1e-3
        )


def test_plaques_that_fill_no_voxel_are_left_out():
    candidate, truth = plaques_of([1.0])
    ghost = Plaque(9.0, (0.0, 0.0, 0.0))
    contrasts = replace(truth, plaques=(*truth.plaques, ghost)).contrasts(candidate)
    assert [c.diameter_mm for c in contrasts] == [2.0]
    nothing = replace(truth, share=np.zeros_like(truth.share))
    assert nothing.contrasts(candidate) == []
    assert replace(truth, plaques=()).contrasts(candidate) == []


def test_a_voxel_belongs_to_the_plaque_that_is_nearest_in_mm():
    share = np.zeros((9, 20, 20), np.float32)
    share[2, 10, 10] = share[5, 10, 10] = share[5, 10, 12] = 1
    # The middle one is 3 slices of 3 mm from the first and 2 pixels of 0.7 mm from the second.
    target = 100 + 300 * share
    candidate = target.copy()
    candidate[5, 10, 10] = 100
    truth = Truth(target, share, (Plaque(2.0, (2.0, 10.0, 10.0)), Plaque(3.0, (5.0, 10.0, 13.0))))
    flat, deep = ((0.5, 3.0, 3.0), (3.0, 0.7, 0.7))
    assert [c.candidate_hu for c in truth.contrasts(candidate, flat)] == [150, 300]
    assert [c.candidate_hu for c in truth.contrasts(candidate, deep)] == [300, 150]


def test_size_classes_meet_without_a_gap():
    spans = list(SIZE_CLASSES.values())
    assert [low for low, _ in spans] == [1, 2, 4]
    assert [high for _, high in spans] == [2, 4, np.inf]
