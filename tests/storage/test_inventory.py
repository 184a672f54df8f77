"""Counting a catalogue by columns gives what counting it row by row gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_cohort import two_volumes

from storage.catalogue import HU_EDGES, Catalogue, Row
from storage.inventory import inventory
from storage.place import Place


@pytest.fixture(scope="module")
def row(tmp_path_factory: pytest.TempPathFactory) -> Row:
    return two_volumes(Place.of(tmp_path_factory.mktemp("rows"))).rows[0]


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10**6), count=st.integers(0, 30))
def test_the_columns_give_what_the_rows_give(row: Row, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [
        replace(
            row,
            volume_id=f"v{index:03d}",
            patient=f"p{rng.integers(5)}",
            domain=int(rng.integers(1, 3)),
            phase=str(rng.choice(["arterial", "portal"])),
            shape=(int(rng.integers(1, 99)), 70, 90),
            spacing_mm=(float(rng.choice([1, 1.001, 2.5])), 1.0, 1.0),
            frame_rule=str(rng.choice(["lung base", "middle of the body"])),
            hu_min=int(rng.integers(-1024, 0)),
            hu_max=int(rng.integers(0, 3000)),
            hu_histogram=tuple(rng.integers(0, 2**31 - 1, len(HU_EDGES) - 1).tolist()),
            stored_bytes=int(rng.integers(1, 10**12)),
        )
        for index in range(count)
    ]
    found = inventory(Catalogue.of(rows))
    assert found.patients == len({r.patient for r in rows})
    assert [(g.domain, g.phase) for g in found.groups] == sorted(
        {(r.domain, r.phase) for r in rows}
    )
    for group in found.groups:
        here = [r for r in rows if (r.domain, r.phase) == (group.domain, group.phase)]
        assert group.volumes == len(here)
        assert group.patients == len({r.patient for r in here})
        assert group.slices == sum(r.shape[0] for r in here)
        assert group.hu_min == min(r.hu_min for r in here)
        assert group.hu_max == max(r.hu_max for r in here)
        assert group.stored_bytes == sum(r.stored_bytes for r in here)
        assert group.voxel_bytes == sum(2 * 70 * 90 * r.shape[0] for r in here)
        assert set(group.frame_rules) == {r.frame_rule for r in here}
    rounded = [tuple(round(s, 2) for s in r.spacing_mm) for r in rows]
    assert dict(found.spacings_mm) == {s: rounded.count(s) for s in set(rounded)}
    counts = [count for _, count in found.spacings_mm]
    assert counts == sorted(counts, reverse=True)
    for domain in (1, 2):
        bins = np.array([r.hu_histogram for r in rows if r.domain == domain], object)
        expected = bins.sum(axis=0).tolist() if len(bins) else [0] * (len(HU_EDGES) - 1)
        assert found.hu_counts[domain - 1].tolist() == expected
