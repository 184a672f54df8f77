"""A hundred thousand volumes: sampled from, and opened within little memory."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from make_rows import RULES, make_row

from benchmarks.start_up import make_catalogue, start_up
from storage.catalogue import Catalogue
from storage.sampling import PairSampler


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


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "store"
    store = make_catalogue(folder, 100_000)
    assert len(store.rows) == 100_000
    shutil.rmtree(folder / "volumes")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("held_out", [0.0, 0.1])
def test_a_large_cohort_opens_within_500_mb_and_without_a_look_at_its_volumes(
    many: Path, held_out: float
) -> None:
    _, peak = start_up(many, held_out)
    assert peak < 500e6
