"""Unique strings in all text of a series, and in its paths, are nowhere in the store."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pydicom
import zarr
from ingesting import SHAPE, Ingests, write_manifest, write_nifti
from make_cohort import body_hu, write_dicom
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid


def plant(dataset: Dataset, planted: list[str]) -> None:
    """A value in one element of every text VR, at top level, nested and private."""
    examples = {
        "AE": "StationAETitle",
        "AS": "PatientAge",
        "CS": "BodyPartExamined",
        "DA": "StudyDate",
        "DT": "AcquisitionDateTime",
        "LO": "InstitutionName",
        "LT": "AdditionalPatientHistory",
        "PN": "PatientName",
        "SH": "AccessionNumber",
        "ST": "InstitutionAddress",
        "TM": "StudyTime",
        "UC": "StrainDescription",
        "UR": "RetrieveURL",
        "UT": "LabelText",
        "UI": "IrradiationEventUID",
    }
    fixed = {"AS": "077Y", "DA": "19470523", "TM": "031415.926", "DT": "19470523031415"}
    for number, (vr, keyword) in enumerate(examples.items()):
        value = fixed.get(vr, f"PLANT{len(planted)}{vr}{number}")
        if vr == "UI":
            value = f"1.2.826.0.1.3680043.9.{4711 + len(planted)}"
        setattr(dataset, keyword, value)
        planted.append(value)
    for keyword in ("PatientID", "DeviceSerialNumber", "StudyDescription", "Manufacturer"):
        setattr(dataset, keyword, f"PLANT{len(planted)}{keyword}"[:60])
        planted.append(getattr(dataset, keyword))


def write_planted(folder: Path, planted: list[str]) -> None:
    write_dicom(folder, body_hu(SHAPE, 4))
    for index, path in enumerate(sorted(folder.iterdir())):
        dataset = pydicom.dcmread(path)
        outer, inner = Dataset(), Dataset()
        marks: list[str] = []
        plant(inner, marks)
        outer.RequestAttributesSequence = [inner]
        plant(outer, marks)
        dataset.ReferencedStudySequence = [outer]
        plant(dataset, marks)
        block = dataset.private_block(0x0099, "PLANTcreator", create=True)
        block.add_new(1, "LO", "PLANTprivate")
        block.add_new(2, "UN", b"PLANTunknown")
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "PLANTTYPE"]
        dataset.save_as(path)
        if index == 0:
            planted += [*marks, "PLANTcreator", "PLANTprivate", "PLANTunknown", "PLANTTYPE"]
            planted += [str(dataset.SeriesInstanceUID), str(dataset.StudyInstanceUID)]
        planted.append(str(dataset.SOPInstanceUID))
        path.rename(folder / f"PLANTFILE{index}.dcm")


def break_series(folder: Path, how: str, planted: list[str]) -> None:
    path = folder / "PLANTFILE5.dcm"
    dataset = pydicom.dcmread(path)
    if how == "gap":
        path.unlink()
    elif how == "slope":
        dataset.RescaleType = "PLANTRESCALE"
        dataset.save_as(path)
    elif how == "type":
        uid = generate_uid()
        dataset.FrameOfReferenceUID = uid
        planted.append(uid)
        dataset.save_as(path)
    elif how == "pixels":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        path.write_bytes(path.read_bytes()[:700])


def everything(store: Path) -> str:
    """All text of the store: every file's bytes, and what they decompress to."""
    parts = []
    for path in store.rglob("*"):
        parts.append(str(path.relative_to(store)))
        if path.is_file():
            parts.append(path.read_bytes().decode("latin-1"))
        if path.suffix == ".parquet":
            parts.append(repr(pq.read_table(path).to_pydict()))
            parts.append(repr(pq.read_metadata(path).metadata))
    root = zarr.open_group(store, mode="r")
    for name, array in root["volumes"].arrays():  # type: ignore[union-attr]
        parts.append(repr((name, dict(array.attrs))))
        parts.append(array[...].tobytes().decode("latin-1"))
    return "\n".join(parts)


def test_nothing_that_names_a_person_enters_the_store(run: Ingests, tmp_path: Path) -> None:
    planted = ["PLANTROOT", "PLANTFOLDER", "PLANTFILE", "PLANTNIFTI", "PLANTMANIFEST"]
    root = tmp_path / "PLANTROOT"
    write_planted(root / "PLANTFOLDER1", planted)
    for number, broken in enumerate(("gap", "slope", "type", "pixels", "garbage"), start=2):
        folder = root / f"PLANTFOLDER{number}"
        write_planted(folder, planted)
        break_series(folder, broken, planted)
    write_nifti(root / "PLANTNIFTI.nii.gz", body_hu(SHAPE, 5))
    (root / "PLANTNIFTI2.nii.gz").write_bytes(b"PLANTbytes")
    manifest = write_manifest(
        root / "manifest.csv",
        *((f"PLANTFOLDER{n}", "1", "arterial", f"PLANTMANIFEST{n}") for n in range(1, 7)),
        ("PLANTNIFTI.nii.gz", "2", "arterial", "PLANTMANIFEST9"),
        ("PLANTNIFTI2.nii.gz", "2", "arterial", ""),
    )
    report = run(manifest, tmp_path / "s")
    assert report.count("ingested") == 2
    assert report.count("refused") >= 6
    text = everything(tmp_path / "s")
    assert [value for value in planted if value in text] == []
    assert "PLANT" not in text
    reasons = pq.read_table(tmp_path / "s" / "ingest-report.parquet")["reason"].to_pylist()
    assert any("ImagePositionPatient" in reason and "file " in reason for reason in reasons)
