"""Sampling: every sample a pure function of integers, at one place of the body in both domains."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.catalogue import Catalogue, Row, body_cells
from storage.errors import GeometryError, StoreError
from storage.sampling import PairSampler, rank_samples, split_patients

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

    def test_the_draws_are_philox_words_in_a_fixed_order(self) -> None:
        """A change here changes what a resumed run sees."""
        body = np.ones((8, 16, 16), bool)
        rows = [make_row(i, 1 + i % 2, f"p{i}", (4, 8, 8), body) for i in range(4)]
        words = np.random.Philox(key=np.array([5, 3], np.uint64)).random_raw(16).tolist()[::-1]
        low, high = (-4, -8, -8), (4 - 3, 8 - 5, 8 - 6)
        draws = [word * bound >> 64 for word, bound in zip(words, (2, 2, 6, 12, 11), strict=False)]
        pair = PairSampler(rows, seed=5, patch_shape=(3, 5, 6)).pair(3)
        assert pair.volumes == (2 * draws[0], 1 + 2 * draws[1])
        assert pair.frame[0] == tuple(a + d for a, d in zip(low, draws[2:], strict=True))
        assert all(u <= top for u, top in zip(pair.frame[0], high, strict=True))

    def test_every_volume_and_every_place_is_drawn_equally_often(self) -> None:
        body = np.ones((4, 12, 12), bool)
        rows = [make_row(i, 1 + i % 2, f"p{i}", (2, 6, 6), body) for i in range(8)]
        drawn = pairs(rows, 4000, patch_shape=(4, 9, 9))
        for counts, kinds in (
            (Counter(pair.volumes for pair in drawn), 16),
            (Counter(pair.frame[0] for pair in drawn), 16),
        ):
            assert len(counts) == kinds
            expected = 4000 / kinds
            chi_squared = sum((n - expected) ** 2 / expected for n in counts.values())
            assert chi_squared < 45  # 15 degrees of freedom: exceeded with probability 1e-4

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
        with pytest.raises(StoreError, match=r"1 volumes of domain 1, 1 of domain 2.*64 pairs"):
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
        [{"seed": -1}, {"patch_shape": (0, 8, 8)}, {"pairing": "paired"}, {"jitter": -1}],
    )
    def test_an_argument_out_of_range_is_named(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PairSampler(cohort(0), **({"seed": 0, "patch_shape": (1, 8, 8)} | wrong))


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
        many = many.set_column(at, many.schema.field(name), [values])
    sampler = PairSampler(Catalogue(many), seed=1, patch_shape=(8, 16, 16))
    drawn = [sampler.pair(n) for n in range(500)]
    patients = sampler.rows.column("patient")
    assert len({pair.volumes for pair in drawn}) == 500
    assert all(patients[pair.volumes[0]] != patients[pair.volumes[1]] for pair in drawn)
    rules = sampler.rows.column("frame_rule")
    assert all(rules[pair.volumes[0]] == rules[pair.volumes[1]] for pair in drawn)
