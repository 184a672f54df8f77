"""Nearness to the truth, against scikit-image, SimpleITK and loops."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from skimage.transform import downscale_local_mean

from pmg.fidelity import (
    PSNR_RANGE_HU,
    SSIM_WINDOW_HU,
    body_mae,
    gradient_correlation,
    gradient_error,
    ms_ssim,
    organ_means,
    psnr,
)

SHAPE = (3, 40, 40)
SPACING_MM = (5.0, 1.5, 0.75)
RANGE_HU = SSIM_WINDOW_HU[1] - SSIM_WINDOW_HU[0]
WEIGHTS = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])  # Wang et al. 2003, table of scales


def box(*shape: int) -> np.ndarray:
    """A body with some air round it."""
    body = np.zeros(shape, bool)
    body[:, 3:-4, 5:-2] = True
    return body


def tissue(*shape: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Smooth organs, and the same with noise and one organ brighter."""
    rng = np.random.default_rng(seed)
    _, y, x = np.indices(shape)
    clean = 40 + 80 * np.sin(y / 9) * np.cos(x / 7)
    other = clean + rng.normal(0, 15, shape) + 60 * (np.hypot(y - 20, x - 25) < 9)
    return np.rint(other).astype(np.int16), np.rint(clean).astype(np.int16)


def test_body_mae_counts_the_body_alone():
    target = np.zeros(SHAPE, np.int16)
    body = np.zeros(SHAPE, bool)
    body[:, 10:20, 10:20] = True
    candidate = target.copy()
    candidate[:, :10] = 900
    candidate[0, 10:20, 10:20] = -30
    assert body_mae(candidate, target, body) == pytest.approx(10)
    assert body_mae(target, target, body) == 0


def test_body_mae_of_int16_does_not_wrap():
    target, body = np.full(SHAPE, 30_000, np.int16), np.ones(SHAPE, bool)
    assert body_mae(np.full(SHAPE, -30_000, np.int16), target, body) == 60_000


def test_psnr_is_scikit_images_on_the_bodys_voxels():
    (candidate, target), body = tissue(*SHAPE), box(*SHAPE)
    candidate[~body] = 3000
    expected = peak_signal_noise_ratio(
        target[body].astype(float), candidate[body].astype(float), data_range=PSNR_RANGE_HU
    )
    assert psnr(candidate, target, body) == pytest.approx(expected, abs=1e-4)
    assert psnr(target, target, body) == np.inf


def settings(**more) -> dict:
    """Those of Wang et al.: a Gaussian of 11 pixels and 1.5 standard deviation."""
    return {
        "data_range": RANGE_HU,
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
    } | more


def ms_ssim_by_scikit_image(a: np.ndarray, b: np.ndarray, scales: int) -> float:
    """Its SSIM at every scale; a huge K1 turns the luminance into 1 and leaves contrast and
    structure, which all scales but the last count."""
    weights = WEIGHTS[:scales] / WEIGHTS[:scales].sum()
    product = 1.0
    for scale, weight in enumerate(weights):
        last = scale == scales - 1
        value = structural_similarity(a, b, **settings(**({} if last else {"K1": 1e6})))
        product *= max(value, 0.0) ** weight
        a, b = (downscale_local_mean(image, (2, 2)) for image in (a, b))
    return product


@pytest.mark.parametrize(("pixels", "scales"), [(208, 5), (112, 4), (52, 3), (24, 2), (16, 1)])
def test_ms_ssim_is_that_of_scikit_images_ssim_at_as_many_scales_as_fit(pixels, scales):
    candidate, target = tissue(2, pixels, pixels, seed=pixels)
    body = np.ones(candidate.shape, bool)
    expected = [
        ms_ssim_by_scikit_image(
            *(np.clip(one.astype(float), *SSIM_WINDOW_HU) for one in pair), scales
        )
        for pair in zip(candidate, target, strict=True)
    ]
    assert 0.3 < expected[0] < 0.99
    assert ms_ssim(candidate, target, body) == pytest.approx(np.mean(expected), abs=1e-5)


def test_ms_ssim_sees_neither_air_nor_slices_without_body():
    candidate, target = tissue(3, 64, 64)
    body = box(3, 64, 64)
    body[2] = False
    first = ms_ssim(candidate, target, body)
    candidate[~body] += 400
    assert ms_ssim(candidate, target, body) == first
    assert ms_ssim(target, target, body) == pytest.approx(1)


def test_a_body_too_small_for_the_kernel_is_refused():
    body = np.zeros(SHAPE, bool)
    body[:, 3:12, 3:30] = True
    with pytest.raises(ValueError, match="9 pixels wide"):
        ms_ssim(np.zeros(SHAPE), np.zeros(SHAPE), body)


def test_gradient_error_is_that_of_simpleitks_gradient_magnitude():
    candidate, target = tissue(6, 30, 40)
    inner = np.zeros(candidate.shape, bool)
    inner[1:-1, 1:-1, 1:-1] = True  # the two treat the volume's border differently
    magnitudes = []
    for hu in (candidate, target):
        image = sitk.GetImageFromArray(hu.astype(np.float32))
        image.SetSpacing(SPACING_MM[::-1])
        magnitudes.append(sitk.GetArrayFromImage(sitk.GradientMagnitude(image)))
    expected = np.abs(magnitudes[0] - magnitudes[1])[inner].mean()
    assert expected > 1
    assert gradient_error(candidate, target, inner, SPACING_MM) == pytest.approx(expected, rel=1e-4)


def test_a_ramp_has_its_slope_in_hu_per_mm():
    x = np.indices(SHAPE)[2] * SPACING_MM[2]
    error = gradient_error(7 * x, 4 * x, np.ones(SHAPE, bool), SPACING_MM)
    assert error == pytest.approx(3)


def test_gradients_correlate_with_those_of_the_source_times_a_factor():
    noisy, clean = tissue(*SHAPE)
    body = box(*SHAPE)
    assert gradient_correlation(2 * clean + 100, clean, body, SPACING_MM) == pytest.approx(1)
    assert gradient_correlation(-clean, clean, body, SPACING_MM) == pytest.approx(-1)
    expected = []
    for axis, mm in enumerate(SPACING_MM):
        a, b = (np.gradient(hu.astype(float), mm, axis=axis)[body] for hu in (noisy, clean))
        expected += [np.corrcoef(a, b)[0, 1]] if b.any() else []  # all slices are alike
    found = gradient_correlation(noisy, clean, body, SPACING_MM)
    assert found == pytest.approx(np.mean(expected), abs=1e-5)
    assert found < 0.9


def test_organ_means_leave_out_the_border_in_plane():
    organs = np.zeros(SHAPE, np.uint8)
    organs[1, 10:16, 10:15] = 5
    hu = np.where(organs == 5, 500.0, -1000.0)
    hu[1, 11:15, 11:14] = np.arange(12).reshape(4, 3)
    assert organ_means(hu, organs, {"liver": (5,)}) == {"liver": pytest.approx(5.5)}


def test_labels_of_one_organ_are_one_region():
    organs = np.zeros(SHAPE, np.uint8)
    organs[:, 10:20, 10:15], organs[:, 10:20, 15:20] = 2, 3
    hu = np.zeros(SHAPE)
    hu[:, 11:19, 14:16] = 90  # where the two touch: inside of both together
    means = organ_means(hu, organs, {"kidney": (2, 3), "right": (2,)})
    assert means["kidney"] == pytest.approx(90 * 2 / 8)
    assert means["right"] == 0


def test_organs_without_an_inside_are_absent():
    organs = np.zeros(SHAPE, np.uint8)
    organs[1, 5:7, 5:30] = 1
    assert organ_means(np.zeros(SHAPE), organs, {"thin": (1,), "missing": (9,)}) == {}
