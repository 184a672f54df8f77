"""Written DICOM series, read back by SimpleITK, pydicom, dciodvfy and the project itself."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, generate_uid
from scipy.spatial.transform import Rotation

from storage.deidentify import deidentified
from storage.dicom_read import read_series
from storage.dicom_write import derived_headers, write_series
from storage.errors import GeometryError
from storage.grid import canonical, resample_like
from storage.pseudonym import throwaway_key
from storage.volume import Volume

# Columns: directions of slices, of rows' succession, of pixels within a row.
ORIENTATIONS = {
    "axial": np.eye(3)[:, ::-1],
    "sagittal": np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]).astype(float),
    "oblique": Rotation.from_euler("xyz", [23, -17, 41], degrees=True).as_matrix(),
}


def a_volume(directions=ORIENTATIONS["axial"], shape=(5, 6, 7), seed=0, dtype=np.int16):
    affine = np.eye(4)
    affine[:3, :3] = directions * [2.5, 0.7, 0.9]
    affine[:3, 3] = (-123.4567, 88.1, -1017.3)
    hu = np.random.default_rng(seed).integers(-1024, 3072, shape).astype(dtype)
    return Volume(hu, affine)


def a_header(**attributes):
    header = Dataset()
    header.PatientName, header.PatientID, header.PatientPosition = "Ph^Antom", "P1", "HFS"
    header.StudyInstanceUID, header.SeriesInstanceUID = generate_uid(), generate_uid()
    header.FrameOfReferenceUID = generate_uid()
    header.Manufacturer, header.ManufacturerModelName = "Scanner Works", "S1"
    header.SeriesNumber, header.KVP = 4, 120
    for keyword, value in attributes.items():
        setattr(header, keyword, value)
    return header


def simpleitk_affine(image):
    affine = np.eye(4)
    columns = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, :3] = columns[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    return affine


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_simpleitk_reads_the_same_hu_at_the_same_points(tmp_path, orientation):
    directions = ORIENTATIONS[orientation]
    if np.linalg.det(directions[:, ::-1]) < 0:  # SimpleITK derives slices from rows and columns
        directions = directions * [-1, 1, 1]
    volume = a_volume(directions)
    files = write_series(volume, tmp_path / "series", a_header())
    assert files == sorted((tmp_path / "series").iterdir())
    image = sitk.ReadImage([str(file) for file in files])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), volume.hu)
    np.testing.assert_allclose(simpleitk_affine(image), volume.affine, atol=1e-6)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_store_orientation_and_back_gives_the_written_series_exactly(tmp_path, orientation):
    require_exact_round_trip(a_volume(ORIENTATIONS[orientation]), tmp_path)


@settings(max_examples=40)
@given(
    rotation=st.integers(0, 2**32 - 1),
    mirrored=st.booleans(),
    shape=st.tuples(*[st.integers(2, 5)] * 3),
    spacing=st.tuples(*[st.floats(0.1, 10)] * 3),
    origin=st.tuples(*[st.floats(-3000, 3000)] * 3),
    position=st.sampled_from(["HFS", "FFS", "HFP", "FFDR"]),
    limits=st.sampled_from([(-1024, 3071), (-32768, 32767)]),
)
def test_any_orthogonal_grid_comes_back_exactly(
    *, rotation, mirrored, shape, spacing, origin, position, limits
):
    affine = np.eye(4)
    directions = Rotation.random(random_state=rotation).as_matrix() * (-1 if mirrored else 1)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = origin
    hu = np.random.default_rng(rotation).integers(*limits, shape, np.int16, endpoint=True)
    with tempfile.TemporaryDirectory() as folder:
        require_exact_round_trip(
            Volume(hu, affine), Path(folder), a_header(PatientPosition=position)
        )


def require_exact_round_trip(volume, folder, header=None):
    """DICOM -> the store's orientation -> the series' grid -> DICOM changes nothing."""
    first, headers = read_series(write_series(volume, folder / "first", header or a_header()))
    stored = canonical(first)
    again = resample_like(stored, first)
    second, _ = read_series(write_series(again, folder / "second", headers))
    for result in (first, second):
        placed = resample_like(result, volume)  # exact, or not int16
        assert placed.hu.dtype == np.int16
        np.testing.assert_array_equal(placed.hu, volume.hu)
    assert second.hu.tobytes() == first.hu.tobytes()
    np.testing.assert_allclose(second.affine, first.affine, atol=1e-6)


def test_float_hu_are_rounded_and_clipped_to_sixteen_bit(tmp_path):
    volume = a_volume(dtype=np.float32)
    volume.hu[0, 0, :5] = [-0.4, 40.6, -1e6, 1e6, 1.49]
    files = write_series(volume, tmp_path / "series", a_header())
    stored = sitk.GetArrayFromImage(sitk.ReadImage(str(files[0])))[0, 0, :5]
    np.testing.assert_array_equal(stored, [0, 41, -32768, 32767, 1])


def test_decimal_strings_fit_and_are_accurate(tmp_path):
    volume = a_volume(ORIENTATIONS["oblique"])
    files = write_series(volume, tmp_path / "series", a_header())
    for index, file in enumerate(files):
        written = pydicom.dcmread(file)
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            assert all(len(str(value)) <= 16 for value in written[keyword].value)
        position = (volume.affine @ (index, 0, 0, 1))[:3]
        np.testing.assert_allclose(written.ImagePositionPatient, position, atol=1e-8)
        assert written.InstanceNumber == index + 1
        assert written.SpacingBetweenSlices == written.SliceThickness == 2.5


def test_one_header_gives_each_slice_an_instance_uid_of_its_own(tmp_path):
    header = a_header(SOPInstanceUID=generate_uid(), SliceThickness=5)
    written = [pydicom.dcmread(f) for f in write_series(a_volume(), tmp_path / "s", header)]
    uids = {one.SOPInstanceUID for one in written}
    assert len(uids) == 5
    assert header.SOPInstanceUID not in uids
    assert {one.SeriesInstanceUID for one in written} == {header.SeriesInstanceUID}
    assert {one.SliceThickness for one in written} == {5}
    assert "Rows" not in header


def test_headers_per_slice_keep_their_instance_uids(tmp_path):
    headers = [a_header(SOPInstanceUID=generate_uid()) for _ in range(5)]
    files = write_series(a_volume(), tmp_path / "series", headers)
    assert [pydicom.dcmread(f).SOPInstanceUID for f in files] == [
        header.SOPInstanceUID for header in headers
    ]
    with pytest.raises(ValueError, match="4 headers for 5 slices"):
        write_series(a_volume(), tmp_path / "other", headers[:4])


def test_missing_identifiers_are_filled_the_same_in_every_slice(tmp_path):
    written = [pydicom.dcmread(f) for f in write_series(a_volume(), tmp_path / "s", Dataset())]
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert len({one[keyword].value for one in written}) == 1
    assert written[0].PatientName == ""
    assert written[0].SpecificCharacterSet == "ISO_IR 192"


def test_what_a_header_says_of_other_pixels_does_not_survive(tmp_path):
    header = a_header(
        PixelPaddingRangeLimit=5,
        NumberOfFrames=3,
        RescaleIntercept=-1024,
        PixelRepresentation=0,
        IconImageSequence=[Dataset()],
        Rows=999,
    )
    header.add_new("PixelPaddingValue", "US", 40)
    header.add_new(0x60000010, "US", 512)  # overlay rows
    files = write_series(a_volume(), tmp_path / "series", header)
    written = pydicom.dcmread(files[0])
    assert 0x60000010 not in written
    for gone in ("PixelPaddingValue", "PixelPaddingRangeLimit", "NumberOfFrames"):
        assert gone not in written
    assert "IconImageSequence" not in written
    assert (written.Rows, written.PixelRepresentation, written.RescaleIntercept) == (6, 1, 0)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_headers_read_in_another_transfer_syntax_are_written_with_their_values(tmp_path, syntax):
    coded = Dataset()
    coded.CodeValue, coded.CodingSchemeDesignator, coded.CodeMeaning = "1", "X", "Größe"
    header = a_header(
        PatientName="Müller^Jörg", AnatomicRegionSequence=[coded], SpecificCharacterSet="ISO_IR 100"
    )
    header.add_new("InStackPositionNumber", "UL", 70000)
    files = write_series(a_volume(), tmp_path / "first", header)
    for file in files:
        dataset = pydicom.dcmread(file)
        values = dataset.pixel_array
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = values.astype(
            ">i2" if syntax == ExplicitVRBigEndian else "<i2"
        ).tobytes()
        pydicom.dcmwrite(
            file,
            dataset,
            implicit_vr=syntax.is_implicit_VR,
            little_endian=syntax.is_little_endian,
            force_encoding=True,
        )
    volume, headers = read_series(files)
    np.testing.assert_array_equal(volume.hu, a_volume().hu)
    written = pydicom.dcmread(write_series(volume, tmp_path / "second", headers)[2])
    assert written.PatientName == "Müller^Jörg"
    assert written.InStackPositionNumber == 70000
    assert written.AnatomicRegionSequence[0].CodeMeaning == "Größe"


def test_a_sheared_or_infinite_grid_is_refused_and_leaves_nothing_behind(tmp_path):
    for row, column, value in ((1, 0, 0.4), (0, 3, np.nan)):
        volume = a_volume()
        volume.affine[row, column] = value
        with pytest.raises(GeometryError, match="series"):
            write_series(volume, tmp_path / "series", a_header())
    volume = a_volume(dtype=np.float32)
    volume.hu[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="1 voxels are not finite"):
        write_series(volume, tmp_path / "series", a_header())
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_midway_leaves_nothing_behind(tmp_path):
    headers = [a_header() for _ in range(5)]
    headers[3].PatientWeight = 70
    headers[3]["PatientWeight"].VR = "SQ"  # a number is no sequence and cannot be encoded
    with pytest.raises(TypeError, match="not iterable"):
        write_series(a_volume(), tmp_path / "series", headers)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_never_written_into(tmp_path):
    (tmp_path / "series").mkdir()
    write_series(a_volume(), tmp_path / "series", a_header())
    before = {f: f.read_bytes() for f in (tmp_path / "series").iterdir()}
    with pytest.raises(FileExistsError, match="not an empty folder"):
        write_series(a_volume(seed=1), tmp_path / "series", a_header())
    assert {f: f.read_bytes() for f in (tmp_path / "series").iterdir()} == before


def source_and_derived(tmp_path, **attributes):
    files = write_series(a_volume(), tmp_path / "source", a_header(**attributes))
    volume, sources = read_series(files)
    headers = derived_headers(sources, series_description="Synthetic contrast")
    derived = write_series(volume, tmp_path / "derived", headers)
    return [pydicom.dcmread(f) for f in files], [pydicom.dcmread(f) for f in derived]


def test_a_derived_series_stays_in_its_study_and_frame_and_names_its_source(tmp_path):
    sources, derived = source_and_derived(tmp_path)
    assert len({one.SOPInstanceUID for one in sources + derived}) == 10
    assert len({one.SeriesInstanceUID for one in derived}) == 1
    for source, one in zip(sources, derived, strict=True):
        assert one.SeriesInstanceUID != source.SeriesInstanceUID
        for kept in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "KVP"):
            assert one[kept].value == source[kept].value
        (reference,) = one.SourceImageSequence
        assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert reference.SpatialLocationsPreserved == "YES"
        assert one.ImagePositionPatient == source.ImagePositionPatient
        assert one.SeriesNumber == 1004


def test_a_derived_series_says_that_it_is_synthetic_and_who_made_it(tmp_path):
    _, derived = source_and_derived(tmp_path)
    for one in derived:
        assert list(one.ImageType[:2]) == ["DERIVED", "SECONDARY"]
        assert one.SyntheticData == "YES"
        assert "Not for diagnosis" in one.DerivationDescription
        assert one.SeriesDescription == "Synthetic contrast"
        scanner, program = one.ContributingEquipmentSequence
        assert (scanner.Manufacturer, scanner.ManufacturerModelName) == ("Scanner Works", "S1")
        assert program.Manufacturer == one.Manufacturer == "pmg"
        assert program.SoftwareVersions
        assert (one.WindowCenter, one.WindowWidth) == (40, 400)


def test_a_derived_series_claims_no_contrast_agent_exposure_or_foreign_private_data(tmp_path):
    private = a_header(
        ContrastBolusAgent="Iomeprol",
        ContrastBolusVolume=80,
        Exposure=200,
        ConvolutionKernel="B30f",
        WindowCenter=600,
        ProtocolName="Abdomen portal venous",
    )
    private.private_block(0x0029, "ACME", create=True).add_new(1, "LO", "secret")
    _, derived = source_and_derived(tmp_path, **{e.keyword: e.value for e in private if e.keyword})
    headers = derived_headers([private], series_description="x")
    for one in [*derived, *headers]:
        for gone in ("ContrastBolusAgent", "ContrastBolusVolume", "Exposure", "ConvolutionKernel"):
            assert gone not in one
        assert "ProtocolName" not in one
        assert not any(element.tag.is_private for element in one)


def test_text_burnt_into_the_source_and_lossy_compression_are_not_denied():
    header = a_header(BurnedInAnnotation="YES", LossyImageCompression="01")
    (derived,) = derived_headers([header], series_description="x")
    assert (derived.BurnedInAnnotation, derived.LossyImageCompression) == ("YES", "01")
    (derived,) = derived_headers([a_header()], series_description="x", number_offset=500)
    assert ("BurnedInAnnotation" in derived, derived.SeriesNumber) == (False, 504)


def test_derived_headers_refuse_what_they_cannot_write():
    with pytest.raises(ValueError, match="no source headers"):
        derived_headers([], series_description="x")
    with pytest.raises(ValueError, match="65 characters"):
        derived_headers([a_header()], series_description="x" * 65)


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy (dicom3tools) not installed")
def test_dciodvfy_finds_no_error_in_original_derived_and_deidentified_slices(tmp_path):
    source_and_derived(tmp_path)
    volume, sources = read_series(sorted((tmp_path / "source").iterdir()))
    removed = derived_headers(deidentified(sources, throwaway_key()), series_description="x")
    write_series(volume, tmp_path / "deidentified", removed)
    for folder in ("source", "derived", "deidentified"):
        file = tmp_path / folder / "CT_0003.dcm"
        run = subprocess.run(["dciodvfy", file], capture_output=True, text=True, check=False)
        errors = [line for line in run.stderr.splitlines() if line.startswith("Error")]
        # (0008,001C) Synthetic Data came into the standard in 2023, after Debian 12's version.
        assert [line for line in errors if "0x0008,0x001c" not in line] == []
