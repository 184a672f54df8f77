"""Reading CT series: what must be understood, and what must be refused with its reason."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from blake3 import blake3
from make_series import COLUMNS, ROWS, SLICES, a_series, a_volume, edit, setting, stored_as
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from storage.dicom_read import read_series
from storage.errors import GeometryError, IngestError


@pytest.fixture
def volume():
    return a_volume()


@pytest.fixture
def files(volume, tmp_path):
    return a_series(volume, tmp_path / "series")


def test_slices_follow_their_positions_whatever_their_numbers_and_names(files, volume):
    numbers = [4, 1, 6, 2, 3, 5]
    shuffled = []
    for file, number in zip(files, numbers, strict=True):
        edit(file, setting(InstanceNumber=number))
        shuffled.append(file.rename(file.with_name(f"{number}")))
    result, headers = read_series(sorted(shuffled))
    np.testing.assert_array_equal(result.hu, volume.hu)
    np.testing.assert_allclose(result.affine, volume.affine, atol=1e-9)
    assert result.hu.dtype == np.int16
    assert [header.InstanceNumber for header in headers] == numbers
    assert not any("PixelData" in header for header in headers)


def test_every_slice_is_rescaled_by_its_own_slope_and_intercept(files, volume):
    for index, file in enumerate(files):
        edit(file, stored_as(np.uint16, slope=1 + index / 4, intercept=-1024 - index))
    result, _ = read_series(files)
    steps = 1 + np.arange(SLICES) / 4
    error = np.abs(result.hu.astype(float) - volume.hu).max(axis=(1, 2))
    assert (error <= steps / 2 + 0.5).all()
    for index, file in enumerate(files):
        expected = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))[0]
        np.testing.assert_allclose(result.hu[index], expected, atol=0.5)


@pytest.mark.parametrize(
    "stored",
    [stored_as(np.uint16, intercept=-1024, bits_stored=12), stored_as(np.int16, bits_stored=13)],
    ids=["unsigned, 12 bits", "signed, 13 bits"],
)
def test_bits_above_the_stored_ones_are_no_part_of_the_number(files, volume, stored):
    def change(dataset):
        stored(dataset)
        cells = np.frombuffer(dataset.PixelData, np.uint16) & ((1 << dataset.BitsStored) - 1)
        overlay = np.uint16(1) << np.arange(len(cells)).astype(np.uint16) % 2 + np.uint16(14)
        dataset.PixelData = (cells | overlay).tobytes()

    for file in files:
        edit(file, change)
    result, _ = read_series(files)
    np.testing.assert_array_equal(result.hu, volume.hu)


@pytest.mark.parametrize(
    ("dtype", "bits", "value"),
    [(np.int16, 16, -2000), (np.int16, 16, 63536), (np.uint16, 16, 63536), (np.uint16, 12, 63536)],
)
def test_padding_becomes_air_and_is_not_rescaled(files, volume, dtype, bits, value):
    def change(dataset):
        intercept = 0 if dtype == np.int16 else -1024
        stored_as(dtype, intercept=intercept, bits_stored=bits)(dataset)
        pixels = np.frombuffer(dataset.PixelData, dtype).reshape(ROWS, COLUMNS).copy()
        pixels[:4, :5] = np.array(value).astype(dtype)
        dataset.PixelData = pixels.tobytes()
        dataset.add_new("PixelPaddingValue", "SS" if value < 0 else "US", value)

    for file in files:
        edit(file, change)
    result, _ = read_series(files)
    assert (result.hu[:, :4, :5] == -1024).all()
    np.testing.assert_array_equal(result.hu[:, 4:], volume.hu[:, 4:])


def test_a_padding_range_covers_all_its_values(files, volume):
    def change(dataset):
        dataset.add_new("PixelPaddingValue", "SS", -2000)
        dataset.add_new("PixelPaddingRangeLimit", "SS", -900)

    for file in files:
        edit(file, change)
    result, _ = read_series(files)
    padding = volume.hu <= -900
    assert padding.any()
    np.testing.assert_array_equal(result.hu, np.where(padding, -1024, volume.hu))


def test_monochrome1_inverts_the_display_and_not_the_hu(files, volume):
    for file in files:
        edit(file, setting(PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(read_series(files)[0].hu, volume.hu)


def test_hu_beyond_sixteen_bit_are_clipped(files):
    edit(files[2], setting(RescaleSlope=100))
    hu = read_series(files)[0].hu[2]
    assert (hu.min(), hu.max()) == (-32768, 32767)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_other_encodings_of_the_data_set_are_read(files, volume, syntax):
    def change(dataset):
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = dataset.pixel_array.astype(">i2").tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax

    for file in files:
        edit(file, change)
    result, headers = read_series(files)
    np.testing.assert_array_equal(result.hu, volume.hu)
    assert headers[0].PatientName == "A^B"


def test_files_without_preamble_are_read(files, volume):
    for file in files:
        edit(file, lambda ds: setattr(ds.file_meta, "TransferSyntaxUID", ImplicitVRLittleEndian))
        dataset = pydicom.dcmread(file)
        del dataset.file_meta
        dataset.preamble = None
        pydicom.dcmwrite(file, dataset, implicit_vr=True, little_endian=True)
        assert file.read_bytes()[:2] == b"\x08\x00"
    np.testing.assert_array_equal(read_series(files)[0].hu, volume.hu)


def test_one_broken_element_elsewhere_does_not_cost_the_series(files, volume):
    for file in files:
        edit(file, setting(InStackPositionNumber=7))
        file.write_bytes(file.read_bytes().replace(b"UL\x04\x00\x07", b"FD\x04\x00\x07"))
    result, headers = read_series(files)
    np.testing.assert_array_equal(result.hu, volume.hu)
    assert "InStackPositionNumber" not in headers[0]
    assert headers[0].PatientID == "1"


GEOMETRY = {
    "PixelSpacing zero": (setting(PixelSpacing=[0, 0]), r"PixelSpacing \(0028,0030\) is 0"),
    "PixelSpacing missing": (setting(PixelSpacing=None), r"PixelSpacing .* missing"),
    "PixelSpacing differs": (setting(PixelSpacing=[0.75, 0.6]), r"PixelSpacing .*expected 0.75"),
    "orientation skew": (
        setting(ImageOrientationPatient=[1, 0, 0, 0.1, 1, 0]),
        r"ImageOrientationPatient \(0020,0037\) .*right angles",
    ),
    "orientation differs": (
        setting(ImageOrientationPatient=[0, 1, 0, -1, 0, 0]),
        r"ImageOrientationPatient .*as in CT_0001.dcm",
    ),
    "position missing": (setting(ImagePositionPatient=None), r"\(0020,0032\) is missing"),
    "position doubled": (setting(ImagePositionPatient=[-30, -20, 100]), "one slice at each"),
    "position off by 0.05 mm": (setting(ImagePositionPatient=[-30, -20, 106.05]), "3.0500 mm"),
    "position sideways": (setting(ImagePositionPatient=[-30.2, -20, 106]), "off the even stack"),
    "rows differ": (setting(Rows=COLUMNS, Columns=ROWS), r"Rows \(0028,0010\) is 40; expected 36"),
}


@pytest.mark.parametrize("case", GEOMETRY)
def test_a_slice_that_breaks_the_stack_is_refused_with_its_tag(files, case):
    change, message = GEOMETRY[case]
    edit(files[2], change)
    with pytest.raises(GeometryError, match=message) as refused:
        read_series(files)
    assert files[2].name in str(refused.value)


UNFIT = {
    "enhanced": (setting(SOPClassUID=EnhancedCTImageStorage), r"\(5200,9230\) is missing"),
    "MR": (setting(Modality="MR"), r"Modality \(0008,0060\) is MR; expected CT"),
    "localizer": (setting(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "a projection"),
    "several frames": (setting(NumberOfFrames=2), r"\(0028,0008\) is 2"),
    "colour": (setting(SamplesPerPixel=3, PhotometricInterpretation="RGB"), r"\(0028,0002\) is 3"),
    "no rescale": (setting(RescaleSlope=None), r"RescaleSlope \(0028,1053\) is missing"),
    "slope 0": (setting(RescaleSlope=0), "other than 0"),
    "iodine map": (setting(RescaleType="MGML"), r"RescaleType \(0028,1054\) is MGML"),
    "no pixels": (setting(PixelData=None), r"PixelData \(7FE0,0010\) is missing"),
    "few pixels": (
        lambda ds: setattr(ds, "PixelData", ds.PixelData[:-2]),
        "2878 bytes; expected 2880",
    ),
    "other series": (setting(SeriesInstanceUID="1.2.3"), r"SeriesInstanceUID .* is 1.2.3"),
    "other frame": (setting(FrameOfReferenceUID="1.2.3"), r"FrameOfReferenceUID .* is 1.2.3"),
    "no rows": (setting(Rows=0), r"Rows \(0028,0010\) is 0"),
    "bits": (setting(BitsAllocated=12), r"BitsAllocated \(0028,0100\) is 12"),
    "more bits than a cell": (setting(BitsStored=17, HighBit=16), r"BitsStored \(0028,0101\)"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_file_that_is_no_ct_slice_is_refused_with_its_tag(files, case):
    change, message = UNFIT[case]
    edit(files[2], change)
    with pytest.raises((IngestError, GeometryError), match=message) as refused:
        read_series(files)
    assert files[2].name in str(refused.value)


def test_numbers_that_are_not_finite_are_refused(files):
    blob = files[2].read_bytes()
    for old, new in ((b"0.75\\0.5", b"nan \\0.5"), (b"-30.0\\-20.0", b"inf  \\-20.0")):
        assert blob.count(old) == 1
        files[2].write_bytes(blob.replace(old, new))
        with pytest.raises(GeometryError, match="expected finite numbers"):
            read_series(files)


def test_missing_slices_are_counted(files):
    with pytest.raises(GeometryError, match="expected about 2 more slices between"):
        read_series([*files[:2], *files[4:], *shifted(files)])


def shifted(files):
    """More slices on top, so that most steps are 3 mm."""
    more = []
    for index in range(4):
        file = files[0].with_name(f"more{index}.dcm")
        file.write_bytes(files[0].read_bytes())
        edit(file, setting(ImagePositionPatient=[-30, -20, 118 + 3 * index]))
        more.append(file)
    return more


def test_positions_rounded_to_a_hundredth_of_a_millimetre_are_accepted(files):
    for index, file in enumerate(files):
        edit(file, setting(ImagePositionPatient=[-30, -20, round(100 + 0.625 * index, 2)]))
    volume, _ = read_series(files)
    assert volume.spacing_mm[0] == pytest.approx(0.626, abs=0.002)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_slices_are_refused(files, count):
    with pytest.raises(GeometryError, match=f"{count} slices; expected at least 2"):
        read_series(files[:count])


@pytest.mark.filterwarnings("ignore:End of file reached before delimiter")
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_a_file_cut_off_anywhere_is_refused_by_name(files, kept, syntax):
    if syntax:
        edit(files[2], stored_as(np.uint16, intercept=-1024))
        edit(files[2], lambda dataset: dataset.compress(syntax))
    blob = files[2].read_bytes()
    files[2].write_bytes(blob[: min(int(len(blob) * kept), len(blob) - 12)])
    with pytest.raises((IngestError, GeometryError), match=files[2].name):
        read_series(files)


def test_a_file_that_is_no_dicom_is_refused_by_name(files):
    files[2].write_bytes(b"not an image " * 100)
    with pytest.raises(IngestError, match=files[2].name):
        read_series(files)


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_the_files_does_not_matter_and_each_is_hashed(files, seed):
    expected = read_series(files)[0]
    shuffled = [files[i] for i in np.random.default_rng(seed).permutation(len(files))]
    digests: dict[Path, bytes] = {}
    found, headers = read_series(shuffled, digests)
    np.testing.assert_array_equal(found.hu, expected.hu)
    np.testing.assert_array_equal(found.affine, expected.affine)
    heights = [header.ImagePositionPatient[2] for header in headers]
    assert heights == sorted(heights)
    assert digests == {file: blake3(file.read_bytes()).digest() for file in files}
