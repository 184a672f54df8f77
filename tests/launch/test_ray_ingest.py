"""Ingest by real Ray actors: the same store as by local processes, whatever their series do."""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "storage"))
from make_cohort import body_hu, write_dicom

from launch.cluster import cluster
from launch.ingest import RayWorkers, ingest_on_cluster
from pmg.config import LaunchConfig
from storage.errors import StoreError
from storage.ingest import ingest
from storage.store import Store
from storage.workers import Lost

pytestmark = [pytest.mark.slow, pytest.mark.ray]

GIB = 1 << 30


@pytest.fixture(scope="module", autouse=True)
def ray_cluster():
    with cluster(LaunchConfig(workers=2)):
        yield


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    lines = []
    for number in range(4):
        write_dicom(tmp_path / f"ct{number}", body_hu((14, 48, 56), number), patient=f"P{number}")
        lines.append((f"ct{number}", 1 + number % 2, "a"))
    (tmp_path / "ct3" / "slice_005.dcm").unlink()
    with (tmp_path / "m.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "domain", "phase"), *lines])
    return tmp_path / "m.csv"


def rows(store: Path) -> list[tuple[object, ...]]:
    return [
        (row.volume_id, row.patient, row.digest, row.source_digest, row.body_cells)
        for row in Store.open(store).rows
    ]


def test_the_store_is_the_one_that_local_workers_make(manifest: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    local = ingest(None, tmp_path / "local", manifest=manifest, key_path=key, workers=1)
    options = {"manifest": manifest, "key_path": key, "workers": 2, "memory_bytes": GIB}
    report = ingest_on_cluster(None, str(tmp_path / "ray"), **options)  # type: ignore[arg-type]
    assert rows(tmp_path / "ray") == rows(tmp_path / "local")
    assert [(one.series, one.verdict, one.reason) for one in report.series] == [
        (one.series, one.verdict, one.reason) for one in local.series
    ]
    assert report.count("ingested") == 3
    assert Store.open(tmp_path / "ray").verify() == []
    again = ingest_on_cluster(None, str(tmp_path / "ray"), **options)  # type: ignore[arg-type]
    assert (again.count("skipped"), again.count("refused")) == (3, 1)


def test_a_crash_costs_its_item_and_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(b"x")
    reading = (
        f"__import__('storage.bounds', fromlist=['_']).reading(__import__('pathlib').{path!r})"
    )
    crash = f"(file := {reading}, file.__enter__(), __import__('ctypes').string_at(0))"
    # What a test defines cannot be imported by an actor; Python's own functions can.
    done = RayWorkers(2, GIB).map(eval, [crash.replace("PosixPath", "Path"), "1 + 1", "2 + 2"])
    crashed, *fine = [one.result for one in sorted(done, key=lambda one: one.index)]
    assert fine == [2, 4]
    assert isinstance(crashed, Lost)
    assert crashed.path == path
    assert "SIGSEGV" in crashed.reason


def test_another_key_on_a_node_is_refused(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is another one than where the ingest was started"):
        ingest_on_cluster(
            None,
            str(tmp_path / "s"),
            manifest=manifest,
            key_path=_change(tmp_path),
            memory_bytes=GIB,
            progress=lambda step: _change(tmp_path) if step.scanned else None,
        )
    assert len(Store.open(tmp_path / "s").rows) == 0


def _change(folder: Path) -> Path:
    key = folder / "changing"
    key.write_bytes(np.random.default_rng().bytes(32))
    os.chmod(key, 0o600)
    return key
