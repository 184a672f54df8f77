"""Real scans of the other domain, from a store or a folder, and what is measured against them."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from pmg.distribution import framed
from pmg.histogram import HuHistogram
from pmg.targets import MOST_TARGETS, Targets, read_targets
from storage.errors import IngestError
from storage.ingest import ingest
from storage.nifti import write_nifti
from storage.volume import Volume

SPACING_MM = (4.0, 3.0, 3.0)


def scan(seed: int, hu: float, noise: float = 12.0) -> Volume:
    """A trunk with an organ, in air."""
    rng = np.random.default_rng(seed)
    shape = (20, 70, 90)
    _, y, x = np.indices(shape)
    body = ((y - 34.5) / 28) ** 2 + ((x - 44.5) / 38) ** 2 < 1
    image = np.where(body, 40.0, -1000.0)
    image[np.hypot(y - 30, x - 30 - rng.uniform(0, 6)) < 10] = hu
    image[body] += rng.normal(0, noise, int(body.sum()))
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, ::-1] * SPACING_MM
    return Volume(image.astype(np.int16), affine)


def test_scans_of_the_domain_are_read_from_a_store(tmp_path):
    rows = []
    for number in range(4):
        path = tmp_path / f"{number}.nii.gz"
        write_nifti(scan(number, 60 if number < 2 else 160), path)
        rows.append((path, 1 if number < 2 else 2, "portal"))
    manifest = tmp_path / "manifest.csv"
    with manifest.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "domain", "phase"), *rows])
    ingest(
        None,
        tmp_path / "store",
        manifest=manifest,
        spacing_mm=SPACING_MM,
        key_path=tmp_path / "key",
    )
    targets = read_targets(str(tmp_path / "store"), 2, SPACING_MM)
    assert len(targets.scans) == 2
    bright = targets.histogram.share[300 + 130 : 300 + 200].sum()
    assert 0.05 < bright < 0.2
    assert (
        read_targets(str(tmp_path / "store"), 1, SPACING_MM).histogram.share[300 + 130 :].sum()
        < 0.001
    )


def test_of_many_series_in_a_folder_8_are_read(tmp_path):
    for number in range(11):
        write_nifti(scan(number, 150), tmp_path / f"{number:02d}.nii.gz")
    assert len(read_targets(str(tmp_path), 2, SPACING_MM).scans) == MOST_TARGETS == 8


def test_a_folder_without_scans_is_refused_by_name(tmp_path):
    with pytest.raises(IngestError, match=f"targets {tmp_path}: no scan of domain 2"):
        read_targets(str(tmp_path), 2, SPACING_MM)


def test_a_scan_of_the_target_domain_is_nearer_than_one_of_the_other():
    targets = Targets.of([scan(n, 160) for n in range(3)], SPACING_MM)
    source = scan(9, 60)
    distances = targets.distances(
        framed(source, SPACING_MM),
        {"identity": source, "translated": scan(9, 160), "noisy": scan(9, 160, noise=40)},
    )
    for quantity in distances["identity"]:
        value = {name: measured[quantity].value for name, measured in distances.items()}
        assert value["translated"] < 0.7 * value["identity"]
        assert value["translated"] < 0.7 * value["noisy"]
        assert abs(value["truth"] - value["translated"]) < 0.3 * value["identity"]
    assert {quantity.name for quantity in distances["truth"]} == {"sliced Wasserstein", "KID"}


def test_one_scan_alone_has_no_other_to_compare_with():
    targets = Targets.of([scan(0, 160)], SPACING_MM)
    source = scan(9, 60)
    assert targets.distances(framed(source, SPACING_MM), {"identity": source}).keys() == {
        "identity"
    }


def test_a_source_without_a_common_frame_has_no_distances():
    targets = Targets((), HuHistogram(np.full(3372, 1 / 3372)))
    source = scan(9, 60)
    assert targets.distances(framed(source, SPACING_MM), {"identity": source}) == {}
