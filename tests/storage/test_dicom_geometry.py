"""Series as they lie in the scanner, written by SimpleITK and read back against it."""

import random

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import CTImageStorage, generate_uid
from scipy.spatial.transform import Rotation

from storage.grid import canonical
from storage.series import find_sources, read_source
from storage.volume import Volume

# Image Orientation (Patient) by Patient Position (PS3.3 C.7.3.1.1.2), axial images.
POSITIONS = {
    "HFS": [1, 0, 0, 0, 1, 0],
    "HFP": [-1, 0, 0, 0, -1, 0],
    "HFDR": [0, -1, 0, 1, 0, 0],
    "HFDL": [0, 1, 0, -1, 0, 0],
    "FFS": [-1, 0, 0, 0, 1, 0],
    "FFP": [1, 0, 0, 0, -1, 0],
    "FFDR": [0, 1, 0, 1, 0, 0],
    "FFDL": [0, -1, 0, -1, 0, 0],
}
PLANES = {"sagittal": [0, 1, 0, 0, 0, -1], "coronal": [1, 0, 0, 0, 0, -1]}
OBLIQUE = {
    f"oblique {angles}": Rotation.from_euler("xyz", angles, degrees=True).as_matrix().T[:2].ravel()
    for angles in ((20, 0, 0), (0, -35, 10), (5, 170, 80))
}
ORIENTATIONS = {**POSITIONS, **PLANES, **OBLIQUE}
SPACING = (0.625, 0.75, 1.25)
ORIGIN = np.array([-111.5, 42.25, -303.125])


def write(folder, orientation, *, step=SPACING[2], thickness=2.5):
    """Slices of noise in a shuffled order; returns their HU by height: [z, y, x]."""
    folder.mkdir()
    hu = np.random.default_rng(4).integers(-1024, 3000, (7, 9, 11)).astype(np.int16)
    row, column = np.reshape(orientation, (2, 3)).astype(float)
    normal = np.cross(row, column)
    uid, frame = generate_uid(), generate_uid()
    numbers = list(range(len(hu)))
    random.Random(1).shuffle(numbers)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index, number in enumerate(numbers):
        image = sitk.GetImageFromArray(hu[index])
        image.SetSpacing(SPACING[:2])
        tags = {
            "0008|0016": CTImageStorage,
            "0008|0018": generate_uid(),
            "0008|0060": "CT",
            "0020|000d": "1.2.3",
            "0020|000e": uid,
            "0020|0052": frame,
            "0020|0013": str(number),
            "0018|0050": str(thickness),
            "0020|0032": "\\".join(f"{one:.9g}" for one in ORIGIN + index * step * normal),
            "0020|0037": "\\".join(f"{one:.10g}" for one in (*row, *column)),
            "0028|1052": "-1024",
            "0028|1053": "1",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{number}.dcm"))
        writer.Execute(image)
    return hu


def by_simpleitk(folder):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = (np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing())[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    return Volume(sitk.GetArrayFromImage(image), affine)


def only_source(folder):
    ((source,), refusals) = find_sources(folder)
    assert refusals == []
    return source


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_every_orientation_is_read_as_simpleitk_reads_it(tmp_path, name):
    hu = write(tmp_path / "series", ORIENTATIONS[name])
    volume, headers = read_source(only_source(tmp_path / "series"))
    theirs = by_simpleitk(tmp_path / "series")
    np.testing.assert_array_equal(volume.hu, hu)
    np.testing.assert_array_equal(volume.hu, theirs.hu)
    np.testing.assert_allclose(volume.affine, theirs.affine, atol=1e-5)
    ours, expected = canonical(volume), canonical(theirs)
    np.testing.assert_array_equal(ours.hu, expected.hu)
    heights = [np.dot(one.ImagePositionPatient, volume.affine[:3, 0]) for one in headers]
    assert heights == sorted(heights)


def test_slices_thicker_than_their_distance_overlap_and_are_fine(tmp_path):
    write(tmp_path / "series", POSITIONS["HFS"], step=0.7, thickness=5)
    volume, headers = read_source(only_source(tmp_path / "series"))
    assert volume.spacing_mm[0] == pytest.approx(0.7)
    assert headers[0].SliceThickness == 5


def test_a_rescale_with_fractions_is_that_of_simpleitk_to_half_a_unit(tmp_path):
    write(tmp_path / "series", POSITIONS["FFP"])
    for path in (tmp_path / "series").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.RescaleSlope, dataset.RescaleIntercept = "0.488281", "-1024.5"
        dataset.save_as(path)
    volume, _ = read_source(only_source(tmp_path / "series"))
    np.testing.assert_allclose(volume.hu, by_simpleitk(tmp_path / "series").hu, atol=0.5)


@pytest.mark.parametrize(("stored", "signed"), [(20000, False), (65535, False), (-32768, True)])
def test_the_whole_range_of_a_cell_is_rescaled_without_wrapping(tmp_path, stored, signed):
    write(tmp_path / "series", POSITIONS["HFS"])
    for path in (tmp_path / "series").iterdir():
        dataset = pydicom.dcmread(path)
        pixels = np.full((9, 11), stored, np.int32)
        pixels[0, 0] = 100
        dataset.PixelData = pixels.astype(np.int16 if signed else np.uint16).tobytes()
        dataset.PixelRepresentation = int(signed)
        dataset.BitsStored, dataset.HighBit = 16, 15
        dataset.save_as(path)
    volume, _ = read_source(only_source(tmp_path / "series"))
    assert (volume.hu[:, 0, 0] == 100 - 1024).all()
    assert (volume.hu[:, 1:] == np.clip(stored - 1024, -32768, 32767)).all()
