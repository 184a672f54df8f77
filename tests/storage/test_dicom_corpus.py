"""All files of pydicom and pydicom-data: read as SimpleITK reads them, or refused with a reason."""

import importlib.util
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage

from storage.errors import GeometryError, IngestError
from storage.series import find_sources, read_source
from storage.volume import Volume

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom on its own broken files


def data_folder(package):
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is missing: pip install pydicom pydicom-data"
    assert spec.origin is not None
    return Path(spec.origin).parent


FOLDERS = [data_folder("pydicom") / "data", data_folder("data_store") / "data"]
FILES = [
    path
    for folder in FOLDERS
    for path in sorted(folder.rglob("*"))
    if path.is_file() and not path.name.endswith((".py", ".pyc"))
]

# Slices of CT in native, JPEG lossless and JPEG 2000 (lossless, lossy, wrong sign) form.
SLICES = [
    "CT_small.dcm",
    "693_UNCI.dcm",
    "693_UNCR.dcm",
    "693_J2KI.dcm",
    "693_J2KR.dcm",
    "bad_sequence.dcm",
    "explicit_VR-UN.dcm",
    "J2K_pixelrep_mismatch.dcm",
]


def outcome(source):
    """The volume, or the reason why there is none."""
    try:
        return read_source(source)[0]
    except (GeometryError, IngestError) as refusal:
        return str(refusal)


def sop_class_and_series(path):
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        return header.get("SOPClassUID"), header.get("SeriesInstanceUID")
    except Exception:
        return None, None


def test_the_corpus_is_there():
    assert len(FILES) > 250


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_file_by_itself_is_refused_with_a_reason(path):
    """None is a volume by itself: single slices, other objects, and one map of blood flow."""
    sources, refusals = find_sources(path)
    assert len(sources) + len(refusals) <= 1
    assert all(one.path == path and one.reason for one in refusals)
    storage, series = sop_class_and_series(path)
    if storage in (CTImageStorage, EnhancedCTImageStorage) and series:
        (source,) = sources
        assert str(path) in outcome(source)
    elif storage or path.suffix == ".dcm":
        assert refusals


def test_slices_alone_are_refused_as_single_slices():
    for name in SLICES:
        (path,) = (path for path in FILES if path.name == name)
        ((source,), _) = find_sources(path)
        assert "1 slices; expected at least 2" in outcome(source)


def test_a_map_of_blood_flow_is_no_ct_in_hu():
    (path,) = (path for path in FILES if path.name == "eCT_Supplemental.dcm")
    ((source,), _) = find_sources(path)
    assert "PixelPresentation (0008,9205) is COLOR; expected MONOCHROME" in outcome(source)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
def test_together_they_are_read_as_simpleitk_reads_them_or_refused(folder):
    sources, refusals = find_sources(folder)
    assert all(one.reason for one in refusals)
    outcomes = [(source, outcome(source)) for source in sources]
    read = [(source, result) for source, result in outcomes if isinstance(result, Volume)]
    assert len(read) == (1 if folder.name == "data" and folder.parent.name == "pydicom" else 0)
    for source, volume in read:
        files = sorted(map(str, source.files), key=height)
        image = sitk.ReadImage(files)
        np.testing.assert_array_equal(volume.hu, sitk.GetArrayFromImage(image))
        np.testing.assert_allclose(volume.affine[:3, 3], image.GetOrigin(), atol=1e-5)
        np.testing.assert_allclose(volume.spacing_mm[::-1], image.GetSpacing(), atol=1e-5)
    for source, result in outcomes:
        if isinstance(result, str):
            assert any(path.name in result for path in source.files)


def height(path):
    return pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient[2]


@pytest.mark.parametrize("name", SLICES)
def test_a_slice_stacked_with_a_moved_copy_has_the_hu_of_simpleitk(name, tmp_path):
    path = next(path for path in FILES if path.name == name)
    dataset = pydicom.dcmread(path)
    for number in range(2):
        pydicom.dcmwrite(tmp_path / f"{number}.dcm", dataset)
        row, column = np.array(dataset.ImageOrientationPatient, float).reshape(2, 3)
        moved = np.array(dataset.ImagePositionPatient, float) + 3 * np.cross(row, column)
        dataset.ImagePositionPatient = [round(float(one), 6) for one in moved]
    ((source,), refusals) = find_sources(tmp_path)
    assert refusals == []
    volume, (header, _) = read_source(source)
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0].astype(float)
    if isinstance(header.get("PixelPaddingValue"), int):
        stored = (expected - header.RescaleIntercept) / header.RescaleSlope
        expected[stored == header.PixelPaddingValue] = -1024
    for hu in volume.hu:
        np.testing.assert_array_equal(hu, expected)
