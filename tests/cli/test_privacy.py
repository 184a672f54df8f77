"""Nothing of a patient in what the program writes: planted texts are searched for in all of it."""

from __future__ import annotations

import base64
import csv
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
import torch
from click.testing import CliRunner
from planting import (
    TIME,
    UID_ROOT,
    WORD,
    kinds,
    plant,
    plant_meta,
    planted_date,
    put,
    traces,
    word,
    write_planted,
)
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, generate_uid

from pmg.cli import main
from pmg.config import Config
from pmg.training import build_modules
from pmg.weights import save_translator
from storage.dicom_write import write_series
from storage.nifti import write_nifti
from storage.phantom import Protocol, draw_subject, render

SMALL = Protocol(shape=(6, 64, 64), spacing_mm=(12.0, 6.3, 6.3), thickness_mm=12.0)

Change = Callable[[list[Dataset]], None]


def text_in(keyword: str, only: int | None = None, value: bytes | None = None) -> Change:
    """Words in an element that a reader needs, of all slices or of one."""

    def change(slices: list[Dataset]) -> None:
        for one in slices if only is None else [slices[only]]:
            tag = tag_for_keyword(keyword) or 0
            vr = pydicom.datadict.dictionary_VR(tag)
            put(one, tag, vr, word(tag).encode() if value is None else value)

    return change


def without_a_slice(slices: list[Dataset]) -> None:
    del slices[3]


def twice_the_same_place(slices: list[Dataset]) -> None:
    slices[3].ImagePositionPatient = slices[2].ImagePositionPatient


def of_no_known_syntax(slices: list[Dataset]) -> None:
    for one in slices:
        one.file_meta.TransferSyntaxUID = f"{UID_ROOT}77"


def with_half_its_pixels(slices: list[Dataset]) -> None:
    slices[2].PixelData = slices[2].PixelData[: len(slices[2].PixelData) // 2]


REFUSED: dict[str, Change] = {
    "spacing": text_in("PixelSpacing"),
    "position": text_in("ImagePositionPatient", only=2),
    "modality": text_in("Modality"),
    "photometric": text_in("PhotometricInterpretation"),
    "rescale type": text_in("RescaleType"),
    "slope": text_in("RescaleSlope", only=1),
    "localizer": text_in("ImageType", value=f"{WORD}\\LOCALIZER".encode()),
    "class": text_in("SOPClassUID", value=f"{UID_ROOT}5".encode()),
    "frame": text_in("FrameOfReferenceUID", only=4, value=f"{UID_ROOT}6.1".encode()),
    "frames": text_in("NumberOfFrames"),
    "gap": without_a_slice,
    "double": twice_the_same_place,
    "syntax": of_no_known_syntax,
    "half": with_half_its_pixels,
}
# Rules are made to look at any element, and their refusals say what they saw.
QUOTED = (
    *("PatientName", "PatientBirthDate", "InstitutionName", "StudyTime", "PatientAge"),
    *("ReferencedImageSequence", "AcquisitionDateTime", "DeviceSerialNumber", "StudyInstanceUID"),
)
ACCEPTED = {"latin": "latin-1", "utf": "utf-8", "implicit": "utf-8", "chinese": "gb18030"}
CHARACTER_SETS = {"latin-1": "ISO_IR 100", "utf-8": "ISO_IR 192", "gb18030": "GB18030"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = Config.model_validate(
        {
            "data": {"patch": (32, 32), "spacing_mm": (12.0, 6.3, 6.3)},
            "model": {"width": 4, "blocks": 1},
            "discriminator": {"width": 4, "layers": 2, "scales": 1},
            "translate": {"tile": (64, 64)},
        }
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    save_translator(build_modules(config)[0], config, folder)
    return folder


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """A hospital's export with something planted wherever text can be, and its manifest."""
    root = tmp_path_factory.mktemp("in") / f"{WORD} of Ward 7"
    volume = render(draw_subject(2), "non_contrast", SMALL, 5)
    lines = []
    plain = [pydicom.dcmread(f) for f in write_series(volume, root / "plain", Dataset())]
    for path in (root / "plain").iterdir():
        path.unlink()
    (root / "plain").rmdir()
    for number, name in enumerate((*ACCEPTED, *REFUSED)):
        encoding = ACCEPTED.get(name, "latin-1")
        slices = [pydicom.dcmread(_copied(one)) for one in plain]
        for index, one in enumerate(slices):
            plant(one, encoding, everywhere=name in ACCEPTED and index == 0)
            one.SpecificCharacterSet = CHARACTER_SETS[encoding]
            one.SeriesInstanceUID = f"{UID_ROOT}1.{number}"
            one.SOPInstanceUID = f"{UID_ROOT}2.{number}.{index}"
            one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
            plant_meta(one.file_meta)
            if name == "implicit":
                one.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        REFUSED.get(name, lambda slices: None)(slices)
        folder = root / f"{WORD}_{name}" / "Köln"
        for index, one in enumerate(slices):
            write_planted(folder / f"{WORD}IM{index}.dcm", one)
        lines.append((folder, 1 + number % 2, "portal", f"{WORD}^PATIENT{number}" * (number % 2)))

    broken = root / f"{WORD}_broken.dcm"
    broken.write_bytes(word(1).encode() * 8 + b"DICM" + word(2).encode() * 9)
    lines.append((broken, 1, "native", f"{WORD} person"))
    lines.append((root / f"{WORD}_missing", 1, "native", ""))
    for name in ("good", "bad"):
        path = root / f"{WORD}_{name}.nii.gz"
        write_nifti(volume, path)
        image = nib.load(path)
        data = np.asanyarray(image.dataobj)
        for field in ("descrip", "aux_file", "intent_name", "db_name"):
            image.header[field] = WORD.encode()
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", WORD.encode()))
        image = nib.Nifti1Image(data, image.affine, image.header)
        if name == "bad":
            image.set_sform(None, 0)
            image.set_qform(None, 0)
        nib.save(image, path)
        lines.append((path, 2, "portal", f"{WORD} nobody"))
    manifest = root / "series.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("path", "domain", "phase", "patient", "notes"))
        table.writerows((*line, f"{WORD} note") for line in lines)
    return manifest


def _copied(dataset: Dataset):
    buffer = pydicom.filebase.DicomBytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    buffer.seek(0)
    return buffer


def invoke(*arguments: object, fails: bool = False) -> str:
    result = CliRunner().invoke(main, [str(one) for one in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert bool(result.exit_code) == fails, result.output
    return result.output


def assert_reasons_say_what_is_wrong(reasons: str) -> None:
    for words in (
        "PixelSpacing (0028,0030)",
        "Modality (0008,0060)",
        "PhotometricInterpretation (0028,0004)",
        "RescaleType (0028,1054)",
        "SOPClassUID (0008,0016)",
        "PixelData (7FE0,0010)",
        "sform_code and qform_code are 0",
    ):
        assert words in reasons


@pytest.mark.slow
def test_nothing_that_was_planted_anywhere_is_found_in_what_is_kept(
    tmp_path: Path, export: Path, model: Path
) -> None:
    kept = tmp_path / "kept"
    for spacing in ((), ("--spacing", "12", "7", "7")):
        store = kept / f"store{len(spacing)}"
        arguments = ["--manifest", export, "--store", store, "--key", tmp_path / "key", *spacing]
        shown = invoke("ingest", *arguments)
        assert WORD in shown  # the user sees the paths, which are the user's own
        invoke("ingest", *arguments)  # and again, for what a second run keeps
        verdicts = pq.read_table(store / "ingest-report.parquet").to_pydict()
        accepted = len(ACCEPTED) + 1
        assert sorted(set(verdicts["verdict"])) == ["refused", "skipped"]
        assert verdicts["verdict"].count("skipped") == accepted, verdicts
        assert verdicts["verdict"].count("refused") >= len(REFUSED) + 3
        assert_reasons_say_what_is_wrong(" | ".join(verdicts["reason"]))
        for command in (("info", store), ("verify", store)):
            (kept / f"{command[0]}-{store.name}.log").write_text(invoke(*command))
        for form in ("dicom", "nifti"):
            invoke("export", store, "--out", kept / f"{store.name}-{form}", "--format", form)
    quote = "".join(f"- {{domain: 1, phase: x, when: {{{one}: absent}}}}\n" for one in QUOTED)
    (tmp_path / "rules.yaml").write_text(quote)
    by_rules = ("--rules", tmp_path / "rules.yaml", "--key", tmp_path / "key")
    invoke("ingest", export.parent, "--store", kept / "ruled", *by_rules, fails=True)
    reasons = pq.read_table(kept / "ruled" / "ingest-report.parquet")["reason"].to_pylist()
    assert sum("rule 9: StudyInstanceUID is 'uid-" in reason for reason in reasons) >= 4

    sources = [export.parent / f"{WORD}_{name}" for name in ACCEPTED]
    sources.append(export.parent / f"{WORD}_good.nii.gz")
    for name, option in (("keyed", ("--key", tmp_path / "key")), ("bare", ())):
        invoke("translate", *sources, "--model", model, "--out", kept / name, *option)
    invoke(
        "translate", export.parent, "--model", model, "--out", kept / "all", fails=True
    )  # what is refused leaves nothing either

    written = list(kept.rglob("*.dcm"))
    assert len(written) >= 6 * (2 * 4 + 3 * 4)
    assert len(list(kept.rglob("*.nii.gz"))) >= 10
    assert traces(kept) == []
    assert len({pydicom.dcmread(one).PatientID for one in written}) > 1


@pytest.mark.parametrize(
    "hidden",
    [
        word(7),
        word(7).lower(),
        f"{UID_ROOT}17",
        planted_date(0x00100030),
        f"x {planted_date(0x0008002A)}120000.5",
        TIME,
        "087Y",
    ],
)
def test_the_search_finds_what_was_planted_in_every_form(tmp_path: Path, hidden: str) -> None:
    forms = [hidden.encode(encoding) for encoding in ("utf-8", "utf-16-le", "utf-16")]
    if hidden.startswith((WORD, UID_ROOT)):
        forms += [hidden.encode().hex().encode()]
        forms += [base64.b64encode(b"abc"[:n] + hidden.encode() + b"de"[:n]) for n in range(3)]
    for form in forms:
        assert kinds(b"before " + form + b" after"), form
        (tmp_path / "file").write_bytes(b"\x00\xff" + form)
        assert traces(tmp_path)
    assert not kinds(b"2.25.918273 1801010512 ZQPLAN 1.2.752.9 87Y 087 2018010")


def test_it_looks_into_archives_tables_voxels_and_names(tmp_path: Path, export: Path) -> None:
    assert {line.split(":")[0] for line in traces(export.parent)} >= {"series.csv, bytes"}
    (good,) = export.parent.glob("*_good.nii.gz")
    assert any("unzipped" in line for line in traces(good.parent) if good.name in line)


def test_planting_reaches_every_depth_and_encoding_of_the_files(export: Path) -> None:
    (folder,) = export.parent.glob(f"{WORD}_utf")
    path = sorted(folder.rglob("*.dcm"))[0]
    header = pydicom.dcmread(path)
    inner = header.AnatomicRegionSequence[0].ReferencedImageSequence[0].ReferencedImageSequence[0]
    assert WORD in str(inner.PatientName)
    assert header.StudyInstanceUID.startswith(UID_ROOT)
    assert len(header) > 1500
    assert str(header.PatientName).endswith("^Jörg")
    assert generate_uid() != header.SOPInstanceUID
