"""Enhanced multi-frame CT (PS3.3 A.38): its frames' headers as if each were a slice of its own."""

from __future__ import annotations

from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
)

from storage.dicom_file import Elements
from storage.dicom_header import named, raw_uid, refuse, value_of
from storage.errors import IngestError

__all__ = ["MULTI_FRAME", "frame_headers"]

MULTI_FRAME = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)

# Functional groups whose attributes mean the same in a CT Image (PS3.3 C.7.6.16.2, C.8.15.3); the
# last two hold what a conversion from single slices found no other place for (C.7.6.16.2.26).
_GROUPS = """
    PixelMeasuresSequence PlanePositionSequence PlaneOrientationSequence
    PixelValueTransformationSequence FrameVOILUTSequence FrameContentSequence FrameAnatomySequence
    CTImageFrameTypeSequence CTAcquisitionTypeSequence CTAcquisitionDetailsSequence
    CTTableDynamicsSequence CTGeometrySequence CTReconstructionSequence CTExposureSequence
    CTXRayDetailsSequence CTPositionSequence
    UnassignedSharedConvertedAttributesSequence UnassignedPerFrameConvertedAttributesSequence
"""

# Functional groups that a CT Image has as they are.
_WHOLE_GROUPS = ("RealWorldValueMappingSequence",)

# What belongs to the multi-frame object as a whole, or is nothing without it.
_OF_THE_OBJECT = """
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence NumberOfFrames SOPInstanceUID
    DimensionOrganizationSequence DimensionIndexSequence DimensionOrganizationType
    ConcatenationUID InConcatenationNumber InConcatenationTotalNumber
    SOPInstanceUIDOfConcatenationSource ConcatenationFrameOffsetNumber
"""

# Of which a file that is one volume has one.
_ONE_VOLUME = ("StackID", "TemporalPositionIndex")

_SOP_CLASS = Tag("SOPClassUID")
_ACQUISITION = "FrameAcquisitionNumber"


def frame_headers(path: Path, header: Dataset) -> list[Dataset]:
    """The header of each frame, without pixels; for a single-frame image its header itself.

    A frame's header has the attributes of its functional groups, its own over the shared ones, at
    their place in a CT Image (PS3.3 A.3). It has no SOPInstanceUID, and names the instance and
    frame number that it comes from in ConversionSourceAttributesSequence (C.12.1).

    Raises IngestError naming tag and value where the functional groups are not those of the
    stated number of frames, or of several stacks or times.
    """
    if raw_uid(header, _SOP_CLASS) not in MULTI_FRAME:
        return [header]
    count = value_of(path, header, "NumberOfFrames")
    own = _items(path, header, "PerFrameFunctionalGroupsSequence")
    if not own:
        keyword = "PerFrameFunctionalGroupsSequence"
        refuse(path, header, keyword, "one item for each frame of the enhanced image")
    if count != len(own):
        refuse(path, header, "NumberOfFrames", f"{len(own)}, one for each item of per-frame groups")
    shared = _items(path, header, "SharedFunctionalGroupsSequence")
    whole = _of_every_frame(path, header, shared[:1])
    frames = [_frame(path, header, whole, item, number) for number, item in enumerate(own, 1)]
    for keyword in _ONE_VOLUME:
        values = {value_of(path, frame, keyword) for frame in frames}
        if len(values) > 1:
            some = ", ".join(sorted(map(str, values))[:5])
            raise IngestError(
                f"{path}: {named(keyword)} has {len(values)} values in its frames ({some}); "
                "expected one volume in a file"
            )
    return frames


def _of_every_frame(path: Path, header: Dataset, shared: list[Dataset]) -> Elements:
    dropped = {Tag(keyword) for keyword in _OF_THE_OBJECT.split()}
    elements = {tag: one for tag, one in header.items() if tag not in dropped}
    for item in shared:
        elements |= _attributes(path, item)
    return elements


def _frame(path: Path, header: Dataset, whole: Elements, item: Dataset, number: int) -> Dataset:
    frame = Dataset({**whole, **_attributes(path, item)})
    frame.set_original_encoding(*header.original_encoding)
    frame.SOPClassUID = CTImageStorage
    for keyword, source in (("ImageType", "FrameType"), ("AcquisitionNumber", _ACQUISITION)):
        value = value_of(path, frame, source)
        if value is not None:
            setattr(frame, keyword, value)
    origin = Dataset()
    origin.ReferencedSOPClassUID = header.SOPClassUID
    origin.ReferencedSOPInstanceUID = value_of(path, header, "SOPInstanceUID")
    origin.ReferencedFrameNumber = number
    frame.ConversionSourceAttributesSequence = [origin]
    return frame


def _attributes(path: Path, groups: Dataset) -> Elements:
    """What the functional groups of a frame, or of all frames, say."""
    found: Elements = {}
    for keyword in _GROUPS.split():
        for item in _items(path, groups, keyword)[:1]:
            found |= dict(item.items())
    for tag in map(Tag, _WHOLE_GROUPS):
        if tag in groups:
            found[tag] = groups.get_item(tag)
    return found


def _items(path: Path, dataset: Dataset, keyword: str) -> list[Dataset]:
    value = value_of(path, dataset, keyword)
    return list(value) if isinstance(value, Sequence) else []
