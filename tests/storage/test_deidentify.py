"""De-identified headers, against the standard's list of actions and every text that there is."""

from __future__ import annotations

import copy
import io

import numpy as np
import pydicom
import pytest
from make_enhanced import enhanced
from pydicom.datadict import DicomDictionary, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from storage.deidentify import deidentified, state_deidentified
from storage.dicom_read import read_series
from storage.dicom_write import derived_headers, write_series
from storage.errors import IngestError
from storage.pseudonym import KEY_BYTES, Pseudonyms
from storage.volume import Volume

NAMES = Pseudonyms(bytes(range(KEY_BYTES)))

# PS3.15 Table E.1-1, column Basic Prof., for what CT images carry: written down from the standard's
# text, not from the library whose table the program uses.
BASIC_PROFILE = {
    "X": """
        AcquisitionComments AcquisitionProtocolDescription AdditionalPatientHistory AdmissionID
        AdmittingDate AdmittingDiagnosesDescription Allergies BranchOfService
        ContributionDescription CountryOfResidence CurrentPatientLocation DerivationDescription
        EthnicGroup GantryID ImageComments InstitutionAddress InstitutionalDepartmentName
        IssuerOfPatientID MedicalAlerts MedicalRecordLocator MilitaryRank
        NameOfPhysiciansReadingStudy Occupation OtherPatientIDs OtherPatientNames PatientAddress
        PatientAge PatientBirthName PatientBirthTime PatientComments PatientMotherBirthName
        PatientReligiousPreference PatientSize PatientTelephoneNumbers PatientWeight
        PerformedProcedureStepDescription PerformedProcedureStepID PerformedProcedureStepStartDate
        PerformingPhysicianName PhysiciansOfRecord PregnancyStatus RequestingPhysician
        RequestingService ResponsiblePerson ScheduledProcedureStepDescription SeriesDescription
        SmokingStatus SpecialNeeds StudyComments StudyDescription TextComments
        TimezoneOffsetFromUTC
    """,
    "X/Z": "AcquisitionDate AcquisitionTime RequestedProcedureDescription",
    "X/D": """
        AcquisitionDeviceProcessingDescription DetectorID InstanceCreationDate InstanceCreationTime
        ProtocolName SeriesDate SeriesTime
    """,
    "X/Z/D": "AcquisitionDateTime DeviceSerialNumber InstitutionName OperatorsName StationName",
    "D": "ClinicalTrialProtocolID ClinicalTrialSponsorName ClinicalTrialSubjectID",
    "Z": """
        AccessionNumber ClinicalTrialSiteID ClinicalTrialSiteName PatientBirthDate PatientSex
        ReferringPhysicianName StudyDate StudyID StudyTime
    """,
    "Z/D": "ContentDate ContentTime ContrastBolusAgent",
    "U": """
        DeviceUID FrameOfReferenceUID InstanceCreatorUID IrradiationEventUID SOPInstanceUID
        SeriesInstanceUID StorageMediaFileSetUID StudyInstanceUID SynchronizationFrameOfReferenceUID
    """,
}
ACTIONS = {k: action for action, keywords in BASIC_PROFILE.items() for k in keywords.split()}

# Text that each value representation may hold, or at least that files hold in it.
TEXTS = {
    **dict.fromkeys(["AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"], "ZQXKWORD"),
    **dict.fromkeys(["OB", "OW", "UN"], b"ZQXKBYTES "),
    "AS": "087Y",
    "DA": "19310704",
    "DT": "19310704123456.654321",
    "TM": "123456.654321",
    "UI": "1.2.752.99.31.7.4",
}


def value_of(keyword: str) -> object:
    vr = pydicom.datadict.dictionary_VR(keyword)
    return {"DS": "77.5", "IS": "77", "US": 77}.get(vr, TEXTS.get(vr))


@pytest.mark.parametrize("keyword", ACTIONS)
def test_each_element_gets_the_action_of_the_standards_table(keyword: str) -> None:
    header, item = Dataset(), Dataset()
    for dataset in (header, item):
        setattr(dataset, keyword, value_of(keyword))
    header.ReferencedImageSequence = [item]  # X/Z/U*
    (kept,) = deidentified([header], NAMES)
    nested = kept.get("ReferencedImageSequence", [Dataset()])[0]
    for result in (kept, nested):
        if ACTIONS[keyword] == "U":
            assert result[keyword].value == NAMES.uid(TEXTS["UI"])
        elif ACTIONS[keyword].startswith("Z"):
            assert result[keyword].is_empty
        else:
            assert keyword not in result


def test_the_patient_becomes_the_pseudonym_that_the_store_has() -> None:
    header = Dataset()
    header.PatientID, header.PatientName = " 0815 ", "DOE^JANE"
    (kept,) = deidentified([header], NAMES)
    assert kept.PatientID == kept.PatientName == NAMES.of("patient", "0815")
    header.PatientID, header.StudyInstanceUID = None, "1.2.752.5"
    (kept,) = deidentified([header], NAMES)
    assert kept.PatientID == NAMES.of("patient", "study", "1.2.752.5")


def test_what_is_kept_of_a_real_header_is_what_describes_the_image() -> None:
    region, own = Dataset(), Dataset()
    region.CodeValue, region.CodingSchemeDesignator = "T-62000", "SRT"
    region.CodeMeaning = "liver of ZQXK"
    own.CodeValue, own.CodingSchemeDesignator, own.CodeMeaning = "17", "99KH", "ZQXK"
    header = Dataset()
    header.AnatomicRegionSequence = [region, own]
    header.BodyPartExamined, header.PatientPosition = "CHEST", "HFS"
    header.KVP, header.SliceThickness, header.AcquisitionNumber = "120", "2.5", "3"
    header.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    (kept,) = deidentified([header], NAMES)
    assert (kept.KVP, kept.SliceThickness, kept.AcquisitionNumber) == (120, 2.5, 3)
    assert (kept.BodyPartExamined, kept.PatientPosition) == ("CHEST", "HFS")
    assert kept.SOPClassUID == header.SOPClassUID
    (liver,) = kept.AnatomicRegionSequence
    assert (liver.CodeValue, liver.CodingSchemeDesignator) == ("10200004", "SCT")
    assert liver.CodeMeaning == "Liver"


@pytest.mark.parametrize(
    "part", ["CHEST", "ABDOMEN", "ABDOMENPELVIS", "PELVIS", "HEAD", "NECK", "HEART", "LIVER"]
)
def test_body_parts_in_the_standards_words_are_kept(part: str) -> None:
    header = Dataset()
    header.BodyPartExamined = part
    assert deidentified([header], NAMES)[0].BodyPartExamined == part


def test_it_says_what_was_done_in_the_standards_codes() -> None:
    (kept,) = deidentified([Dataset()], NAMES)
    assert kept.PatientIdentityRemoved == "YES"
    assert kept.LongitudinalTemporalInformationModified == "REMOVED"
    assert 0 < len(kept.DeidentificationMethod) <= 64
    (code,) = kept.DeidentificationMethodCodeSequence
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("113100", "DCM")


def planted(depth: int) -> Dataset:
    """Every element of the dictionary that can hold text, with some; so in items, `depth` deep."""
    dataset = Dataset()
    inner = planted(depth - 1) if depth else None
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        group = tag >> 16
        if not keyword or group in (0x0000, 0x0002) or keyword == "SpecificCharacterSet":
            continue
        first_vr = vr.split(" or ")[0]
        if first_vr in TEXTS:
            dataset.add_new(tag, first_vr, TEXTS[first_vr])
    for keyword in ("ReferencedImageSequence", "PatientOrientationCodeSequence"):
        if inner is not None:
            setattr(dataset, keyword, [copy.deepcopy(inner)])
    block = dataset.private_block(0x0009, "ZQXKCREATOR", create=True)
    block.add_new(1, "LO", "ZQXKPRIVATE")
    block.add_new(2, "UN", b"ZQXKPRIVATE ")
    dataset.BurnedInAnnotation = "NO"
    return dataset


def test_no_text_of_any_element_of_the_dictionary_stays_at_any_depth() -> None:
    header = planted(depth=3)
    assert len(header) > 1500
    before = copy.deepcopy(header)
    (kept,) = deidentified([header], NAMES)
    assert header == before
    file = io.BytesIO()
    kept.file_meta = pydicom.dataset.FileMetaDataset()
    kept.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    pydicom.dcmwrite(file, kept)
    for text in ("ZQXK", "087Y", "19310704", "123456", "654321", TEXTS["UI"]):
        assert text.encode() not in file.getvalue(), text
    assert not any(element.tag.is_private for element in kept.iterall())


def test_words_in_numbers_and_in_codes_of_few_letters_do_not_pass() -> None:
    header = Dataset()
    for keyword, value in {
        "BodyPartExamined": "ZQXK",
        "PatientPosition": "ZQXK",
        "LossyImageCompressionMethod": ["ISO_10918_1", "ZQXK"],
        "Laterality": "ZQXK",
    }.items():
        setattr(header, keyword, value)
    header.add_new(tag_for_keyword("PixelSpacing"), "DS", ["1.5", "1.5"])
    header["PixelSpacing"]._value = ["1.5", "ZQXK"]
    (kept,) = deidentified([header], NAMES)
    assert "ZQXK" not in str(kept)
    assert "PixelSpacing" not in kept


def test_uids_are_the_same_for_the_same_and_valid_and_nothing_without_the_key() -> None:
    study = generate_uid()
    for uid in (study, "1.2.752.1", "2.25.1"):
        assert pydicom.uid.UID(NAMES.uid(uid)).is_valid
        assert NAMES.uid(uid) == NAMES.uid(uid) != Pseudonyms(bytes(32)).uid(uid)
    headers = [Dataset(), Dataset()]
    for header in headers:
        header.StudyInstanceUID = study
        header.IrradiationEventUID = [study, "1.2.752.1"]
    first, second = deidentified(headers, NAMES)
    assert first.StudyInstanceUID == second.StudyInstanceUID == first.IrradiationEventUID[0]
    assert list(first.IrradiationEventUID) == [NAMES.uid(study), NAMES.uid("1.2.752.1")]


def test_images_that_say_they_show_text_are_refused() -> None:
    header = Dataset()
    header.BurnedInAnnotation = "YES"
    with pytest.raises(IngestError, match=r"BurnedInAnnotation \(0028,0301\) is YES"):
        deidentified([Dataset(), header], NAMES)


def test_words_in_the_functional_groups_of_enhanced_ct_are_not_written(tmp_path) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, ::-1] * (3.0, 1.0, 1.0)
    dataset = enhanced(Volume(np.zeros((3, 8, 8), np.int16), affine))
    dataset.Manufacturer = dataset.PatientName = "ZQXK"
    for group in dataset.PerFrameFunctionalGroupsSequence:
        group.FrameContentSequence[0].FrameComments = "ZQXK"
        group.FrameContentSequence[0].FrameAcquisitionDateTime = "19310704"
        anatomy = Dataset()
        anatomy.FrameLaterality = "ZQXK"
        group.FrameAnatomySequence = [anatomy]
        group.add_new(0x00290010, "LO", "ZQXK")
    pydicom.dcmwrite(tmp_path / "enhanced.dcm", dataset, enforce_file_format=True)
    volume, headers = read_series([tmp_path / "enhanced.dcm"])
    derived = derived_headers(deidentified(headers, NAMES), series_description="x")
    files = write_series(volume, tmp_path / "out", derived)
    assert len(files) == 3
    for file in files:
        data = file.read_bytes()
        assert b"ZQXK" not in data
        assert b"19310704" not in data
        assert NAMES.of("patient", "E1").encode() in data


def test_stating_it_changes_nothing_else() -> None:
    header = Dataset()
    header.KVP = 100
    state_deidentified(header)
    assert header.KVP == 100
    assert len(header) == 5
