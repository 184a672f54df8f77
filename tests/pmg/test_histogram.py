"""Histogram matching, against scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.exposure import match_histograms

from pmg.histogram import HuHistogram, match_histogram, mean_histogram


def scans() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A source, its body, and a scan of the other domain with another share of everything."""
    rng = np.random.default_rng(1)
    source = np.where(rng.random((6, 30, 40)) < 0.3, rng.normal(-100, 12, (6, 30, 40)), 45)
    target = np.where(rng.random((5, 50, 30)) < 0.5, rng.normal(-100, 20, (5, 50, 30)), 130)
    body = np.zeros(source.shape, bool)
    body[:, 3:-3, 4:-5] = True
    source[:, 10:14], target[:, :, 4:20] = -850, -850  # lung, of which the target shows more
    noisy = (one + rng.normal(0, 15, one.shape) for one in (source, target))
    source, target = (np.rint(one).astype(np.int16) for one in noisy)
    return source, body, target


def test_tissue_is_mapped_as_scikit_image_maps_it_and_the_rest_stays():
    source, body, target = scans()
    histogram = HuHistogram.of(target, np.ones(target.shape, bool))
    matched = match_histogram(source, body, histogram)
    tissue = body & (source >= -300)
    expected = match_histograms(source[tissue], target[target >= -300])
    np.testing.assert_allclose(matched[tissue], expected, atol=1e-2)
    assert np.abs(matched[tissue] - source[tissue]).mean() > 20
    assert 0 < np.count_nonzero(body & ~tissue) < np.count_nonzero(tissue)
    np.testing.assert_array_equal(matched[~tissue], source[~tissue])


def test_a_scan_matched_to_itself_stays():
    source, body, _ = scans()
    np.testing.assert_allclose(match_histogram(source, body, HuHistogram.of(source, body)), source)


def test_scans_of_a_mean_histogram_weigh_the_same_whatever_their_size():
    few, many = np.full((1, 2, 2), 10), np.full((1, 20, 20), 90)
    both = mean_histogram([HuHistogram.of(one, np.ones(one.shape, bool)) for one in (few, many)])
    assert both.share[300 + 10] == both.share[300 + 90] == 0.5
    assert both.share.sum() == pytest.approx(1)


def test_hu_beyond_12_bits_count_at_the_end():
    hu = np.array([[[-300, 32000]]], np.int16)
    share = HuHistogram.of(hu, np.ones(hu.shape, bool)).share
    assert share[0] == share[-1] == 0.5


@pytest.mark.parametrize(("hu", "body"), [(0, False), (-900, True)])
def test_a_histogram_of_nothing_is_refused(hu, body):
    with pytest.raises(ValueError, match="expected tissue"):
        HuHistogram.of(np.full((2, 2, 2), hu), np.full((2, 2, 2), body))
