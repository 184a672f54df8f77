"""The separable resampling against SciPy's filter followed by SimpleITK's interpolation."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from make_cohort import lps
from scipy import ndimage

from storage.grid import AIR_HU, antialiasing_mm, resample
from storage.separable import axis_between, resampled
from storage.volume import Volume

spacings = st.tuples(*[st.floats(0.4, 6.0)] * 3)


def by_scipy_and_simpleitk(volume: Volume, grid: Volume) -> np.ndarray:
    sigma = antialiasing_mm(volume, grid.spacing_mm) / volume.spacing_mm
    smooth = ndimage.gaussian_filter(
        volume.hu.astype(np.float64), sigma, mode="nearest", truncate=3.0
    )
    image = sitk.GetImageFromArray(smooth)
    image.SetSpacing(volume.spacing_mm[::-1])
    image.SetOrigin(volume.affine[:3, 3].tolist())
    size, identity = grid.shape[::-1], sitk.Transform()
    return sitk.GetArrayFromImage(
        sitk.Resample(
            image,
            size,
            identity,
            sitk.sitkLinear,
            grid.affine[:3, 3].tolist(),
            grid.spacing_mm[::-1],
            np.eye(3).ravel().tolist(),
            AIR_HU,
        )
    )


@settings(max_examples=40)
@given(spacings, spacings, st.integers(0, 2**32 - 1))
def test_resampling_is_smoothing_then_linear_interpolation(
    own_mm: tuple[float, float, float], target_mm: tuple[float, float, float], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    hu = rng.normal(0, 400, rng.integers(2, 24, 3)).astype(np.float32)
    volume = Volume(hu, lps(own_mm, (-5, 7, 11)))
    result = resample(volume, target_mm)
    if result.shape == hu.shape and np.allclose(own_mm, target_mm, atol=1e-3):
        return  # the same grid: voxels go through as they are
    expected = by_scipy_and_simpleitk(volume, result)
    np.testing.assert_allclose(result.hu, expected, atol=0.01)

    whole = Volume(hu.round().astype(np.int16), volume.affine)
    rounded = resample(whole, target_mm)
    exact = by_scipy_and_simpleitk(whole, rounded)
    assert rounded.hu.dtype == np.int16
    assert np.abs(rounded.hu - exact).max() <= 0.51


def test_beyond_the_old_voxels_is_air() -> None:
    axis = axis_between(4, np.array([-0.6, -0.5, -0.2, 1.5, 3.4, 3.5]), 0.0)
    assert axis.inside.tolist() == [False, True, True, True, True, False]
    same = axis_between(2, np.arange(2.0), 0.0)
    hu = np.arange(16, dtype=np.int16).reshape(4, 2, 2)
    result = resampled(hu, (axis, same, same), AIR_HU)
    assert (result[[0, 5]] == -1024).all()
    np.testing.assert_array_equal(result[1], hu[0])
    np.testing.assert_array_equal(result[3], hu[1] + 2)
    np.testing.assert_array_equal(resampled(hu.T, (same, same, axis), AIR_HU), result.T)


@pytest.mark.parametrize("sigma", [0.0, 0.4, 1.7])
def test_every_row_is_a_weighted_mean(sigma: float) -> None:
    axis = axis_between(30, np.linspace(-2, 32, 50), sigma)
    np.testing.assert_allclose(axis.weights.sum(axis=1), axis.inside, atol=1e-6)
    assert axis.weights.min() >= 0


def test_slightly_turned_axes_are_interpolated_at_their_true_places() -> None:
    shape, angle = (12, 200, 200), 8e-4  # 0.16 voxels off at the end; called aligned up to 0.001
    affine = lps((3, 1, 1))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    affine[:2, :3] = turn @ affine[:2, :3]

    def x_mm(volume_shape: tuple[int, ...], grid: np.ndarray) -> np.ndarray:
        indices = np.indices(volume_shape).reshape(3, -1)
        return (grid[0, :3] @ indices + grid[0, 3]).reshape(volume_shape)

    hu = (10 * x_mm(shape, affine)).astype(np.float32)  # neither step changes what is linear
    result = resample(Volume(hu, affine), (3.0, 2.0, 2.0))
    inner = (slice(2, -2), slice(8, -8), slice(8, -8))
    expected = 10 * x_mm(result.shape, result.affine)
    np.testing.assert_allclose(result.hu[inner], expected[inner], atol=0.02)
