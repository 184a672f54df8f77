"""Enhanced multi-frame CT, against SimpleITK, and back out as single slices."""

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from make_enhanced import enhanced, item, save
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    LegacyConvertedEnhancedCTImageStorage,
    RLELossless,
)
from scipy.spatial.transform import Rotation

from storage.dicom_read import read_series
from storage.dicom_write import derived_headers, write_series
from storage.errors import GeometryError, IngestError
from storage.series import find_sources, read_source
from storage.volume import Volume

ORIENTATIONS = {
    "axial": np.eye(3)[:, ::-1],
    "sagittal": np.array([[-1, 0, 0], [0, 0, 1], [0, -1, 0]]).astype(float),
    "oblique": Rotation.from_euler("xyz", [23, -17, 41], degrees=True).as_matrix()[:, ::-1],
}


def a_volume(orientation="axial", shape=(6, 36, 40)):
    affine = np.eye(4)
    affine[:3, :3] = ORIENTATIONS[orientation] * [2.5, 0.75, 0.5]
    affine[:3, 3] = (-12.5, 40.25, 700)
    hu = np.random.default_rng(9).integers(-1000, 2000, shape).astype(np.int16)
    return Volume(hu, affine)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_multi_frame_file_is_the_volume_that_simpleitk_reads(tmp_path, orientation):
    volume = a_volume(orientation)
    path = save(enhanced(volume), tmp_path / "whole.dcm")
    ((source,), refusals) = find_sources(tmp_path)
    assert (source.files, refusals) == ((path,), [])
    result, headers = read_source(source)
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(result.hu, sitk.GetArrayFromImage(image))
    columns = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    np.testing.assert_allclose(result.affine[:3, :3], columns[:, ::-1], atol=1e-5)
    np.testing.assert_allclose(result.affine[:3, 3], image.GetOrigin(), atol=1e-5)
    np.testing.assert_array_equal(result.hu, volume.hu)
    np.testing.assert_allclose(result.affine, volume.affine, atol=1e-6)
    assert len(headers) == len(volume.hu)


def test_frames_follow_their_positions_and_have_their_own_rescale(tmp_path):
    volume = a_volume()
    order, intercepts = [3, 0, 5, 1, 4, 2], [-1000.0 - 10 * n for n in range(6)]
    path = save(enhanced(volume, order=order, intercepts=intercepts), tmp_path / "whole.dcm")
    result, headers = read_series([path])
    np.testing.assert_array_equal(result.hu, volume.hu)
    np.testing.assert_allclose(result.affine, volume.affine, atol=1e-6)
    assert [header.RescaleIntercept for header in headers] == intercepts
    numbers = [header.ConversionSourceAttributesSequence[0] for header in headers]
    assert [one.ReferencedFrameNumber for one in numbers] == [order.index(n) + 1 for n in range(6)]


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless],
)
def test_multi_frame_pixels_are_decoded_in_every_syntax(tmp_path, syntax):
    volume = a_volume()
    dataset = enhanced(volume)
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    if syntax.is_compressed:
        dataset.compress(syntax)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    path = tmp_path / "whole.dcm"
    pydicom.dcmwrite(
        path,
        dataset,
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
        force_encoding=True,
    )
    result, _ = read_series([path])
    np.testing.assert_array_equal(result.hu, volume.hu)


def test_a_frames_header_is_that_of_a_slice_and_can_be_written_as_one(tmp_path):
    volume = a_volume("oblique")
    path = save(enhanced(volume), tmp_path / "whole.dcm")
    result, headers = read_series([path])
    for index, header in enumerate(headers):
        assert header.SOPClassUID == CTImageStorage
        assert "NumberOfFrames" not in header
        assert "PerFrameFunctionalGroupsSequence" not in header
        assert str(header.PatientName) == "Müller^Ölga"
        assert header.KVP == 120
        assert header.AcquisitionNumber == 3
        assert header.ImageType == ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
        position = volume.affine[:3, 3] + index * volume.affine[:3, 0]
        np.testing.assert_allclose(header.ImagePositionPatient, position, atol=1e-6)

    files = write_series(result, tmp_path / "slices", headers)
    again, written = read_series(files)
    np.testing.assert_array_equal(again.hu, volume.hu)
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-6)
    assert len({header.SOPInstanceUID for header in written}) == len(files)

    derived = derived_headers(headers, series_description="synthetic")
    source = pydicom.dcmread(path)
    for number, header in enumerate(derived, 1):
        (reference,) = header.SourceImageSequence
        assert reference.ReferencedSOPClassUID == source.SOPClassUID
        assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert reference.ReferencedFrameNumber == number
    (written, *_) = write_series(result, tmp_path / "derived", derived)
    assert pydicom.dcmread(written).StudyInstanceUID == source.StudyInstanceUID


def test_a_legacy_converted_image_gives_back_what_the_slices_said(tmp_path):
    volume = a_volume()
    dataset = enhanced(volume, sop_class=LegacyConvertedEnhancedCTImageStorage)
    (shared,) = dataset.SharedFunctionalGroupsSequence
    del shared.CTXRayDetailsSequence
    shared.UnassignedSharedConvertedAttributesSequence = [item(KVP=100.0)]
    for number, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence, 1):
        own = item(TableHeight=float(number))
        frame.UnassignedPerFrameConvertedAttributesSequence = [own]
    result, headers = read_series([save(dataset, tmp_path / "whole.dcm")])
    np.testing.assert_array_equal(result.hu, volume.hu)
    assert [header.TableHeight for header in headers] == [1, 2, 3, 4, 5, 6]
    assert {header.KVP for header in headers} == {100}


def test_the_parts_of_a_concatenation_are_one_volume(tmp_path):
    volume = a_volume()
    whole = enhanced(volume)
    files = []
    for part in range(2):
        half = Volume(volume.hu[3 * part :][:3], volume.affine.copy())
        half.affine[:3, 3] += 3 * part * volume.affine[:3, 0]
        dataset = enhanced(half)
        dataset.SeriesInstanceUID = whole.SeriesInstanceUID
        dataset.FrameOfReferenceUID = whole.FrameOfReferenceUID
        dataset.ConcatenationUID = "1.2.3"
        files.append(save(dataset, tmp_path / f"{1 - part}.dcm"))
    result, headers = read_series(sorted(files))
    np.testing.assert_array_equal(result.hu, volume.hu)
    np.testing.assert_allclose(result.affine, volume.affine, atol=1e-6)
    assert (
        len({h.ConversionSourceAttributesSequence[0].ReferencedSOPInstanceUID for h in headers})
        == 2
    )


def per_frame(group, **attributes):
    """Set attributes of a functional group in the last frame."""

    def change(dataset):
        frame = dataset.PerFrameFunctionalGroupsSequence[-1]
        for keyword, value in attributes.items():
            setattr(frame[group].value[0], keyword, value)

    return change


def without(*path):
    def change(dataset):
        for keyword in path[:-1]:
            dataset = dataset[keyword].value[0]
        del dataset[path[-1]]

    return change


REFUSED = {
    "two stacks": (
        per_frame("FrameContentSequence", StackID="2"),
        r"StackID \(0020,9056\) has 2 values",
    ),
    "two times": (
        per_frame("FrameContentSequence", TemporalPositionIndex=2),
        r"TemporalPositionIndex \(0020,9128\) has 2 values",
    ),
    "two at one position": (
        per_frame("PlanePositionSequence", ImagePositionPatient=[-12.5, 40.25, 700]),
        "one slice at each position",
    ),
    "a frame sideways": (
        per_frame("PlanePositionSequence", ImagePositionPatient=[-11.5, 40.25, 712.5]),
        "off the even stack",
    ),
    "an iodine map": (
        per_frame("PixelValueTransformationSequence", RescaleType="MGML"),
        r"RescaleType \(0028,1054\) is MGML",
    ),
    "a perfusion map": (
        lambda ds: setattr(
            ds.SharedFunctionalGroupsSequence[0],
            "RealWorldValueMappingSequence",
            [item(MeasurementUnitsCodeSequence=[item(CodeValue="ml/100ml/s")])],
        ),
        r"RealWorldValueMappingSequence \(0040,9096\): CodeValue \(0008,0100\) is ml/100ml/s",
    ),
    "a coloured image": (
        lambda ds: setattr(
            ds.SharedFunctionalGroupsSequence[0].CTImageFrameTypeSequence[0],
            "PixelPresentation",
            "COLOR",
        ),
        r"PixelPresentation \(0008,9205\) is COLOR",
    ),
    "a localizer": (
        lambda ds: setattr(
            ds.SharedFunctionalGroupsSequence[0].CTImageFrameTypeSequence[0],
            "FrameType",
            ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"],
        ),
        "a projection",
    ),
    "more frames than groups": (
        lambda ds: setattr(ds, "NumberOfFrames", 7),
        r"NumberOfFrames \(0028,0008\) is 7; expected 6",
    ),
    "absurd frames": (
        lambda ds: setattr(ds, "NumberOfFrames", 2**31 - 1),
        r"NumberOfFrames \(0028,0008\) is 2147483647; expected 6",
    ),
    "no frames": (without("NumberOfFrames"), "NumberOfFrames .* missing"),
    "no groups": (without("PerFrameFunctionalGroupsSequence"), r"\(5200,9230\) is missing"),
    "no orientation": (
        without("SharedFunctionalGroupsSequence", "PlaneOrientationSequence"),
        r"ImageOrientationPatient \(0020,0037\) is missing",
    ),
    "no rescale": (
        without("PerFrameFunctionalGroupsSequence", "PixelValueTransformationSequence"),
        r"RescaleSlope \(0028,1053\) is missing",
    ),
    "a frame too few": (
        lambda ds: setattr(ds, "PixelData", ds.PixelData[: -36 * 40 * 2]),
        r"PixelData \(7FE0,0010\) has 14400 bytes; expected 17280 for 6 frame",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_one_volume_is_refused_with_the_tag(tmp_path, case):
    change, message = REFUSED[case]
    dataset = enhanced(a_volume())
    change(dataset)
    path = save(dataset, tmp_path / "whole.dcm")
    with pytest.raises((GeometryError, IngestError), match=message) as refused:
        read_series([path])
    assert str(path) in str(refused.value)


def test_one_frame_alone_has_no_spacing_and_is_refused(tmp_path):
    path = save(enhanced(a_volume(shape=(1, 36, 40))), tmp_path / "one.dcm")
    with pytest.raises(GeometryError, match=r"one\.dcm: 1 slices; expected at least 2"):
        read_series([path])
