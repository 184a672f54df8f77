"""DICOM out: a volume as a CT series, and the headers of a series derived from another one."""

from __future__ import annotations

import copy
import os
import shutil
import uuid
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat

from .grid import require_orthogonal
from .volume import Volume

__all__ = ["derived_headers", "write_series"]

# Groups and keywords of what describes the pixels that a header came with, or signs them.
_STALE_GROUPS = (0x0002, 0x5000, 0x6000, 0x7FE0, 0xFFFA, 0xFFFC)
_STALE = """
    IconImageSequence LargestImagePixelValue LargestPixelValueInSeries MACParametersSequence
    ModalityLUTSequence NumberOfFrames PixelAspectRatio PixelPaddingRangeLimit PixelPaddingValue
    PlanarConfiguration SmallestImagePixelValue SmallestPixelValueInSeries VOILUTSequence
"""

# Type 2 and 2C attributes of the CT image's modules (PS3.3 A.3.3): present, though empty.
_EMPTY_WHERE_UNKNOWN = """
    PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber
    ReferringPhysicianName SeriesNumber PatientPosition Manufacturer PositionReferenceIndicator
    AcquisitionNumber KVP
"""

# What stays true of a derived series. Everything else of the source goes: how its pixels were
# acquired, reconstructed, windowed and overlaid, its contrast agent, its private attributes.
_TRUE_OF_DERIVED = """
    SpecificCharacterSet TimezoneOffsetFromUTC PatientName PatientID IssuerOfPatientID
    PatientBirthDate PatientSex PatientAge PatientSize PatientWeight PatientSpeciesDescription
    ResponsiblePerson PatientIdentityRemoved DeidentificationMethod
    DeidentificationMethodCodeSequence LongitudinalTemporalInformationModified

    StudyInstanceUID StudyDate StudyTime StudyID StudyDescription AccessionNumber
    ReferringPhysicianName InstitutionName

    FrameOfReferenceUID PositionReferenceIndicator PatientPosition BodyPartExamined
    AnatomicRegionSequence Laterality SliceThickness

    AcquisitionDate AcquisitionTime AcquisitionDateTime AcquisitionNumber KVP

    LossyImageCompression LossyImageCompressionRatio LossyImageCompressionMethod
"""

_DEVICE = """
    Manufacturer InstitutionName StationName ManufacturerModelName DeviceSerialNumber
    SoftwareVersions
"""

_DERIVATION = (
    "Synthetic image: HU predicted by a generative model from the source series. Not for "
    "diagnosis. No contrast agent was given for this image; contrast, exposure and "
    "reconstruction attributes of the source do not apply and were removed."
)


def write_series(
    volume: Volume,
    folder: Path,
    header: Dataset | Sequence[Dataset],
    *,
    slope: float = 1.0,
    unit: str = "HU",
) -> list[Path]:
    """Write the volume as CT Image Storage files, one per index of axis 0, into a new folder.

    `header` states patient, study, series, frame of reference and equipment: one dataset for all
    slices or one per slice. What follows from the volume is set here, whatever the header says:
    geometry (PS3.3 C.7.6.2), pixels (C.7.6.3, C.8.2.1), instance numbers. SOP instance UIDs are
    kept from a header per slice and new otherwise; UIDs of study, series and frame of reference
    are new if missing. Axis 0 may point anywhere: it is the slices' normal.

    HU are stored as signed 16 bit with slope 1 and intercept 0, so that every int16 is exact;
    float32 is rounded and clipped to that. Images of other values state a finer `slope` and their
    `unit`, a Rescale Type of C.11.1.1.2 such as PCT.

    The folder appears under its name when all its files are written. Returns them in slice order.
    Raises GeometryError for a sheared or non-finite affine, ValueError for non-finite HU or a
    number of headers that is not the number of slices, FileExistsError if the folder has files.
    """
    require_orthogonal(volume.affine, folder)
    headers = _per_slice(header, len(volume.hu))
    pixels = _stored(volume.hu, folder, slope)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder; choose a new one")

    series_wide = _series_wide(volume)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir()
    try:
        names = [f"CT_{number:04d}.dcm" for number in range(1, len(pixels) + 1)]
        for index, (name, own) in enumerate(zip(names, headers, strict=True)):
            instance = _instance(own, series_wide, volume.affine, index, pixels[index])
            instance.RescaleSlope, instance.RescaleType = _decimal(slope), unit
            instance.save_as(partial / name, enforce_file_format=True)
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return [folder / name for name in names]


def derived_headers(
    source_headers: Sequence[Dataset],
    *,
    series_description: str,
    number_offset: int = 1000,
    derivation: str = _DERIVATION,
    window: tuple[int, int] = (40, 400),
) -> list[Dataset]:
    """Headers for a synthetic series computed from another series, slice by slice.

    Per PS3.3 C.7.6.1.1.2 and C.12.1: a DERIVED\\SECONDARY image with new series and instance UIDs
    in the source's study and frame of reference, which references the slice it comes from, says
    that it is synthetic and not for diagnosis, and names this program beside the scanner. Of the
    source only what stays true is kept (patient, study, anatomy, time and kVp of the acquisition).

    source_headers: one per slice, as `read_series` gives them, or what `deidentified` left of them:
    where that says that times were removed, none is written either. `number_offset` is added to the
    source's series number. derivation: Derivation Description (0008,2111), what was computed and
    that it is not for diagnosis. window: centre and width to show it with.

    Raises ValueError if there are no headers or the description is longer than
    the 64 characters of its value representation.
    """
    if not source_headers:
        raise ValueError("derived_headers: no source headers; expected one per slice")
    if len(series_description) > 64:
        raise ValueError(
            f"series description has {len(series_description)} characters; (0008,103E) holds 64"
        )
    now = datetime.now()
    series_uid = generate_uid(prefix=None)

    headers = []
    for source in source_headers:
        derived = Dataset()
        for keyword in _TRUE_OF_DERIVED.split():
            if keyword in source:
                derived[keyword] = copy.deepcopy(source[keyword])
        derived.SOPInstanceUID = generate_uid(prefix=None)
        derived.SeriesInstanceUID = series_uid
        derived.SeriesNumber = int(source.get("SeriesNumber") or 0) + number_offset
        derived.SeriesDescription = series_description
        timed = source.get("LongitudinalTemporalInformationModified") != "REMOVED"
        if timed:
            date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
            derived.SeriesDate = derived.ContentDate = derived.InstanceCreationDate = date
            derived.SeriesTime = derived.ContentTime = derived.InstanceCreationTime = time
        derived.Manufacturer = derived.ManufacturerModelName = "pmg"
        derived.SoftwareVersions = version("pmg")

        derived.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
        derived.SyntheticData = "YES"  # (0008,001C), new in 2023: older validators do not know it
        derived.DerivationDescription = derivation
        # Text burnt into the source's pixels is carried through by the translation. Where the
        # source does not say, nobody knows.
        if source.get("BurnedInAnnotation") in ("YES", "NO"):
            derived.BurnedInAnnotation = source.BurnedInAnnotation
        derived.WindowCenter, derived.WindowWidth = window
        if "SOPInstanceUID" in source or "ConversionSourceAttributesSequence" in source:
            derived.SourceImageSequence = [_reference(source)]
        derived.ContributingEquipmentSequence = _equipment(source, now if timed else None)
        headers.append(derived)
    return headers


def _reference(source: Dataset) -> Dataset:
    """Item of the Source Image Sequence (PS3.3 C.7.6.1.1.4)."""
    if "SOPInstanceUID" in source:
        item = Dataset()
        item.ReferencedSOPClassUID = source.get("SOPClassUID", CTImageStorage)
        item.ReferencedSOPInstanceUID = source.SOPInstanceUID
    else:  # a frame of a multi-frame image
        item = copy.deepcopy(source.ConversionSourceAttributesSequence[0])
    item.SpatialLocationsPreserved = "YES"
    item.PurposeOfReferenceCodeSequence = [
        _code("121322", "Source image for image processing operation")
    ]
    return item


def _equipment(source: Dataset, now: datetime | None) -> list[Dataset]:
    """Contributing Equipment Sequence (PS3.3 C.12.1): what the source names, the scanner, pmg."""
    scanner = Dataset()
    for keyword in _DEVICE.split():
        if keyword in source:
            scanner[keyword] = copy.deepcopy(source[keyword])
    scanner.Manufacturer = source.get("Manufacturer") or "unknown"
    scanner.PurposeOfReferenceCodeSequence = [_code("109101", "Acquisition Equipment")]

    program = Dataset()
    program.Manufacturer = program.ManufacturerModelName = "pmg"
    program.SoftwareVersions = version("pmg")
    if now is not None:
        program.ContributionDateTime = now.strftime("%Y%m%d%H%M%S")
    program.ContributionDescription = "Synthetic image by unpaired translation"
    program.PurposeOfReferenceCodeSequence = [_code("109102", "Processing Equipment")]
    earlier = list(source.get("ContributingEquipmentSequence") or [])
    named = [copy.deepcopy(one) for one in earlier if one.get("Manufacturer")]  # type 1
    return [*named, scanner, program]


def _code(value: str, meaning: str) -> Dataset:
    """A coded concept of DICOM's own terminology (PS3.16 annex D)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


def _per_slice(header: Dataset | Sequence[Dataset], slices: int) -> list[Dataset]:
    """One header per slice, without pixel attributes; a shared one loses its instance UID."""
    if isinstance(header, Dataset):
        shared = _without_pixels(header)
        shared.pop("SOPInstanceUID", None)
        return [shared] * slices
    if len(header) != slices:
        raise ValueError(f"{len(header)} headers for {slices} slices; expected one each, or one")
    return [_without_pixels(one) for one in header]


def _without_pixels(header: Dataset) -> Dataset:
    """The header without what describes other pixels, and without empty UIDs."""
    stale = _STALE.split()
    kept = Dataset()
    for element in header:
        group = element.tag.group
        group = group & 0xFF00 if group >> 8 in (0x50, 0x60) else group
        no_uid = element.VR == "UI" and not element.value
        if group not in _STALE_GROUPS and element.keyword not in stale and not no_uid:
            kept.add(element)
    return kept


def _series_wide(volume: Volume) -> Dataset:
    """What all slices share and a header may state better."""
    shared = Dataset()
    for keyword in _EMPTY_WHERE_UNKNOWN.split():
        setattr(shared, keyword, None)
    shared.SpecificCharacterSet = "ISO_IR 192"
    shared.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    shared.StudyInstanceUID = generate_uid(prefix=None)
    shared.SeriesInstanceUID = generate_uid(prefix=None)
    shared.FrameOfReferenceUID = generate_uid(prefix=None)
    shared.SliceThickness = _decimal(volume.spacing_mm[0])
    return shared


def _instance(
    header: Dataset,
    series_wide: Dataset,
    affine: NDArray[np.float64],
    index: int,
    pixels: NDArray[np.int16],
) -> Dataset:
    """The complete data set of slice `index`: the header, and over it what the volume says."""
    own = Dataset()
    own.Modality = "CT"
    own.SOPClassUID = CTImageStorage
    own.InstanceNumber = index + 1

    slices, column, row = affine[:3, :3].T  # a row runs along the last axis of the array
    spacing_z, spacing_y, spacing_x = np.linalg.norm(affine[:3, :3], axis=0)
    row, column = row / spacing_x, column / spacing_y
    position = affine[:3, 3] + index * slices
    own.PixelSpacing = [_decimal(spacing_y), _decimal(spacing_x)]
    own.ImageOrientationPatient = [_decimal(value) for value in (*row, *column)]
    own.ImagePositionPatient = [_decimal(value) for value in position]
    own.SliceLocation = _decimal(position @ np.cross(row, column))
    own.SpacingBetweenSlices = _decimal(spacing_z)

    own.SamplesPerPixel = 1
    own.PhotometricInterpretation = "MONOCHROME2"
    own.Rows, own.Columns = pixels.shape
    own.BitsAllocated, own.BitsStored, own.HighBit = 16, 16, 15
    own.PixelRepresentation = 1
    own.RescaleIntercept = 0
    own.PixelData = pixels.astype("<i2").tobytes()

    instance = Dataset()
    for part in (series_wide, header, own):
        instance.update(part)
    if "BodyPartExamined" not in instance and "Laterality" not in instance:
        instance.Laterality = None  # type 2C: it may be a paired body part, nobody knows
    if "SOPInstanceUID" not in instance:
        instance.SOPInstanceUID = generate_uid(prefix=None)
    instance.file_meta = FileMetaDataset()
    instance.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return instance


def _stored(hu: NDArray[np.generic], folder: Path, slope: float) -> NDArray[np.int16]:
    """HU, in steps of the slope, rounded and clipped to int16."""
    if not np.isfinite(hu).all():
        raise ValueError(f"{folder}: {np.sum(~np.isfinite(hu))} voxels are not finite; expected HU")
    limits = np.iinfo(np.int16)
    steps = hu if slope == 1 else hu.astype(np.float64) / slope
    stored: NDArray[np.int16] = np.clip(np.rint(steps), limits.min, limits.max).astype(np.int16)
    return stored


def _decimal(value: float) -> DSfloat:
    """A decimal string of at most 16 characters: at least ten significant digits here."""
    return DSfloat(float(value), auto_format=True)
