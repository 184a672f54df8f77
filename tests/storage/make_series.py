"""CT series for tests, and changes to their files."""

import gdcm
import imagecodecs
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGExtended12Bit, generate_uid

from storage.dicom_write import write_series
from storage.volume import Volume

SLICES, ROWS, COLUMNS = 6, 36, 40


def a_volume(seed=3, low=-1000, high=3000, shape=(SLICES, ROWS, COLUMNS)):
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, ::-1] * [3.0, 0.75, 0.5]
    affine[:3, 3] = (-30, -20, 100)
    hu = np.random.default_rng(seed).integers(low, high, shape).astype(np.int16)
    return Volume(hu, affine)


def a_series(volume, folder):
    header = Dataset()
    header.PatientName, header.PatientID = "A^B", "1"
    header.SeriesInstanceUID, header.FrameOfReferenceUID = generate_uid(), generate_uid()
    header.BodyPartExamined = "ABDOMEN"
    return write_series(volume, folder, header)


def edit(file, change):
    """Read the file, apply `change` to its dataset, write it as it then says."""
    dataset = pydicom.dcmread(file)
    change(dataset)
    syntax = dataset.file_meta.TransferSyntaxUID
    pydicom.dcmwrite(
        file,
        dataset,
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
        force_encoding=True,
    )


def setting(**attributes):
    def change(dataset):
        for keyword, value in attributes.items():
            if value is None:
                del dataset[keyword]
            else:
                setattr(dataset, keyword, value)

    return change


def stored_as(dtype, slope=1, intercept=0, bits_stored=16):
    """Store the slice's HU as another type with another rescale."""

    def change(dataset):
        pixels = (dataset.pixel_array - float(intercept)) / slope
        dtype_ = np.dtype(dtype)
        dataset.PixelData = np.rint(pixels).astype(dtype_).tobytes()
        dataset.PixelRepresentation = int(np.issubdtype(dtype_, np.signedinteger))
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        dataset.BitsAllocated = 8 * dtype_.itemsize
        dataset.BitsStored, dataset.HighBit = bits_stored, bits_stored - 1

    return change


def compress_by_gdcm(file, syntax):
    """Compress the file in place; `syntax` is the name of one of GDCM's TransferSyntax."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(file))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(file))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def with_frames(frames, syntax, **keywords):
    """A change that puts encoded frames into a file."""

    def change(dataset):
        dataset.PixelData = encapsulate(frames, **keywords)
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax

    return change


def as_jpeg_of_twelve_bits(dataset):
    """JPEG extended, with loss: GDCM's own encoder writes frames of 16 bits, which are none."""
    frame = imagecodecs.jpeg8_encode(dataset.pixel_array, level=95, bitspersample=12)
    with_frames([frame], JPEGExtended12Bit)(dataset)
