"""Distances between distributions, against theory, scikit-learn and torchmetrics."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from scipy.stats import wasserstein_distance_nd
from sklearn.metrics.pairwise import polynomial_kernel
from torchmetrics.image.kid import poly_mmd

from pmg.distribution import (
    PATCH,
    Framed,
    common_places,
    features,
    framed,
    kernel_distance,
    patches_at,
    placed,
    sliced_wasserstein,
)
from storage.volume import Volume

SPACING_MM = (4.0, 2.0, 2.0)


def samples(n: int, dims: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (n, dims))


def test_sliced_wasserstein_of_a_shift_is_its_mean_length_along_random_directions():
    a = samples(300, 3, 0)
    shift = np.array([2.0, -1.0, 2.0])
    # The mean of |cos| over the sphere in three dimensions is 1/2, its standard deviation 0.29:
    # three standard errors of 128 directions.
    error = 3 * 3 * 0.29 / np.sqrt(128)
    assert sliced_wasserstein(a, a + shift) == pytest.approx(3 / 2, abs=error)
    assert sliced_wasserstein(a, a) == 0


def test_sliced_wasserstein_in_one_dimension_is_the_wasserstein_distance():
    a, b = samples(40, 1, 1), samples(40, 1, 2, shift=0.7)
    expected = wasserstein_distance_nd(a, b)
    assert sliced_wasserstein(a, b) == pytest.approx(expected, rel=1e-6)


def test_sliced_wasserstein_does_not_depend_on_order_and_is_fixed():
    a, b = samples(50, 4, 1), samples(50, 4, 2)
    assert sliced_wasserstein(a, b) == sliced_wasserstein(a[::-1], b)
    assert sliced_wasserstein(a, b) == pytest.approx(sliced_wasserstein(b, a))


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_kernel_distance_is_that_of_scikit_learns_kernel_and_of_torchmetrics(shift):
    a, b = samples(60, 5, 3), samples(60, 5, 4, shift)
    k_aa, k_bb, k_ab = (
        polynomial_kernel(x, y, degree=3, gamma=1 / 5, coef0=1) for x, y in ((a, a), (b, b), (a, b))
    )
    off = ~np.eye(60, dtype=bool)
    expected = k_aa[off].mean() + k_bb[off].mean() - 2 * k_ab.mean()
    assert kernel_distance(a, b) == pytest.approx(expected)
    theirs = poly_mmd(torch.from_numpy(a), torch.from_numpy(b), degree=3, gamma=None, coef=1.0)
    assert kernel_distance(a, b) == pytest.approx(float(theirs))


def test_kernel_distance_is_unbiased_and_grows_with_the_difference():
    same = [kernel_distance(samples(50, 3, n), samples(50, 3, 1000 + n)) for n in range(200)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(200)
    apart = [kernel_distance(samples(400, 3, 0), samples(400, 3, 1, s)) for s in (0, 0.5, 1, 2)]
    assert all(a < b for a, b in pairwise(apart))


def test_wavelets_and_what_they_leave_hold_all_of_a_patchs_energy():
    patch = np.random.default_rng(0).uniform(-100, 300, (3, PATCH, PATCH))
    details = features(patch)[:, 6:]
    assert details.shape == (3, 9)
    # A detail of blocks of 2, 4 and 8 voxels is a difference of means: each level's squares add up.
    blocks = patch.reshape(3, PATCH // 8, 8, PATCH // 8, 8).mean(axis=(2, 4))
    energy = np.square(details).sum(axis=1) + np.square(blocks).mean(axis=(1, 2))
    np.testing.assert_allclose(energy, np.square(patch).mean(axis=(1, 2)))


def test_features_tell_orientations_and_sizes_apart_and_clip_to_soft_tissue():
    y, x = np.indices((PATCH, PATCH))
    rows, columns, coarse = (
        100.0 * (y % 2), 100.0 * (x % 2), 100.0 * (x // 4 % 2),
    )  # fmt: skip
    values = features(np.stack([rows, columns, coarse]))[:, 6:].reshape(3, 3, 3)
    assert [np.unravel_index(one.argmax(), one.shape) for one in values] == [(0, 1), (0, 0), (2, 0)]
    high, low = np.full((1, PATCH, PATCH), 3000.0), np.full((1, PATCH, PATCH), -1000.0)
    np.testing.assert_array_equal(features(high)[0, :6], 340)
    np.testing.assert_array_equal(features(low)[0, :6], -160)


def scan(
    origin: tuple[int, int, int], rule: str = "lung base", size: int = 70, seed: int = 0
) -> Framed:
    """A body that knows for every voxel where in the frame it is."""
    shape = (20, size, size)
    z, y, x = np.indices(shape)
    hu = (z - origin[0]) * 10_000 + (y - origin[1]) * 100 + (x - origin[2])
    body = np.hypot(y - size / 2, x - size / 2) < size / 2 - 2
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, ::-1] * SPACING_MM
    return Framed(Volume(hu.astype(np.float32), affine), body, origin, rule)


def test_patches_are_cut_at_the_same_place_of_every_scan():
    case = scan((8, 30, 30))
    scans = [scan((10, 35, 35)), scan((5, 40, 33), size=80)]
    places = common_places(case, scans, 200)
    assert len(places) == 200
    ours = patches_at([case], places.offset, np.zeros(200, int))
    theirs = patches_at(scans, places.offset, places.scan)
    np.testing.assert_array_equal(ours, theirs)
    others = places.where(places.other >= 0)
    assert len(others) > 100
    assert (others.scan != others.other).all()
    np.testing.assert_array_equal(
        patches_at(scans, others.offset, others.other),
        patches_at(scans, others.offset, others.scan),
    )
    assert set(places.scan) == {0, 1}


def test_places_lie_in_the_body_of_both():
    case, other = scan((8, 30, 30)), scan((10, 20, 50))
    places = common_places(case, [other], 100)
    for one in (case, other):
        assert one.body[tuple((places.offset + one.origin).T)].all()
    assert (places.other == -1).all()


def test_frames_by_another_rule_and_empty_ones_share_no_place():
    case = scan((8, 30, 30))
    assert len(common_places(case, [scan((8, 30, 30), rule="middle of the body")], 50)) == 0
    assert len(common_places(case, [], 50)) == 0
    empty = Framed(case.volume, np.zeros_like(case.body), case.origin, case.rule)
    assert len(common_places(empty, [case], 50)) == 0


def test_the_right_appearance_in_the_wrong_place_is_no_match():
    offset = np.random.default_rng(0).integers(-40, 40, (300, 3))
    values = features(np.random.default_rng(1).normal(0, 30, (300, PATCH, PATCH)))
    values[:, :6] += 3 * offset[:, 2:]  # brighter to the left
    here = placed(values, offset, SPACING_MM, values)
    mirrored = placed(values, offset * (1, 1, -1), SPACING_MM, values)
    assert here.shape == (300, 18)
    alone = sliced_wasserstein(here[:, :15], mirrored[:, :15])
    assert alone == pytest.approx(0)
    assert sliced_wasserstein(here, mirrored) > 0.1


@pytest.mark.parametrize("turned", [False, True])
def test_a_volume_is_brought_to_the_grid_and_its_frame_is_found(turned):
    _, y, x = np.indices((20, 60, 80))
    hu = np.where(((y - 30) / 22) ** 2 + ((x - 40) / 30) ** 2 < 1, 40, -1000).astype(np.int16)
    affine = np.eye(4)
    axes = np.eye(3)[:, ::-1]
    if turned:
        axes = Rotation.from_euler("z", 90, degrees=True).as_matrix() @ axes
    affine[:3, :3] = axes * (3.0, 4.0, 4.0)
    one = framed(Volume(hu, affine), SPACING_MM)
    assert one.volume.spacing_mm == pytest.approx(SPACING_MM)
    assert one.rule == "middle of the body"
    middle = np.argwhere(one.body).mean(axis=0)
    assert np.abs(middle - one.origin).max() <= 1.5
