"""Enhanced CT files for tests, written by pydicom from PS3.3 A.38."""

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid


def item(**attributes):
    made = Dataset()
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made


def enhanced(volume, *, order=None, intercepts=None, sop_class=EnhancedCTImageStorage):
    """A data set whose frame n is slice order[n], stored unsigned with the given intercepts."""
    count, rows, columns = volume.shape
    order = list(range(count)) if order is None else order
    intercepts = [-1024.0] * count if intercepts is None else intercepts
    slices, column, row = volume.affine[:3, :3].T
    spacing_z, spacing_y, spacing_x = volume.spacing_mm

    dataset = item(
        SpecificCharacterSet="ISO_IR 192",
        SOPClassUID=sop_class,
        SOPInstanceUID=generate_uid(),
        StudyInstanceUID=generate_uid(),
        SeriesInstanceUID=generate_uid(),
        FrameOfReferenceUID=generate_uid(),
        Modality="CT",
        ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
        PatientName="Müller^Ölga",
        PatientID="E1",
        PatientPosition="HFS",
        SeriesNumber=7,
        Manufacturer="Scanner Works",
        NumberOfFrames=count,
        Rows=rows,
        Columns=columns,
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
        BitsAllocated=16,
        BitsStored=16,
        HighBit=15,
        PixelRepresentation=0,
    )
    directions = [*(row / spacing_x), *(column / spacing_y)]
    dataset.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[
                item(PixelSpacing=[spacing_y, spacing_x], SliceThickness=spacing_z)
            ],
            PlaneOrientationSequence=[
                item(ImageOrientationPatient=[round(float(one), 12) for one in directions])
            ],
            CTImageFrameTypeSequence=[item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])],
            CTXRayDetailsSequence=[item(KVP=120.0)],
        )
    ]
    groups, frames = [], []
    for number, index in enumerate(order, 1):
        position = volume.affine[:3, 3] + index * slices
        intercept = intercepts[index]
        groups.append(
            item(
                FrameContentSequence=[
                    item(
                        FrameAcquisitionNumber=3,
                        StackID="1",
                        InStackPositionNumber=number,
                        DimensionIndexValues=[1, number],
                    )
                ],
                PlanePositionSequence=[
                    item(ImagePositionPatient=[round(float(one), 8) for one in position])
                ],
                PixelValueTransformationSequence=[
                    item(RescaleSlope=1.0, RescaleIntercept=intercept, RescaleType="HU")
                ],
            )
        )
        frames.append((volume.hu[index] - intercept).astype(np.uint16))
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.PixelData = np.stack(frames).tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def save(dataset, path):
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path
