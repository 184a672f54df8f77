"""The commands that look at a store, wherever it lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from nibabel import load

from pmg.cli import main
from storage.body import FrameOrigin
from storage.place import Place
from storage.store import Store
from storage.volume import Volume


@pytest.fixture
def store(place: Place) -> Store:
    """Two volumes of domain 1, of one patient, and one of domain 2."""
    store = Store.create(place, (2.0, 1.0, 1.0))
    rng = np.random.default_rng(0)
    with store.writer() as writer:
        rows = []
        for domain, number in ((1, 1), (1, 2), (2, 3)):
            hu = rng.normal(40 + 160 * (domain - 1), 5, (10 + number, 40, 40)).astype(np.int16)
            rows.append(
                writer.stage(
                    Volume(hu, np.diag([2.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]]),
                    np.ones(hu.shape, bool),
                    FrameOrigin((5, 20, 20), "lung base"),
                    volume_id=f"v{number}",
                    patient=f"p{domain}",
                    domain=domain,
                    phase="portal" if domain == 2 else "non_contrast",
                    source_digest="0",
                    ingest_version=1,
                    provenance={},
                )
            )
        writer.commit(rows)
    return Store.open(place)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, arguments, env={"COLUMNS": "200"})
    return result.exit_code, result.output


def cells(output: str) -> list[list[str]]:
    """The table's lines, as words between the bars."""
    return [
        [c.strip() for c in line.split("│")[1:-1]] for line in output.splitlines() if "│" in line
    ]


def test_info_counts_by_domain_and_phase(store: Store) -> None:
    code, output = run("info", store.place.address)
    assert code == 0, output
    assert "3 volumes of 2 patients" in output
    assert "grid: 2 x 1 x 1 mm (z, y, x)" in output
    table = cells(output)
    assert ["1", "non_contrast", "2", "1", "23"] in [line[:5] for line in table]
    assert ["2", "portal", "1", "1", "13"] in [line[:5] for line in table]
    shares = {line[0]: (line[1], line[3]) for line in table if len(line) == 5}
    assert shares["-974 to -774"] == ("0.00%", "0.00%")
    soft, vessel = shares["26 to 76"], shares["176 to 226"]
    assert float(soft[0].rstrip("%")) > 95
    assert float(vessel[1].rstrip("%")) > 95


def test_info_of_an_empty_store_and_of_none(place: Place) -> None:
    Store.create(place, None)
    code, output = run("info", place.address)
    assert code == 0, output
    assert "0 volumes" in output
    code, output = run("info", f"{place.address}/elsewhere")
    assert code == 1
    assert "no store here" in output
    assert "Traceback" not in output


def test_verify_names_every_damaged_volume_and_fails(store: Store) -> None:
    assert run("verify", store.place.address, "--threads", "2") == (
        0,
        f"{store.place.address}: all 3 volumes have their BLAKE3\n",
    )
    for volume_id in ("v1", "v3"):
        store.place.remove_tree(f"{store.row(volume_id).array_path}/c")
    code, output = run("verify", store.place.address)
    assert code == 1
    lines = output.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["volume v1", "volume v3"]
    assert lines[2].endswith("2 of 3 volumes are damaged")


def test_export_reads_from_either_place(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, output = run("export", store.place.address, "v2", "--out", str(out), "--format", "nifti")
    assert code == 0, output
    exported = np.asarray(load(out / "v2.nii.gz").dataobj)
    assert exported.size == store.read("v2").hu.size
    assert np.sort(exported.ravel()).tolist() == np.sort(store.read("v2").hu.ravel()).tolist()


def test_a_training_without_a_second_domain_is_refused_from_either_place(
    store: Store, tmp_path: Path
) -> None:
    with store.writer() as writer:
        writer.commit([], removed=["v3"])
    code, output = run("train", "--store", store.place.address, "--run", str(tmp_path / "run"))
    assert code == 1
    assert "config data.store" in output
    assert "domain [1]; training needs both" in output


def test_an_address_that_may_hold_keys_is_not_repeated(tmp_path: Path) -> None:
    for arguments in (
        ["info", "s3://key:SECRET@bucket/x"],
        ["train", "--store", "s3://key:SECRET@bucket/x", "--run", str(tmp_path / "run")],
        ["train", "--run", str(tmp_path / "run"), "data.store=s3://key:SECRET@bucket/x"],
    ):
        code, output = run(*arguments)
        assert code == 1
        assert "expected s3://bucket/prefix" in output
        assert "SECRET" not in output
