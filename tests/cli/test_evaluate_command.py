"""`pmg evaluate` on phantoms in both directions and on a scan without truth."""

import csv
import json

import pytest
import torch
from click.testing import CliRunner

from pmg.cli import main
from pmg.config import Config
from pmg.training import build_modules
from pmg.weights import save_translator
from storage.nifti import write_nifti
from storage.phantom import Protocol, draw_subject, render, write_cohort

SMALL = Protocol(
    shape=(12, 96, 96), spacing_mm=(6.0, 4.2, 4.2), thickness_mm=6.0, centre_mm=(0.0, -30.0, 20.0)
)
SPACING_MM = (6.0, 4.2, 4.2)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that was not trained: from 1 to 2 it adds some HU, from 2 to 1 nothing."""
    config = Config.model_validate(
        {
            "data": {"patch": (32, 32), "spacing_mm": SPACING_MM},
            "model": {"width": 4, "blocks": 1},
            "discriminator": {"width": 4, "layers": 2, "scales": 1},
        }
    )
    translator, _ = build_modules(config)
    with torch.no_grad():
        translator.generators[1].out[-1].bias += 0.02
    folder = tmp_path_factory.mktemp("model")
    save_translator(translator, config, folder)
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Scans of other subjects in both domains."""
    folder = tmp_path_factory.mktemp("real")
    for domain, phase in ((1, "non_contrast"), (2, "portal")):
        (folder / str(domain)).mkdir()
        for seed in (70, 71):
            volume = render(draw_subject(seed + 10 * domain), phase, SMALL, seed)
            write_nifti(volume, folder / str(domain) / f"{seed}.nii.gz")
    return folder


def evaluate(cases, out, model, *options):
    arguments = ["evaluate", cases, "--model", model, "--out", out, *options]
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = json.loads((out / "metrics.json").read_text())
    with (out / "cases.csv").open(newline="") as file:
        cases = list(csv.DictReader(file))
    return {row["name"]: row for row in rows}, cases


WITH_TRUTH = (
    "body MAE",
    "PSNR",
    "MS-SSIM",
    "gradient magnitude error",
    "aorta",
    "liver, error",
    "plaques kept",
    "plaque contrast / true contrast",
    "invented plaques",
    "fat, change",
    "gradient correlation with the source",
    "cycle error",
    "sliced Wasserstein",
    "KID",
)


@pytest.mark.parametrize("domain", [1, 2])
def test_phantoms_are_measured_in_both_directions(tmp_path, model, real, domain):
    write_cohort(tmp_path / "phantom", 3, 0, 2, SMALL, test_domain=domain)
    rows, cases = evaluate(
        tmp_path / "phantom" / "test",
        tmp_path / "out",
        model,
        "--from",
        domain,
        "--targets",
        real / str(3 - domain),
    )
    assert rows.keys() >= set(WITH_TRUTH)
    for name in WITH_TRUTH:
        assert rows[name]["identity"] is not None
        assert rows[name]["translated"] is not None
        assert rows[name]["matched"] is not None or name == "cycle error"
    aorta = rows["aorta"]
    # The truth lies on the other side of the source, whichever way it goes.
    assert (aorta["truth"] > aorta["identity"] + 50) == (domain == 1)
    assert (aorta["truth"] < aorta["identity"] - 50) == (domain == 2)
    assert rows["body MAE"]["identity_low"] <= rows["body MAE"]["identity"]
    assert rows["body MAE"]["subjects"] == 2
    assert rows["gradient correlation with the source"]["identity"] == pytest.approx(1)
    assert rows["fat, change"]["identity"] == rows["cycle error"]["identity"] == 0
    assert rows["KID"]["matched"] < rows["KID"]["identity"]
    if domain == 2:
        score = rows["Agatston score"]
        assert score["identity"] > score["truth"] + 100
        assert rows["Agatston score, error"]["identity"] > 100
        assert rows["body MAE"]["translated"] == pytest.approx(rows["body MAE"]["identity"], abs=1)
    assert {row["case"] for row in cases} == {"test-000", "test-001"}
    assert len({row["subject"] for row in cases}) == 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert "95 % intervals" in page
    assert "histogram" in page


def test_a_scan_without_truth_is_measured_too(tmp_path, model):
    (tmp_path / "cases" / "one" / "source").mkdir(parents=True)
    volume = render(draw_subject(4), "non_contrast", SMALL, 6)
    write_nifti(volume, tmp_path / "cases" / "one" / "source" / "scan.nii.gz")
    rows, _ = evaluate(tmp_path / "cases", tmp_path / "out", model)
    assert rows.keys() >= {
        "gradient correlation with the source",
        "calcium specks invented",
        "cycle error",
        "fat, change",
    }
    assert all(row["matched"] is None for row in rows.values())  # no real scans to match
    assert all(row["translated_low"] is None for row in rows.values())  # one subject
    assert "body MAE" not in rows
    assert "none; --targets names some" in (tmp_path / "out" / "report.html").read_text()
    assert "1 cases" not in (tmp_path / "out" / "metrics.csv").read_text()
