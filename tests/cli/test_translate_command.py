"""`pmg translate`: further series, other formats, and batches that stop and go on."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
import zarr
from click.testing import CliRunner
from pydicom.dataset import Dataset

from pmg.cli import main
from pmg.config import Config
from pmg.training import build_modules
from pmg.weights import save_translator
from storage.dicom_write import write_series
from storage.nifti import write_nifti
from storage.phantom import Protocol, draw_subject, render
from storage.volume import Volume

SMALL = Protocol(shape=(8, 64, 64), spacing_mm=(6.0, 6.3, 6.3), thickness_mm=6.0)


def volume(seed: int) -> Volume:
    return render(draw_subject(seed), "non_contrast", SMALL, seed)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = Config.model_validate(
        {
            "data": {"patch": (32, 32), "spacing_mm": SMALL.spacing_mm},
            "model": {"width": 4, "blocks": 1},
            "prior": {"components": 3},
            "discriminator": {"width": 4, "layers": 2, "scales": 1},
            "translate": {"tile": (64, 64)},
        }
    )
    translator, _ = build_modules(config)
    with torch.no_grad():
        translator.generators[1].out[-1].bias += 0.02
        translator.encoders[0].tail.log_var.bias += 4
    folder = tmp_path_factory.mktemp("model")
    save_translator(translator, config, folder)
    return folder


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Three series of three patients below one folder."""
    folder = tmp_path_factory.mktemp("cohort")
    for seed in (1, 2, 3):
        header = Dataset()
        header.PatientName, header.PatientID = f"DOE^{seed}", f"0815-{seed}"
        header.Modality, header.SeriesNumber = "CT", 4
        header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        write_series(volume(seed), folder / f"patient-{seed}", header)
    return folder


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def read(folder):
    """A DICOM series as SimpleITK reads it, rescaled."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def report(out):
    with (out / "translate-report.csv").open() as file:
        return [(row["folder"], row["verdict"]) for row in csv.DictReader(file)]


def test_uncertainty_and_responsibilities_are_series_of_their_own_in_every_format(
    tmp_path, model, cohort
):
    options = ("--samples", 3, "--responsibilities")
    formats = ("--format", "dicom", "--format", "nifti", "--format", "zarr")
    out = tmp_path / "out"
    done = run(
        "translate", cohort / "patient-1", "--model", model, "--out", out, *options, *formats
    )
    assert done.exit_code == 0, done.output
    place = out / "001"
    source, image = read(cohort / "patient-1"), read(place / "dicom")
    further = ["dicom-uncertainty", *(f"dicom-responsibility-{k}" for k in (1, 2, 3))]
    series = [read(place / name) for name in further]
    for one in (image, *series):
        assert one.GetSize() == source.GetSize()
        corner = [n - 1 for n in source.GetSize()]
        for index in ((0, 0, 0), corner):
            np.testing.assert_allclose(
                one.TransformIndexToPhysicalPoint(index),
                source.TransformIndexToPhysicalPoint(index),
                atol=0.01,
            )
    spread, *shares = (sitk.GetArrayFromImage(one) for one in series)
    assert spread.max() > 1
    assert np.abs(sum(shares) - 100).max() <= 2 or (sum(shares) == 0).any()

    headers = [pydicom.dcmread(sorted((place / n).glob("*.dcm"))[0]) for n in ("dicom", *further)]
    assert [str(h.RescaleType) for h in headers] == ["HU", "HU", "PCT", "PCT", "PCT"]
    assert [int(h.SeriesNumber) for h in headers] == [1004, 1005, 1006, 1007, 1008]
    assert len({h.SeriesInstanceUID for h in headers}) == 5
    assert len({h.SOPInstanceUID for h in headers}) == 5
    assert len({(h.StudyInstanceUID, h.FrameOfReferenceUID) for h in headers}) == 1
    for header in headers:
        assert header.ImageType[:2] == ["DERIVED", "SECONDARY"]
        assert "not for diagnosis" in header.SeriesDescription
        assert "Not for diagnosis" in header.DerivationDescription
        assert header.SourceImageSequence
        assert len(header.ContributingEquipmentSequence) == 2

    nifti = nib.load(place / "responsibilities.nii.gz")
    assert nifti.shape == (*source.GetSize(), 3)
    np.testing.assert_array_equal(np.asarray(nifti.dataobj).T, shares)
    uncertainty = sitk.GetArrayFromImage(sitk.ReadImage(str(place / "uncertainty.nii.gz")))
    np.testing.assert_allclose(uncertainty, spread, atol=0.051)
    group = zarr.open_group(place / "responsibilities.ome.zarr", mode="r")
    np.testing.assert_array_equal(group["0"][:], shares)
    np.testing.assert_array_equal(
        zarr.open_group(place / "image.ome.zarr", mode="r")["0"][:], sitk.GetArrayFromImage(image)
    )


def test_the_same_command_again_translates_nothing_and_another_setting_all(tmp_path, model, cohort):
    out = tmp_path / "out"
    command = ("translate", cohort, "--model", model, "--out", out)
    assert run(*command).exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in out.glob("0*/**/*")}
    again = run(*command)
    assert again.output.count("there already") == 3
    assert {path: path.stat().st_mtime_ns for path in out.glob("0*/**/*")} == before
    assert report(out) == [(f"00{n}", "there already") for n in (1, 2, 3)]
    assert run(*command, "--samples", 2, "--format", "nifti").exit_code == 0
    assert report(out) == [(f"00{n}", "translated") for n in (4, 5, 6)]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_changed_model_and_a_changed_source_are_translated_anew(tmp_path, model, cohort):
    out, scan, own = tmp_path / "out", tmp_path / "scan.nii.gz", tmp_path / "model"
    own.mkdir()
    for file in model.iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    write_nifti(volume(1), scan)
    command = ("translate", scan, "--model", own, "--out", out)
    run(*command)
    (own / "config.yaml").write_text((own / "config.yaml").read_text() + "# another one\n")
    run(*command)
    write_nifti(volume(2), scan)
    run(*command)
    assert report(out) == [("003", "translated")]


def test_a_broken_series_is_told_in_the_report_and_done_when_it_is_mended(tmp_path, model):
    source, out = tmp_path / "in", tmp_path / "out"
    for name, seed in (("a", 1), ("b", 2)):
        header = Dataset()
        header.PatientID, header.Modality = name, "CT"
        write_series(volume(seed), source / name, header)
    gone = source / "a" / "CT_0004.dcm"
    kept = gone.read_bytes()
    gone.unlink()
    command = ("translate", source, "--model", model, "--out", out)
    first = run(*command)
    assert first.exit_code == 1
    assert "1 of 2 series were not translated" in first.output
    assert report(out) == [("", "failed"), ("002", "translated")]
    assert not list(out.glob(".*"))
    gone.write_bytes(kept)
    assert run(*command).exit_code == 0
    assert report(out) == [("001", "translated"), ("002", "there already")]


@pytest.mark.slow
def test_a_killed_batch_leaves_whole_series_and_goes_on_with_the_others(tmp_path, model, cohort):
    out = tmp_path / "out"
    command = ["translate", cohort, "--model", model, "--out", out]
    program = [sys.executable, "-c", "from pmg.cli import main; main()"]
    process = subprocess.Popen([*program, *map(str, command)], stdout=subprocess.DEVNULL)
    while not list(out.glob(".0*")) and process.poll() is None:
        time.sleep(0.001)
    assert process.poll() is None  # it was at work on a series
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    whole = {folder.name for folder in out.glob("0*")}
    assert run(*command).exit_code == 0
    verdicts = dict(report(out))
    assert {name for name, verdict in verdicts.items() if verdict == "there already"} == whole
    for folder in verdicts:
        assert len(list((out / folder / "dicom").glob("*.dcm"))) == SMALL.shape[0]
    assert not list(out.glob(".0*"))


def test_dicom_alone_of_a_nifti_is_refused(tmp_path, model):
    write_nifti(volume(1), tmp_path / "scan.nii")
    command = ("translate", tmp_path / "scan.nii", "--model", model, "--out", tmp_path / "out")
    refused = run(*command, "--format", "dicom")
    assert refused.exit_code == 1
    assert "has no headers to derive a DICOM series from" in refused.output
