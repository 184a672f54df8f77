"""Sampling: every sample a pure function of integers, at one place of the body in both domains."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from benchmarks.start_up import make_catalogue, start_up
from storage.catalogue import Catalogue, Row, body_cells, mask_cells
from storage.draws import Draws
from storage.errors import GeometryError, StoreError
from storage.foreground import Foreground
from storage.layout import CHUNK
from storage.sampling import PairSampler, rank_samples, split_patients
from storage.windows import spread, window_around

Index = tuple[int, int, int]
SPACING = (2.0, 1.0, 1.0)
RULES = ("lung base", "middle of the body")


def make_row(number: int, domain: int, patient: str, origin: Index, body: np.ndarray) -> Row:
    hit = np.argwhere(body)
    cell, grid, bits = body_cells(body, SPACING)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = SPACING
    return Row(
        volume_id=f"v{number:06d}",
        patient=patient,
        domain=domain,
        phase="x",
        shape=body.shape,
        spacing_mm=SPACING,
        affine=tuple(affine.ravel()),
        frame_origin=origin,
        frame_rule="middle of the body",
        hu_min=-1000,
        hu_max=1000,
        body_box=(*hit.min(axis=0).tolist(), *(hit.max(axis=0) + 1).tolist()),
        cell_shape=cell,
        cells_grid=grid,
        body_cells=bits,
        mask_cells=b"",
        hu_histogram=(0,) * 82,
        array_path=f"volumes/v{number}",
        stored_bytes=1,
        digest="0" * 64,
        metadata_digest="0" * 64,
        source_digest="0",
        source_stat="",
        ingest_version=1,
        provenance="{}",
    )


def ellipsoid(shape: Index, rng: np.random.Generator) -> np.ndarray:
    centre = np.array(shape) / 2 + rng.uniform(-2, 2, 3)
    radii = np.array(shape) * rng.uniform(0.3, 0.45, 3)
    grid = np.indices(shape).reshape(3, -1).T
    return (((grid - centre) / radii) ** 2).sum(axis=1).reshape(shape) < 1


def cohort(seed: int, count: int = 10, patients: int = 6) -> list[Row]:
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        shape = tuple(rng.integers((10, 20, 20), (30, 60, 60)).tolist())
        origin = tuple(n // 2 + int(rng.integers(-3, 4)) for n in shape)
        domain = 1 + number % 2
        patient = f"p{rng.integers(patients)}" if number > 3 else f"q{number}"
        rows.append(make_row(number, domain, patient, origin, ellipsoid(shape, rng)))
    return rows


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
    @settings(max_examples=40, deadline=None)
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

    @settings(max_examples=40, deadline=None)
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


class TestRefusals:
    def test_a_domain_without_volumes(self) -> None:
        rows = [row for row in cohort(0) if row.domain == 1]
        with pytest.raises(StoreError, match="domain 2 has no volume among 5"):
            PairSampler(rows, seed=0, patch_shape=(1, 8, 8))

    def test_a_patch_larger_than_all_volumes(self) -> None:
        with pytest.raises(StoreError, match=r"\(99, 8, 8\) voxels fits none of the 5 .*domain 1"):
            PairSampler(cohort(0), seed=0, patch_shape=(99, 8, 8))

    def test_one_patient_alone_is_never_paired_with_itself(self) -> None:
        rows = [replace(row, patient="p") for row in cohort(0)]
        with pytest.raises(StoreError, match=r"none of the 5 volumes .*another patient"):
            PairSampler(rows, seed=0, patch_shape=(1, 8, 8))
        mixed = [replace(row, patient=str(number)) for number, row in enumerate(cohort(0))]
        with pytest.raises(StoreError, match="the same patient among the 5 of domain 2"):
            PairSampler(mixed, seed=0, patch_shape=(1, 8, 8), pairing="same_patient")

    @pytest.mark.parametrize("pairing", ["unpaired", "same_patient"])
    def test_domains_whose_frames_begin_at_different_places_of_the_body(self, pairing: str) -> None:
        rows = [
            replace(row, frame_rule=RULES[row.domain - 1], patient=f"p{number // 2}")
            for number, row in enumerate(cohort(0))
        ]
        counts = r"'lung base': 5 and 0; 'middle of the body': 0 and 5"
        with pytest.raises(StoreError, match=counts):
            PairSampler(rows, seed=0, patch_shape=(1, 8, 8), pairing=pairing)
        rows[1] = replace(rows[1], frame_rule="lung base")
        sampler = PairSampler(rows, seed=0, patch_shape=(1, 8, 8), pairing=pairing)
        assert {sampler.pair(n).volumes[1] for n in range(50)} == {1}

    def test_bodies_that_share_no_place(self) -> None:
        body = np.ones((8, 16, 16), bool)
        rows = [
            make_row(0, 1, "a", (-40, 8, 8), body),
            make_row(1, 2, "b", (40, 8, 8), body),
        ]
        sampler = PairSampler(rows, seed=0, patch_shape=(1, 8, 8))
        with pytest.raises(StoreError, match=r"no place for a patch of \(1, 8, 8\).* 64 pairs"):
            sampler.pair(0)

    def test_spacing_or_orientation_that_differs_names_both_volumes(self) -> None:
        rows = cohort(0)
        rows[7] = replace(rows[7], spacing_mm=(2.0, 1.0, 1.01))
        with pytest.raises(GeometryError, match="v000000 and v000007 differ in spacing"):
            PairSampler(rows, seed=0, patch_shape=(1, 8, 8))
        turned = np.reshape(cohort(0)[0].affine, (4, 4)).copy()
        turned[:3, :3] = [[0, 0.1, 1], [0, 1, -0.1], [2, 0, 0]]
        rows[7] = replace(rows[6], volume_id="v000007", domain=2, affine=tuple(turned.ravel()))
        with pytest.raises(GeometryError, match="v000000 and v000007 differ in direction"):
            PairSampler(rows, seed=0, patch_shape=(1, 8, 8))

    @pytest.mark.parametrize(
        "wrong",
        [
            {"seed": -1},
            {"patch_shape": (0, 8, 8)},
            {"pairing": "paired"},
            {"balance": "equal"},
            {"jitter": -1},
            {"pool": 0},
            {"patches_per_visit": 0},
            {"body_fraction": 1.5},
            {"mask_fraction": -0.1},
        ],
    )
    def test_an_argument_out_of_range_is_named(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PairSampler(cohort(0), **({"seed": 0, "patch_shape": (1, 8, 8)} | wrong))


class TestVisits:
    @settings(max_examples=60, deadline=None)
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

    @settings(max_examples=50, deadline=None)
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


def test_a_hundred_thousand_volumes_are_sampled_from() -> None:
    body = np.ones((30, 60, 60), bool)
    rows = [make_row(i, 1 + i % 2, f"p{i // 3}", (15, 30, 30), body) for i in range(2)]
    table = Catalogue.of(rows).table
    many = table.take(np.arange(100_000) % 2)
    for name, values in (
        ("volume_id", [f"v{i:06d}" for i in range(100_000)]),
        ("patient", [f"p{i // 3}" for i in range(100_000)]),
        ("frame_rule", [RULES[i % 7 % 2] for i in range(100_000)]),
    ):
        at = many.column_names.index(name)
        field = many.schema.field(name)
        many = many.set_column(at, field, [pa.array(values, field.type)])
    sampler = PairSampler(Catalogue(many), seed=1, patch_shape=(8, 16, 16))
    drawn = [sampler.visit(n % 64, n // 64) for n in range(500)]
    patients = sampler.rows.column("patient")
    assert len({pair.volumes for pair in drawn}) == 500
    assert all(patients[pair.volumes[0]] != patients[pair.volumes[1]] for pair in drawn)
    rules = sampler.rows.column("frame_rule")
    assert all(rules[pair.volumes[0]] == rules[pair.volumes[1]] for pair in drawn)


@pytest.mark.slow
@pytest.mark.parametrize("held_out", [0.0, 0.1])
def test_a_large_cohort_opens_within_500_mb_and_without_a_look_at_its_volumes(
    many: Path, held_out: float
) -> None:
    _, peak = start_up(many, held_out)
    assert peak < 500e6


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "store"
    store = make_catalogue(folder, 100_000)
    assert len(store.rows) == 100_000
    shutil.rmtree(folder / "volumes")
    return folder
