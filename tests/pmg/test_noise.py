"""Noise at places: the same however it is asked for, normal, and independent elsewhere."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pmg.noise import PlaceNoise

NOISE = PlaceNoise(seed=2**62 + 5, channels=3)
WHOLE = NOISE.at(1, (0, 0, 0), (4, 60, 70))


@settings(max_examples=60)
@given(data=st.data())
def test_a_part_is_the_part_of_the_whole(data):
    start, extent = [], []
    for n in WHOLE.shape[1:]:
        first = data.draw(st.integers(0, n - 1))
        start.append(first)
        extent.append(data.draw(st.integers(1, n - first)))
    part = NOISE.at(1, start, extent)
    box = (slice(None), *(slice(s, s + e) for s, e in zip(start, extent, strict=True)))
    assert torch.equal(part, WHOLE[box])


def test_it_is_standard_normal():
    assert stats.kstest(WHOLE.flatten().numpy(), "norm").pvalue > 0.01


def test_places_samples_seeds_and_channels_are_independent():
    others = [
        NOISE.at(2, (0, 0, 0), (4, 60, 70)),
        PlaceNoise(seed=5, channels=3).at(1, (0, 0, 0), (4, 60, 70)),
        NOISE.at(1, (1, 0, 0), (4, 60, 70)),
        NOISE.at(1, (0, 16, 0), (4, 60, 70)),
        NOISE.at(1, (0, 0, 16), (4, 60, 70)),
        WHOLE.roll(1, dims=0),
    ]
    for other in others:
        correlation = torch.corrcoef(torch.stack([WHOLE.flatten(), other.flatten()]))[0, 1]
        assert abs(correlation) < 0.02
