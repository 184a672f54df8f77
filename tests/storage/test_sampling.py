"""Pairs: each a pure function of integers, at one place of the body in both domains."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_rows import RULES, Index, cohort, ellipsoid, make_row
from scipy.stats import chi2

from storage.catalogue import Catalogue, mask_cells
from storage.errors import StoreError
from storage.foreground import Foreground
from storage.sampling import PairSampler, rank_samples, split_patients


def pairs(rows: Any, count: int = 200, **changes: Any) -> list[Any]:
    sampler = PairSampler(rows, **({"seed": 5, "patch_shape": (4, 9, 8)} | changes))
    return [sampler.pair(n) for n in range(count)]


def assert_as_expected(counts: Counter[Any], expected: dict[Any, float]) -> None:
    """Pearson's chi-squared; few enough false alarms not to see one."""
    assert set(counts) <= set(expected)
    scale = counts.total() / sum(expected.values())
    kept = {k: v * scale for k, v in expected.items() if v * scale >= 5}
    chi_squared = sum((counts[k] - v) ** 2 / v for k, v in kept.items())
    assert chi2.sf(chi_squared, len(kept) - 1) > 1e-4


class TestPairs:
    @settings(max_examples=40)
    @given(
        seed=st.integers(0, 2**64 - 1),
        n=st.integers(0, 2**64 - 1),
        patch=st.tuples(st.integers(1, 6), st.integers(1, 12), st.integers(1, 12)),
        cohort_seed=st.integers(0, 20),
    )
    def test_a_pair_lies_at_one_place_inside_both_arrays_and_bodies(
        self, seed: int, n: int, patch: Index, cohort_seed: int
    ) -> None:
        rows = cohort(cohort_seed)
        pair = PairSampler(rows, seed=seed, patch_shape=patch).pair(n)
        assert pair.frame[0] == pair.frame[1]
        for side, domain in ((0, 1), (1, 2)):
            row, start = rows[pair.volumes[side]], np.array(pair.starts[side])
            assert row.domain == domain
            assert (start >= 0).all()
            assert (start + patch <= row.shape).all()
            assert tuple(start - row.frame_origin) == pair.frame[side]
            centre = start + np.array(patch) // 2
            cell = np.ravel_multi_index(tuple(centre // row.cell_shape), row.cells_grid)
            bits = np.unpackbits(np.frombuffer(row.body_cells, np.uint8), bitorder="little")
            assert bits[cell] == 1
        assert rows[pair.volumes[0]].patient != rows[pair.volumes[1]].patient

    def test_the_order_of_rows_and_asking_twice_change_nothing(self) -> None:
        rows = cohort(1)
        assert pairs(rows) == pairs(rows[::-1]) == pairs(Catalogue.of(rows))

    def test_another_seed_gives_other_pairs(self) -> None:
        rows = cohort(1)
        same = sum(a == b for a, b in zip(pairs(rows), pairs(rows, seed=6), strict=True))
        assert same < 5

    def test_the_sequence_of_samples_stays_what_it_was(self) -> None:
        """A change here changes what a resumed run sees."""
        drawn = [(pair.volumes, pair.starts, pair.frame) for pair in pairs(cohort(1), 300)]
        assert hashlib.sha256(repr(drawn).encode()).hexdigest()[:16] == "47413cfb28ecb6fb"

    def test_every_volume_is_drawn_equally_often(self) -> None:
        body = np.ones((4, 12, 12), bool)
        rows = [make_row(i, 1 + i % 2, f"p{i}", (2, 6, 6), body) for i in range(8)]
        sampler = PairSampler(rows, seed=5, patch_shape=(4, 9, 9), pool=4)
        counts = Counter(sampler.visit(n % 4, n // 4).volumes for n in range(4000))
        assert_as_expected(counts, dict.fromkeys(itertools.product((0, 2, 4, 6), (1, 3, 5, 7)), 1))

    def test_with_patients_in_balance_one_with_many_volumes_weighs_as_one(self) -> None:
        body = np.ones((4, 12, 12), bool)
        owners = {1: "aaaaab", 2: "cddddd"}
        rows = [
            make_row(10 * domain + i, domain, name, (2, 6, 6), body)
            for domain, names in owners.items()
            for i, name in enumerate(names)
        ]
        drawn = {}
        for balance in ("volumes", "patients"):
            sampler = PairSampler(rows, seed=5, patch_shape=(4, 9, 9), pool=4, balance=balance)
            patients = sampler.rows.column("patient")
            visits = [sampler.visit(n % 4, n // 4).volumes for n in range(2000)]
            assert {volume for pair in visits for volume in pair} == set(range(12))
            drawn[balance] = Counter(tuple(patients[list(pair)]) for pair in visits)
        assert_as_expected(drawn["patients"], dict.fromkeys(itertools.product("ab", "cd"), 1))
        expected = {("a", "c"): 5, ("a", "d"): 25, ("b", "c"): 1, ("b", "d"): 5}
        assert_as_expected(drawn["volumes"], expected)

    def test_places_are_as_uniform_over_the_bodies_as_if_each_were_drawn_alone(self) -> None:
        """Of each visit one patch is taken, so that the draws are independent."""
        rng = np.random.default_rng(0)
        shape, patch = (40, 150, 140), (6, 20, 20)
        rows = [
            make_row(i, 1 + i, f"p{i}", (17 + i, 80, 66 - i), ellipsoid(shape, rng)) for i in (0, 1)
        ]
        sampler = PairSampler(rows, seed=3, patch_shape=patch, pool=4, amplification=0.2)
        assert sampler.window < shape
        places = np.array(
            [sampler.visit(n % 4, n // 4).frame[0, n % 16].tolist() for n in range(4000)]
        )
        ground = Foreground(sampler.rows, patch)
        low, high = ground.common_body((0, 1))
        everywhere = np.stack(
            np.meshgrid(*[np.arange(a, b + 1) for a, b in zip(low, high, strict=True)]), axis=-1
        ).reshape(-1, 3)
        possible = everywhere[ground.in_bodies((0, 1), everywhere)]
        for bins in ((4, 8, 8), (5, 21, 19)):
            coarse = [Counter(map(tuple, (p // bins).tolist())) for p in (places, possible)]
            assert set(coarse[0]) <= set(coarse[1])
            assert_as_expected(*coarse)

    def test_body_fraction_lets_the_other_patches_lie_anywhere(self) -> None:
        body = np.zeros((8, 40, 40), bool)
        body[:, 16:24, 16:24] = True
        rows = [make_row(i, 1 + i, f"p{i}", (4, 20, 20), body) for i in (0, 1)]
        options = {"seed": 1, "patch_shape": (1, 8, 8), "pool": 4, "patches_per_visit": 1}
        sampler = PairSampler(rows, body_fraction=0.25, **options)
        ground = Foreground(sampler.rows, (1, 8, 8))
        places = np.array([sampler.visit(0, n).frame[0, 0] for n in range(2000)])
        alone = (8 / 33) ** 2  # of all places have their centre in the body
        expected = 0.25 + 0.75 * alone
        assert abs(ground.in_bodies((0, 1), places).mean() - expected) < 0.04
        assert np.ptp(places[:, 1:]) == 32

    @pytest.mark.parametrize("masked_domain", [1, 2])
    def test_mask_fraction_draws_patches_in_masked_cells(self, masked_domain: int) -> None:
        body = np.ones((16, 60, 60), bool)
        rows = [make_row(i, 1 + i % 2, f"p{i}", (8, 30, 30), body) for i in range(20)]
        mask = np.zeros(body.shape, bool)
        mask[5, 20:22, 40:44] = True
        masked = 2 + masked_domain - 1
        bits = mask_cells(mask, rows[0].cell_shape)
        rows[masked] = replace(rows[masked], mask_cells=bits)
        options = {"seed": 1, "patch_shape": (1, 8, 8), "pool": 4}
        sampler = PairSampler(rows, mask_fraction=0.5, **options)
        ground = Foreground(sampler.rows, (1, 8, 8))
        visits = [sampler.visit(0, n) for n in range(400)]
        inside = [ground.in_masks(v.volumes, v.frame[0]) for v in visits]
        share = np.mean([marked.all() for marked in inside])
        assert 0.4 < share < 0.6
        assert len({v.volumes[2 - masked_domain] for v in visits}) == 10
        with pytest.raises(
            StoreError, match="none of the 10 volumes that can be paired has a mask"
        ):
            PairSampler(cohort(0), mask_fraction=0.5, **options)

    def test_same_patient_pairs_both_phases_of_one_patient(self) -> None:
        rows = cohort(2, count=24)
        for pair in pairs(rows, pairing="same_patient"):
            assert rows[pair.volumes[0]].patient == rows[pair.volumes[1]].patient

    def test_jitter_moves_the_second_patch_within_its_bound_and_its_array(self) -> None:
        rows = cohort(3)
        moves = []
        for pair in pairs(rows, 400, jitter=2):
            start = np.array(pair.starts[1])
            assert (start >= 0).all()
            assert (start <= np.subtract(rows[pair.volumes[1]].shape, (4, 9, 8))).all()
            moves.append(np.subtract(*pair.frame))
        assert np.abs(moves).max() == 2
        assert len({tuple(move) for move in np.array(moves).tolist()}) > 100

    @settings(max_examples=40)
    @given(cohort_seed=st.integers(0, 10**6), same_patient=st.booleans())
    def test_partners_share_the_rule_of_their_frames_and_every_such_pair_is_drawn(
        self, cohort_seed: int, same_patient: bool
    ) -> None:
        rng = np.random.default_rng(cohort_seed)
        body = np.ones((4, 9, 9), bool)
        rows = [
            replace(
                make_row(i, int(rng.integers(1, 3)), f"p{rng.integers(4)}", (2, 4, 4), body),
                frame_rule=str(rng.choice(RULES)),
            )
            for i in range(9)
        ]
        rows += [
            make_row(9 + d, d, "p0" if same_patient else f"q{d}", (2, 4, 4), body) for d in (1, 2)
        ]
        possible = {
            (i, j)
            for (i, one), (j, two) in itertools.product(enumerate(rows), repeat=2)
            if (one.domain, two.domain) == (1, 2)
            and one.frame_rule == two.frame_rule
            and (one.patient == two.patient) == same_patient
        }
        pairing = "same_patient" if same_patient else "unpaired"
        assert {pair.volumes for pair in pairs(rows, 600, pairing=pairing)} == possible

    def test_a_volume_smaller_than_the_patch_is_never_drawn(self) -> None:
        rows = cohort(4)
        small = np.ones((2, 50, 50), bool)
        rows += [make_row(90 + d, d, f"s{d}", (1, 25, 25), small) for d in (1, 2)]
        drawn = {volume for pair in pairs(rows) for volume in pair.volumes}
        assert not drawn & {10, 11}
        assert len(drawn) == 10


class TestRanks:
    @given(step=st.integers(0, 10**12), share=st.integers(1, 9), world_size=st.integers(1, 12))
    def test_ranks_split_the_same_sequence_at_every_world_size(
        self, step: int, share: int, world_size: int
    ) -> None:
        batch = share * world_size
        parts = [rank_samples(step, rank, world_size, batch) for rank in range(world_size)]
        assert list(itertools.chain(*parts)) == list(rank_samples(step, 0, 1, batch))
        assert parts[-1].stop == rank_samples(step + 1, 0, world_size, batch).start

    def test_a_batch_that_does_not_divide_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"global_batch is 6; expected a multiple of .* 4"):
            rank_samples(0, 0, 4, 6)
        with pytest.raises(ValueError, match="rank 4 of 4"):
            rank_samples(0, 4, 4, 8)


class TestSplit:
    def test_no_patient_is_on_both_sides_and_nobody_moves_when_others_come(self) -> None:
        rows = [
            replace(row, volume_id=f"w{number:06d}", patient=f"p{number // 2}")
            for number, row in enumerate(cohort(0) * 40)
        ]
        training, held = split_patients(rows, 0.25, seed=3)
        sides = [set(part.column("patient")) for part in (training, held)]
        assert not sides[0] & sides[1]
        assert len(training) + len(held) == len(rows)
        assert 0.15 < len(held) / len(rows) < 0.35
        fewer = split_patients(rows[:100], 0.25, seed=3)[1]
        assert set(fewer.column("volume_id")) == {
            row.volume_id for row in rows[:100] if row.patient in sides[1]
        }
        assert set(split_patients(rows, 0.25, seed=4)[1].column("patient")) != sides[1]

    def test_fractions_zero_and_one_hold_nobody_and_everybody(self) -> None:
        rows = cohort(0)
        assert len(split_patients(rows, 0.0, seed=0)[1]) == 0
        assert len(split_patients(rows, 1.0, seed=0)[0]) == 0
        with pytest.raises(ValueError, match="fraction is 2"):
            split_patients(rows, 2, seed=0)
