"""What pairs can't be drawn from, or with, is refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from make_rows import RULES, cohort, make_row

from storage.errors import GeometryError, StoreError
from storage.sampling import PairSampler


def test_a_domain_without_volumes() -> None:
    rows = [row for row in cohort(0) if row.domain == 1]
    with pytest.raises(StoreError, match="domain 2 has no volume among 5"):
        PairSampler(rows, seed=0, patch_shape=(1, 8, 8))


def test_a_patch_larger_than_all_volumes() -> None:
    with pytest.raises(StoreError, match=r"\(99, 8, 8\) voxels fits none of the 5 .*domain 1"):
        PairSampler(cohort(0), seed=0, patch_shape=(99, 8, 8))


def test_one_patient_alone_is_never_paired_with_itself() -> None:
    rows = [replace(row, patient="p") for row in cohort(0)]
    with pytest.raises(StoreError, match=r"none of the 5 volumes .*another patient"):
        PairSampler(rows, seed=0, patch_shape=(1, 8, 8))
    mixed = [replace(row, patient=str(number)) for number, row in enumerate(cohort(0))]
    with pytest.raises(StoreError, match="the same patient among the 5 of domain 2"):
        PairSampler(mixed, seed=0, patch_shape=(1, 8, 8), pairing="same_patient")


@pytest.mark.parametrize("pairing", ["unpaired", "same_patient"])
def test_domains_whose_frames_begin_at_different_places_of_the_body(pairing: str) -> None:
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


def test_bodies_that_share_no_place() -> None:
    body = np.ones((8, 16, 16), bool)
    rows = [
        make_row(0, 1, "a", (-40, 8, 8), body),
        make_row(1, 2, "b", (40, 8, 8), body),
    ]
    sampler = PairSampler(rows, seed=0, patch_shape=(1, 8, 8))
    with pytest.raises(StoreError, match=r"no place for a patch of \(1, 8, 8\).* 64 pairs"):
        sampler.pair(0)


def test_spacing_or_orientation_that_differs_names_both_volumes() -> None:
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
def test_an_argument_out_of_range_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PairSampler(cohort(0), **({"seed": 0, "patch_shape": (1, 8, 8)} | wrong))
