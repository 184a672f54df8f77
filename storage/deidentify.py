"""De-identification of headers: PS3.15's Basic Profile, and nothing that could hold other words."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as table_e1_1
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.tag import BaseTag
from pydicom.uid import UID

from storage.errors import IngestError
from storage.pseudonym import Pseudonyms

__all__ = ["deidentified", "state_deidentified"]

_REMOVED = {
    *table_e1_1.X_TAGS,
    *table_e1_1.D_TAGS,  # type 1 in modules that are removed as a whole
    *table_e1_1.X_D_TAGS,
    *table_e1_1.X_Z_TAGS,
    *table_e1_1.X_Z_D_TAGS,
}
_EMPTIED = {*table_e1_1.Z_TAGS, *table_e1_1.Z_D_TAGS}
_REMOVED_RANGES = [tag for tag in _REMOVED if len(tag) == 4]  # with masks: curves, overlays

_NUMBERS = frozenset(["AT", "DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"])
_STANDARD = re.compile(r"1\.2\.840\.10008(\.\d+)+")  # UIDs that DICOM itself defines


def _regions() -> frozenset[str]:
    """Body parts as BodyPartExamined writes them, from CID 4030 CT, MR and PET Anatomy Imaged."""
    return frozenset(re.sub("And(?=[A-Z])", "", name).upper() for name in codes.cid4030.dir())


# Code strings are words too: only these elements keep theirs, and only words of the standard.
_TERMS: dict[str, frozenset[str]] = {
    "BodyPartExamined": _regions(),
    "BurnedInAnnotation": frozenset(["YES", "NO"]),
    "Laterality": frozenset(["L", "R"]),
    "LossyImageCompression": frozenset(["00", "01"]),
    "LossyImageCompressionMethod": frozenset(
        ["ISO_10918_1", "ISO_14495_1", "ISO_15444_1", "ISO_13818_2", "ISO_14496_10"]
    ),
    "PatientPosition": frozenset(
        ["HFS", "HFP", "HFDR", "HFDL", "FFS", "FFP", "FFDR", "FFDL", "LFP", "LFS", "RFP", "RFS"]
    ),
}


def deidentified(headers: Sequence[Dataset], names: Pseudonyms) -> list[Dataset]:
    """The headers of a series as they may be given away; the given ones stay as they are.

    The actions of PS3.15 Table E.1-1, Basic Profile, at every depth of sequences: what it removes
    (X) or replaces by a dummy (D) is removed, what it empties (Z) emptied, UIDs (U) are replaced
    by keyed hashes, the same for the same UID. Patient's name and id become the pseudonym that an
    ingest under the same key gives. Beyond the profile all private elements go, and of what the
    table leaves whatever could hold words: only numbers, UIDs, anatomic regions by their codes and
    some elements with defined terms stay.

    Pixels are not searched for burnt-in text. Raises IngestError where a header says that there is
    some, for such images cannot be called de-identified.
    """
    for header in headers:
        if header.get("BurnedInAnnotation") == "YES":
            raise IngestError(
                "BurnedInAnnotation (0028,0301) is YES: text in the pixels may name the patient "
                "and would be carried over; expected NO or none, or keep the identity on purpose"
            )
    return [_header(header, names) for header in headers]


def state_deidentified(header: Dataset) -> None:
    """Set the attributes that say that, and how, a data set was de-identified (PS3.15 E.1.1)."""
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "113100", "DCM"
    code.CodeMeaning = "Basic Application Confidentiality Profile"
    header.PatientIdentityRemoved = "YES"
    header.DeidentificationMethod = "pmg: PS3.15 Basic Profile, numbers only, keyed pseudonyms"
    header.DeidentificationMethodCodeSequence = [code]
    header.LongitudinalTemporalInformationModified = "REMOVED"


def _header(header: Dataset, names: Pseudonyms) -> Dataset:
    kept = _without_identity(header, names)
    patient = str(header.get("PatientID") or "").strip()
    study = str(header.get("StudyInstanceUID") or "")
    pseudonym = names.of("patient", patient) if patient else names.of("patient", "study", study)
    kept.PatientID = kept.PatientName = pseudonym
    state_deidentified(kept)
    return kept


def _without_identity(dataset: Dataset, names: Pseudonyms) -> Dataset:
    kept = Dataset()
    for element in dataset:
        tag = (element.tag.group, element.tag.element)
        if element.tag.is_private or tag in _REMOVED or _in_removed_range(element.tag):
            continue
        if tag in _EMPTIED:
            kept.add(DataElement(element.tag, element.VR, None))
        elif element.VR == "SQ":
            items = [_item(item, names) for item in element.value]
            if filled := [item for item in items if len(item)]:
                kept.add(DataElement(element.tag, "SQ", filled))
        elif element.VR == "UI":
            kept.add(_mapped(element, lambda uid: _uid(str(uid), names)))
        elif _is_wordless(element):
            kept.add(copy.deepcopy(element))
    return kept


def _item(item: Dataset, names: Pseudonyms) -> Dataset:
    """A sequence's item; of a coded concept (PS3.3 8.8) an anatomic region in the standard's words,
    and nothing of any other, since codes may be a hospital's own."""
    if not any(keyword in item for keyword in ("CodeValue", "LongCodeValue", "URNCodeValue")):
        return _without_identity(item, names)
    stated = Code(str(item.get("CodeValue")), str(item.get("CodingSchemeDesignator")), "")
    kept = Dataset()
    for known in codes.cid4030.concepts.values():
        if known == stated:  # codes of the older SNOMED RT too
            kept.CodeValue, kept.CodingSchemeDesignator = known.value, known.scheme_designator
            kept.CodeMeaning = known.meaning
    return kept


def _in_removed_range(tag: BaseTag) -> bool:
    return any(
        tag.group & mask_group == group & mask_group
        and tag.element & mask_element == element & mask_element
        for group, element, mask_group, mask_element in _REMOVED_RANGES
    )


def _uid(uid: str, names: Pseudonyms) -> UID:
    return UID(uid if _STANDARD.fullmatch(uid) else names.uid(uid))


def _is_wordless(element: DataElement) -> bool:
    """Whether it holds numbers, or words that the standard defines for it."""
    if element.VR in _NUMBERS:
        return all(_is_number(value) for value in _values(element))
    terms = _TERMS.get(element.keyword, frozenset())
    return all(str(value) in terms for value in _values(element))


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _values(element: DataElement) -> list[Any]:
    if element.is_empty:
        return []
    return list(element.value) if isinstance(element.value, MultiValue) else [element.value]


def _mapped(element: DataElement, function: Callable[[Any], Any]) -> DataElement:
    values = [function(value) for value in _values(element)]
    return DataElement(element.tag, element.VR, values[0] if len(values) == 1 else values)
