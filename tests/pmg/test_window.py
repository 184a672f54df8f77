"""The window between HU and [-1, 1]: invertible, monotone, finest at its centre."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pmg.config import DataConfig
from pmg.window import Window, window_of

DEFAULT = window_of(DataConfig())


def test_every_hu_of_the_default_window_comes_back():
    hu = torch.arange(-1024, 3072)
    back = DEFAULT.to_hu(DEFAULT.to_unit(hu))
    assert (back - hu).abs().max() < 0.5
    assert torch.equal(back.round().long(), hu)


@settings(max_examples=50)
@given(
    low=st.integers(-2000, 0),
    extent=st.integers(100, 5000),
    centre=st.floats(0, 1),
    scale=st.floats(20, 1e4),
)
def test_any_window_round_a_centre_is_invertible_monotone_and_fills_its_range(
    low, extent, centre, scale
):
    window = Window(low, low + extent, low + centre * extent, scale)
    hu = torch.linspace(low, low + extent, 501)
    x = window.to_unit(hu)
    assert x[0].item() == pytest.approx(-1, abs=1e-5)
    assert x[-1].item() == pytest.approx(1, abs=1e-5)
    assert (x.diff() > 0).all()
    assert (window.to_hu(x) - hu).abs().max() < 0.5


def test_intensities_are_the_scaled_inverse_hyperbolic_sine():
    window = Window(-1000, 3000, 50, 150)
    hu = np.array([-1000.0, -100.0, 50.0, 300.0, 3000.0])
    raw = np.arcsinh((hu - 50) / 150)
    expected = 2 * (raw - raw[0]) / (raw[-1] - raw[0]) - 1
    np.testing.assert_allclose(window.to_unit(torch.as_tensor(hu)), expected, atol=1e-6)


def test_values_outside_are_clipped_to_the_ends():
    x = DEFAULT.to_unit(torch.tensor([-3000.0, -1024.0, 3071.0, 20000.0]))
    torch.testing.assert_close(x, torch.tensor([-1.0, -1.0, 1.0, 1.0]))
    hu = DEFAULT.to_hu(torch.tensor([-1.7, -1.0, 1.0, 5.0]))
    torch.testing.assert_close(hu, torch.tensor([-1024.0, -1024.0, 3071.0, 3071.0]))


def test_int16_and_bfloat16_become_float32():
    assert DEFAULT.to_unit(torch.tensor([40], dtype=torch.int16)).dtype == torch.float32
    assert DEFAULT.to_hu(torch.tensor([0.1], dtype=torch.bfloat16)).dtype == torch.float32


def test_one_hu_counts_most_at_the_centre():
    x = DEFAULT.to_unit(torch.arange(-1024.0, 3072.0))
    assert abs(int(x.diff().argmax()) - 1024 - 50) <= 1


def test_a_huge_scale_is_the_linear_window():
    x = Window(-1000, 3000, 0, 1e7).to_unit(torch.tensor([-1000.0, 0.0, 1000.0, 2000.0]))
    torch.testing.assert_close(x, torch.tensor([-1.0, -0.5, 0.0, 0.5]), atol=1e-3, rtol=0)
