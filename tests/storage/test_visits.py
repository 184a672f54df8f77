"""Visits: who takes which patch of one, where its window lies, and what reading it costs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_rows import Index, cohort, make_row

from storage.draws import Draws
from storage.layout import CHUNK
from storage.sampling import PairSampler
from storage.windows import spread, window_around


class TestVisits:
    @settings(max_examples=60)
    @given(
        pool=st.integers(1, 70),
        per_visit=st.integers(1, 20),
        first=st.integers(0, 10**15),
    )
    def test_a_slot_takes_every_patch_of_a_visit_and_then_goes_on_to_the_next(
        self, pool: int, per_visit: int, first: int
    ) -> None:
        sampler = PairSampler(
            cohort(0), seed=0, patch_shape=(1, 8, 8), pool=pool, patches_per_visit=per_visit
        )
        turns = [sampler.turn(n) for n in range(first, first + 3 * pool)]
        for now, then in zip(turns, turns[pool:], strict=False):
            (slot, number, which), (next_slot, next_number, next_which) = now, then
            assert next_slot == slot
            assert next_number * per_visit + next_which == number * per_visit + which + 1
            assert 0 <= which < per_visit
        assert len({turn[:2] for turn in turns[:pool]}) == pool

    def test_slots_change_their_visits_at_evenly_spread_times(self) -> None:
        sampler = PairSampler(
            cohort(0), seed=0, patch_shape=(1, 8, 8), pool=64, patches_per_visit=16
        )
        for rank in range(8):
            starts = [
                sum(sampler.turn(64 * turn + 8 * rank + i)[2] == 0 for i in range(8))
                for turn in range(16)
            ]
            assert sum(starts) == 8
            assert max(starts) <= 2

    def test_patches_of_a_visit_are_far_from_each_other(self) -> None:
        """Sixteen slices of 2D patches in a window of sixteen slices: each once."""
        body = np.ones((64, 300, 300), bool)
        rows = [make_row(i, 1 + i, f"p{i}", (32, 150, 150), body) for i in (0, 1)]
        sampler = PairSampler(rows, seed=0, patch_shape=(1, 64, 64), pool=1, patches_per_visit=8)
        assert sampler.window[0] == 8
        for number in range(40):
            places = sampler.visit(0, number).frame[0]
            size = np.ptp(places[:, 0]) + 1
            if size <= 8:
                assert len(set(places[:, 0].tolist())) >= size

    def test_a_visit_lies_in_one_window_and_windows_tile_all_places(self) -> None:
        low, high = [-37, -100, 5], [41, 160, 9]
        window = (8, 64, 64)
        for axis in range(3):
            tiles = set()
            for u in range(low[axis], high[axis] + 1):
                place = [0, 0, 7]
                place[axis] = u
                first, last = window_around(place, low, high, window)
                assert first[axis] <= u <= last[axis]
                tiles.add((first[axis], last[axis]))
            ordered = sorted(tiles)
            assert ordered[0][0] == low[axis]
            assert ordered[-1][1] == high[axis]
            assert all(a[1] + 1 == b[0] for a, b in itertools.pairwise(ordered))
            assert all(first % window[axis] == 0 for first, _ in ordered[1:])

    @settings(max_examples=50)
    @given(
        size=st.tuples(*[st.integers(1, 90)] * 3),
        count=st.integers(1, 40),
        number=st.integers(0, 10**9),
    )
    def test_each_equal_part_of_every_axis_holds_one_place(
        self, size: Index, count: int, number: int
    ) -> None:
        first = [-5, 0, 7]
        last = [a + n - 1 for a, n in zip(first, size, strict=True)]
        places = spread(Draws(1, number), first, last, count) - first
        assert places.shape == (count, 3)
        for along, n in zip(places.T, size, strict=True):
            parts = np.sort(along)
            lowest = np.arange(count) * n // count
            highest = -(-(np.arange(count) + 1) * n // count) - 1
            assert ((lowest <= parts) & (parts <= highest)).all()

    @pytest.mark.parametrize(
        ("patch", "least", "most"),
        [((1, 128, 128), 2, 3.2), ((5, 96, 96), 2, 3.2), ((32, 64, 64), 2, 3.2)],
    )
    def test_the_windows_decode_about_what_was_asked_for(
        self, patch: Index, least: float, most: float
    ) -> None:
        shape = (192, 384, 384)
        body = np.ones(shape, bool)
        rows = [make_row(i, 1 + i, f"p{i}", (96, 192, 192), body) for i in (0, 1)]
        sampler = PairSampler(rows, seed=0, patch_shape=patch, pool=1, amplification=2)
        decoded = 0
        for number in range(100):
            starts = sampler.visit(0, number).frame[0]  # chunks begin at the origin
            ends = starts + patch - 1
            touched = {
                cell
                for a, b in zip(starts // CHUNK, ends // CHUNK, strict=True)
                for cell in itertools.product(*map(range, a, b + 1))
            }
            decoded += len(touched) * np.prod(CHUNK)
        assert least * 0.8 < decoded / (100 * 16 * np.prod(patch)) < most


class TestDraws:
    def test_numbers_are_philox_words(self) -> None:
        words = np.random.Philox(key=np.array([5, 3], np.uint64)).random_raw(64 + 6)
        draws = Draws(5, 3)
        assert draws.below(1000) == int(words[63]) * 1000 >> 64
        assert draws.fractions(2, 3).ravel().tolist() == (words[64:] >> np.uint64(32)).tolist()

    @given(
        seed=st.integers(0, 2**64 - 1), number=st.integers(0, 2**64 - 1), bound=st.integers(1, 9)
    )
    def test_a_number_lies_below_its_bound(self, seed: int, number: int, bound: int) -> None:
        draws = Draws(seed, number)
        assert all(0 <= draws.below(bound) < bound for _ in range(70))
        assert not draws.chance(0)
        assert draws.chance(1)
