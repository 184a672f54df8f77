"""A model in three lines of Python, as the documentation shows them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import yaml
from tiny import shaken, tiny_config

from pmg.config import ConfigError
from pmg.model import Translator
from pmg.use import load_model, read_volume, write_volume
from pmg.weights import save_translator
from storage.errors import IngestError
from storage.nifti import write_nifti
from storage.volume import Volume

ROOT = Path(__file__).parents[2]


def scan() -> Volume:
    y, x = np.indices((60, 80))
    body = ((y - 30) / 24) ** 2 + ((x - 40) / 34) ** 2 < 1
    hu = np.where(body, 40, -1000)[None].repeat(6, axis=0).astype(np.int16)
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, ::-1] * (3.0, 4.0, 4.0)
    return Volume(hu, affine)


@pytest.fixture
def run(tmp_path):
    """A run's folder and a scan, in the working directory of who follows the documentation."""
    config = tiny_config(data={"spacing_mm": (3.0, 4.0, 4.0)})
    save_translator(shaken(Translator(config), scale=0.05), config, tmp_path / "run" / "model")
    write_nifti(scan(), tmp_path / "scan.nii.gz")
    return tmp_path


@pytest.mark.parametrize("page", ["README.md", "docs/translate.md"])
def test_the_lines_of_the_documentation_work(run, page):
    text = (ROOT / page).read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?load_model.*?)```", text, re.DOTALL)
    subprocess.run([sys.executable, "-c", code], cwd=run, check=True, timeout=120)
    before = sitk.ReadImage(str(run / "scan.nii.gz"))
    after = sitk.ReadImage(str(run / "translated.nii.gz"))
    assert after.GetOrigin() == before.GetOrigin()
    change = sitk.GetArrayFromImage(after).astype(int) - sitk.GetArrayFromImage(before)
    assert np.abs(change).max() > 1


def test_importing_pmg_loads_nothing_heavy():
    code = "import pmg, sys; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'zarr')))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_volumes_are_written_as_nifti_and_zarr(run):
    translated = load_model(run / "run", source=2).translate(read_volume(run / "scan.nii.gz"))
    write_volume(translated, run / "a.nii.gz")
    write_volume(translated, run / "a.ome.zarr")
    np.testing.assert_array_equal(read_volume(run / "a.nii.gz").hu, translated.hu)
    with pytest.raises(ValueError, match=r"\.nii"):
        write_volume(translated, run / "a.mha")


def test_a_folder_of_two_series_is_no_volume(run):
    (run / "two").mkdir()
    write_nifti(scan(), run / "two" / "b.nii")
    write_nifti(scan(), run / "two" / "c.nii")
    with pytest.raises(IngestError, match="2 series; expected 1"):
        read_volume(run / "two")


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/object/new:pathlib"])
def test_a_configuration_that_asks_to_run_code_is_refused(run, tag):
    trap, sprung = run / "run" / "model" / "config.yaml", run / "sprung"
    trap.write_text(f"train: {tag} ['touch {sprung}']\n")
    with pytest.raises(ConfigError, match="not YAML"):
        load_model(run / "run")
    assert not sprung.exists()
    if "apply" in tag:
        yaml.unsafe_load(trap.read_text(encoding="utf-8"))
        assert sprung.exists()  # it was a trap


@pytest.mark.parametrize("name", ["model.pt", "model.pt2", "model.pkl", "pytorch_model.bin"])
def test_other_model_files_beside_the_weights_are_not_looked_at(run, name, monkeypatch):
    folder = run / "run" / "model"
    (folder / name).write_bytes(b"\x80\x04cposix\nsystem\n(S'touch sprung'\ntR.")
    monkeypatch.chdir(run)

    def unpickles(*_, **__):
        raise AssertionError("a model file was unpickled")

    monkeypatch.setattr(torch, "load", unpickles)
    monkeypatch.setattr("pickle.load", unpickles)
    monkeypatch.setattr("pickle.loads", unpickles)
    load_model(run / "run")
    assert not (run / "sprung").exists()
