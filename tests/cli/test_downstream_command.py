"""`pmg downstream` on phantoms: what a network that knows contrast alone finds with and without."""

from __future__ import annotations

import csv

import pytest
import torch
from click.testing import CliRunner

from pmg.cli import main
from pmg.config import Config
from pmg.training import build_modules
from pmg.weights import save_translator
from storage.phantom import Protocol, write_cohort

SMALL = Protocol(
    shape=(14, 80, 80), spacing_mm=(5.0, 5.0, 5.0), thickness_mm=5.0, centre_mm=(0.0, -30.0, 20.0)
)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder, 5, 0, 3, SMALL, labelled_subjects=4)
    return folder


def saved(folder, hu: float):
    """A model that adds so many intensities to everything, and an untrained one at 0."""
    config = Config.model_validate(
        {
            "data": {"patch": (32, 32), "spacing_mm": (5.0, 5.0, 5.0)},
            "model": {"width": 4, "blocks": 1},
            "discriminator": {"width": 4, "layers": 2, "scales": 1},
        }
    )
    translator, _ = build_modules(config)
    with torch.no_grad():
        translator.generators[1].out[-1].bias += hu
    save_translator(translator, config, folder)
    return folder


def downstream(labelled, cases, model, out, *options):
    arguments = ["downstream", labelled, cases, "--model", model, "--out", out, *options]
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    return result, out / "downstream.csv"


def rows_of(path):
    with path.open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_a_network_trained_on_contrast_finds_more_where_the_image_looks_like_contrast(
    cohort, tmp_path
):
    # The pancreas takes 55 HU of contrast; a translator that adds about as much to everything is a
    # poor one, but what it makes of the pancreas lies nearer to what the network has seen.
    model = saved(tmp_path / "model", 0.1)
    result, table = downstream(
        cohort / "labelled", cohort / "test", model, tmp_path / "out", "--steps", 120
    )
    assert result.exit_code == 0, result.output
    rows = rows_of(table)
    assert {"pancreas, Dice", "plaque, F1"} <= rows.keys()
    pancreas = {name: float(value) for name, value in list(rows["pancreas, Dice"].items())[1:]}
    assert pancreas["translated"] > pancreas["untranslated"]
    assert pancreas["difference"] == pytest.approx(
        pancreas["translated"] - pancreas["untranslated"]
    )
    assert pancreas["difference_low"] <= pancreas["difference"] <= pancreas["difference_high"]
    assert pancreas["subjects"] == 3


def test_cases_without_labels_are_refused_by_name(cohort, tmp_path):
    model = saved(tmp_path / "model", 0.0)
    (tmp_path / "bare" / "one").mkdir(parents=True)
    source = next((cohort / "test").iterdir()) / "source"
    (tmp_path / "bare" / "one" / "source").symlink_to(source)
    result, table = downstream(tmp_path / "bare", cohort / "test", model, tmp_path / "out")
    assert result.exit_code == 1
    assert "case one: no organs.nii.gz" in result.output
    assert not table.exists()
