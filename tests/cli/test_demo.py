"""The whole line in one command, with a model too small to be any good."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.ray]

PMG = Path(sys.executable).parent / "pmg"
TINY = [
    "model.width=4",
    "model.blocks=1",
    "discriminator.width=4",
    "discriminator.layers=2",
    "discriminator.scales=1",
    "prior.fit_step=5",
    "train.steps=20",
    "train.checkpoint_every=20",
]


def demo(out, *arguments):
    command = [str(PMG), "demo", "--out", str(out), *arguments, *TINY]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=540)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((out / "report" / "metrics.json").read_text())
    return done.stdout, {row["name"]: row for row in rows}


def test_the_demo_ends_with_a_table_and_a_report_that_needs_nothing_else(tmp_path):
    out = tmp_path / "demo"
    printed, rows = demo(out, "--subjects", "2", "--tests", "1")

    assert str(out / "report" / "report.html") in printed
    for name in ("body MAE", "aorta", "liver", "kidney", "spleen", "plaques kept"):
        assert name in printed
        assert rows[name]["translated"] is not None
        assert rows[name]["identity"] is not None
    page = (out / "report" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page
    assert "src=" not in page.replace('src="data:', "")
    assert (out / "report" / "report.png").read_bytes()[:4] == b"\x89PNG"
    case = out / "report" / "test-000"
    assert len(list((case / "dicom").glob("*.dcm"))) == len(
        list((out / "dicom" / "test" / "test-000" / "source").glob("*.dcm"))
    )
    assert (case / "image.nii.gz").is_file()

    # A second demo finds everything done and only evaluates again.
    again, same = demo(out, "--subjects", "2", "--tests", "1")
    assert "0 ingested, 4 skipped" in again
    assert same["body MAE"] == rows["body MAE"]


@pytest.mark.real
def test_the_real_demo_shows_calcium_and_blood_before_and_after(tmp_path):
    _, rows = demo(tmp_path / "demo", "--real")
    calcium = rows["pat_3: arch wall, calcium"]
    assert calcium["identity"] > 130
    assert calcium["translated"] is not None
    assert 10 < rows["pat_3: arch blood pool, mean"]["identity"] < 80
