"""DICOM -> store -> DICOM, and DICOM -> translation -> DICOM, through the commands."""

import gzip

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from click.testing import CliRunner
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from pmg.cli import main
from pmg.config import Config
from pmg.training import build_modules
from pmg.weights import save_translator
from storage.dicom_write import write_series
from storage.nifti import write_nifti
from storage.phantom import Protocol, draw_subject, render
from storage.pseudonym import load_key
from storage.volume import Volume

SMALL = Protocol(shape=(12, 96, 96), spacing_mm=(6.0, 4.2, 4.2), thickness_mm=6.0)


def header() -> Dataset:
    one = Dataset()
    one.PatientName, one.PatientID = "DOE^JANE", "0815"
    one.PatientPosition = "HFS"
    one.Modality = "CT"
    one.SeriesDescription = "native"
    one.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    return one


def invoke(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def read(folder):
    """Voxels and geometry by SimpleITK, as somebody else's program reads them."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def orientation(kind: str) -> np.ndarray:
    """Columns: direction of slices, rows and columns of the array in LPS."""
    if kind == "sagittal":
        return np.array([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]])
    axial = np.array([[0, 0, 1.0], [0, 1.0, 0], [1.0, 0, 0]])
    if kind == "axial":
        return axial
    a, b = np.radians([17.0, -8.0])
    about_x = [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]
    about_z = [[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]]
    return np.array(about_z) @ np.array(about_x) @ axial


def points_of(image):
    """Patient coordinates of the corners, sorted: the same set whatever the axes' order."""
    size = np.array(image.GetSize()) - 1
    corners = [size * np.array(c) for c in np.ndindex(2, 2, 2)]
    return [image.TransformIndexToPhysicalPoint([int(i) for i in c]) for c in corners]


@pytest.mark.parametrize("kind", ["axial", "sagittal", "oblique"])
def test_a_series_leaves_the_store_with_its_hu_and_patient_coordinates(tmp_path, kind):
    hu = render(draw_subject(3), "non_contrast", SMALL, 5).hu
    affine = np.eye(4)
    affine[:3, :3] = orientation(kind) * (6.0, 4.2, 3.9)
    affine[:3, 3] = (-181.37, 22.13, -905.55)
    write_series(Volume(hu, affine), tmp_path / "in", header())

    invoke(
        "ingest",
        tmp_path / "in",
        "--domain",
        1,
        "--phase",
        "non_contrast",
        "--store",
        tmp_path / "store",
        "--key",
        tmp_path / "key",
    )
    written = invoke("export", tmp_path / "store", "--out", tmp_path / "out").strip()

    before, after = read(tmp_path / "in"), read(written)
    for corner in points_of(before):
        index = after.TransformPhysicalPointToIndex(corner)
        assert np.allclose(after.TransformIndexToPhysicalPoint(index), corner, atol=0.01)
        own = before.TransformPhysicalPointToIndex(corner)
        assert after.GetPixel(index) == before.GetPixel(own)
    # Every voxel, looked up by its patient coordinate.
    there = sitk.Resample(after, before, sitk.Transform(), sitk.sitkNearestNeighbor, -9999)
    assert np.array_equal(sitk.GetArrayFromImage(there), sitk.GetArrayFromImage(before))
    for file in (tmp_path / "out").rglob("*.dcm"):
        assert b"DOE" not in file.read_bytes()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that was not trained: it translates to the source plus what noise has moved."""
    config = Config.model_validate(
        {
            "data": {"patch": (32, 32), "spacing_mm": (6.0, 4.2, 4.2)},
            "model": {"width": 4, "blocks": 1},
            "discriminator": {"width": 4, "layers": 2, "scales": 1},
            "translate": {"tile": (64, 64)},
        }
    )
    translator, _ = build_modules(config)
    with torch.no_grad():
        translator.generators[1].out[-1].bias += 0.02
    folder = tmp_path_factory.mktemp("model")
    save_translator(translator, config, folder)
    return folder


@pytest.mark.parametrize("kind", ["axial", "sagittal", "oblique"])
def test_a_translation_lies_where_its_source_lies_and_says_what_it_is(tmp_path, model, kind):
    hu = render(draw_subject(4), "non_contrast", SMALL, 6).hu
    affine = np.eye(4)
    affine[:3, :3] = orientation(kind) * (6.0, 4.2, 4.2)
    affine[:3, 3] = (-190.0, -220.0, 40.0)
    write_series(Volume(hu, affine), tmp_path / "in", header())
    invoke("translate", tmp_path / "in", "--model", model, "--out", tmp_path / "out")

    source, target = read(tmp_path / "in"), read(tmp_path / "out" / "001" / "dicom")
    assert target.GetSize() == source.GetSize()
    assert np.allclose(points_of(target), points_of(source), atol=0.01)
    before, after = sitk.GetArrayFromImage(source), sitk.GetArrayFromImage(target)
    body = before > -200
    assert 3 < np.median((after - before)[body]) < 40
    nifti = sitk.ReadImage(str(tmp_path / "out" / "001" / "image.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(nifti), after)
    assert np.allclose(points_of(nifti), points_of(source), atol=0.01)

    one, original = (
        pydicom.dcmread(next((tmp_path / place).glob("*.dcm"))) for place in ("out/001/dicom", "in")
    )
    assert one.ImageType[:2] == ["DERIVED", "SECONDARY"]
    assert one.SeriesInstanceUID != original.SeriesInstanceUID
    assert one.SOPInstanceUID != original.SOPInstanceUID
    assert one.FrameOfReferenceUID not in ("", original.FrameOfReferenceUID)
    assert "not for diagnosis" in one.SeriesDescription
    assert "Not for diagnosis" in one.DerivationDescription


def first_slice(folder):
    return pydicom.dcmread(sorted(folder.glob("*.dcm"))[0])


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Two series of one study, and one of another patient."""
    folder = tmp_path_factory.mktemp("studies")
    volume = render(draw_subject(4), "non_contrast", SMALL, 6)
    study = generate_uid()
    for name, patient, uid in (("a", "0815", study), ("b", "0815", study), ("c", "4711", "1.2.3")):
        one = header()
        one.PatientID, one.StudyInstanceUID, one.StudyDate = patient, uid, "19990101"
        write_series(volume, folder / name, one)
    return folder


def test_what_is_translated_is_de_identified_and_linked_by_the_key_alone(tmp_path, model, studies):
    for out, key in (("keyed", "key"), ("again", "key"), ("other", "key2"), ("bare", None)):
        option = ("--key", tmp_path / key) if key else ()
        invoke("translate", studies, "--model", model, "--out", tmp_path / out, *option)
    written = {
        out: [first_slice(tmp_path / out / f"00{n}" / "dicom") for n in (1, 2, 3)]
        for out in ("keyed", "again", "other", "bare")
    }
    for a, b, c in written.values():
        assert a.PatientIdentityRemoved == "YES"
        assert "StudyDate" in a
        assert not a.StudyDate
        assert "SeriesDate" not in a
        assert a.StudyInstanceUID == b.StudyInstanceUID != c.StudyInstanceUID
        assert a.PatientID == b.PatientID != c.PatientID
        assert a.SeriesInstanceUID != b.SeriesInstanceUID
    for keyword in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        first = {out: some[0][keyword].value for out, some in written.items()}
        assert first["keyed"] == first["again"]
        assert len(set(first.values())) == 3, keyword
    names = load_key(tmp_path / "key", tmp_path / "keyed")
    source, one = first_slice(studies / "a"), written["keyed"][0]
    assert one.PatientID == names.of("patient", "0815")
    (reference,) = one.SourceImageSequence
    assert reference.ReferencedSOPInstanceUID == names.uid(source.SOPInstanceUID)


def test_the_identity_is_kept_only_on_demand(tmp_path, model, studies):
    arguments = ["translate", studies / "a", "--model", model, "--out", tmp_path / "out"]
    invoke(*arguments, "--keep-identity")
    source, one = first_slice(studies / "a"), first_slice(tmp_path / "out" / "001" / "dicom")
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert one[keyword].value == source[keyword].value
    assert one.StudyDate == "19990101"
    assert one.SeriesDate
    assert one.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert "PatientIdentityRemoved" not in one
    both = [*arguments, "--keep-identity", "--key", tmp_path / "key"]
    refused = CliRunner().invoke(main, [str(one) for one in both])
    assert refused.exit_code != 0
    assert "leave out --key" in refused.output
    assert not (tmp_path / "key").exists()


def test_a_series_that_says_it_shows_text_is_not_called_de_identified(tmp_path, model):
    one = header()
    one.BurnedInAnnotation = "YES"
    write_series(render(draw_subject(4), "non_contrast", SMALL, 6), tmp_path / "in", one)
    arguments = ["translate", tmp_path / "in", "--model", model, "--out", tmp_path / "out"]
    refused = CliRunner().invoke(main, [str(one) for one in arguments])
    assert refused.exit_code != 0
    assert "BurnedInAnnotation (0028,0301) is YES" in refused.output
    assert not list((tmp_path / "out").rglob("*.dcm"))
    invoke(*arguments, "--keep-identity")
    assert first_slice(tmp_path / "out" / "001" / "dicom").BurnedInAnnotation == "YES"


def test_the_words_of_a_nifti_header_are_not_written_again(tmp_path, model):
    write_nifti(render(draw_subject(5), "non_contrast", SMALL, 7), tmp_path / "plain.nii")
    image = nib.load(tmp_path / "plain.nii")
    for name in ("descrip", "aux_file", "intent_name", "db_name", "data_type"):
        image.header[name] = b"ZQXKDOE"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"ZQXKDOE"))
    nib.save(image, tmp_path / "scan.nii")
    assert (tmp_path / "scan.nii").read_bytes().count(b"ZQXKDOE") == 6
    invoke("translate", tmp_path / "scan.nii", "--model", model, "--out", tmp_path / "out")
    (written,) = (tmp_path / "out").rglob("*.nii.gz")
    assert b"ZQXK" not in gzip.decompress(written.read_bytes())


def test_nifti_is_translated_to_nifti_with_the_sources_affine(tmp_path, model):
    volume = render(draw_subject(5), "non_contrast", SMALL, 7)
    write_nifti(volume, tmp_path / "scan.nii.gz")
    invoke("translate", tmp_path / "scan.nii.gz", "--model", model, "--out", tmp_path / "out")
    before = sitk.ReadImage(str(tmp_path / "scan.nii.gz"))
    after = sitk.ReadImage(str(tmp_path / "out" / "001" / "image.nii.gz"))
    assert np.allclose(points_of(after), points_of(before), atol=1e-4)


def test_one_broken_series_does_not_stop_the_others(tmp_path, model):
    volume = render(draw_subject(6), "non_contrast", SMALL, 8)
    write_series(volume, tmp_path / "in" / "good", header())
    broken = write_series(volume, tmp_path / "in" / "broken", header())
    broken[4].unlink()
    result = CliRunner().invoke(
        main,
        ["translate", str(tmp_path / "in"), "--model", str(model), "--out", str(tmp_path / "out")],
    )
    assert result.exit_code != 0
    assert "1 of 2 series were not translated" in result.output
    assert "broken" in result.output
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == len(volume.hu)
