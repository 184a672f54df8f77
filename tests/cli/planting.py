"""Texts planted into every element of a series, and a search for them in all that was written."""

from __future__ import annotations

import base64
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from datetime import date, timedelta
from functools import cache
from pathlib import Path

import pyarrow.parquet as pq
import pydicom
import zarr
from pydicom.datadict import DicomDictionary, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

WORD = "ZQPLANT"  # all planted words begin with it, and nothing else does
UID_ROOT = "1.2.752.99."
TIME = "010203.918273"
AGES = "087Y"
FIRST_DATE = date(1801, 1, 1)  # one for each planted date: nobody was scanned then

# Read for the geometry, the pixels or the format: with words here no series would be accepted.
NEEDED = frozenset(
    [
        "ImageType",
        "Modality",
        "PhotometricInterpretation",
        "RescaleType",
        "SOPClassUID",
        "SpecificCharacterSet",
    ]
)
SEQUENCES = (
    "ReferencedImageSequence",
    "SourceImageSequence",
    "RequestAttributesSequence",
    "AnatomicRegionSequence",
    "ContributingEquipmentSequence",
    "DeidentificationMethodCodeSequence",
    "CTAcquisitionTypeSequence",
)
WORDS = frozenset(["AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"])
BYTES = frozenset(["OB", "OW", "UN"])


def word(tag: int) -> str:
    """16 characters, as few as every value representation allows."""
    return f"{WORD}{tag:08X}K"


def planted_date(tag: int) -> str:
    return (FIRST_DATE + timedelta(days=tag % 20000)).strftime("%Y%m%d")


def text_of(vr: str, tag: int, encoding: str) -> bytes | None:
    """What is planted into an element, None where the representation holds no text."""
    if vr in WORDS:
        name = {"PN": f"{word(tag)}^Jörg", "LO": f"{word(tag)} äß", "UT": f"{word(tag)}\n é"}
        return name.get(vr, word(tag)).encode(encoding)
    if vr in BYTES:
        return word(tag).encode("utf-16-le") + word(tag).encode()
    texts = {
        "AS": AGES,
        "DA": planted_date(tag),
        "DT": f"{planted_date(tag)}{TIME}",
        "TM": TIME,
        "UI": f"{UID_ROOT}{tag}",
    }
    return texts[vr].encode() if vr in texts else None


def plant(header: Dataset, encoding: str, *, everywhere: bool) -> None:
    """Plant into every element of DICOM's dictionary, or into those that many files have.

    Private elements get words too, and sequences items, three deep.
    """
    header._dict.update(_planted(encoding, everywhere, 3)._dict)


@cache
def _planted(encoding: str, everywhere: bool, depth: int) -> Dataset:
    planted = Dataset()
    for tag, (vrs, _, _, _, keyword) in DicomDictionary.items():
        usual = tag >> 16 in (0x0008, 0x0010, 0x0020)
        forbidden = tag >> 16 in (0x0000, 0x0002, 0x0006) or not keyword or keyword in NEEDED
        if forbidden or tag in (0xFFFCFFFC, 0x7FE00010) or not (everywhere or usual):
            continue
        vr = vrs.split(" or ")[0]
        text = text_of(vr, tag, encoding)
        if text is not None:
            put(planted, tag, vr, text)
    for tag in (0x60001500, 0x50002500):  # labels of an overlay and of a curve
        put(planted, tag, "LO", word(tag).encode())
    block = planted.private_block(0x0029, f"{WORD} CREATOR", create=True)
    put(planted, block.get_tag(1), "LO", word(0x00290001).encode(encoding))
    put(planted, block.get_tag(2), "UN", word(0x00290002).encode("utf-16-be"))
    put(planted, block.get_tag(3), "UN", base64.b64encode(word(0x00290003).encode()))
    if depth:
        items = Sequence([_planted(encoding, False, depth - 1)])
        if depth == 3:
            planted.add_new(block.get_tag(4), "SQ", items)
        for keyword in SEQUENCES if everywhere else SEQUENCES[:1]:
            planted.add_new(tag_for_keyword(keyword) or 0, "SQ", items)
    return planted


def put(header: Dataset, tag: int, vr: str, value: bytes) -> None:
    """The very bytes, whatever the value representation would say to them."""
    padding = b"\0" if vr in ("UI", "OB", "UN", "OW") else b" "
    value += padding * (len(value) % 2)
    raw = RawDataElement(Tag(tag), vr, len(value), value, 0, False, True)
    header._dict[Tag(tag)] = raw


def plant_meta(meta: FileMetaDataset) -> None:
    meta.SourceApplicationEntityTitle = word(0x00020016)
    meta.SendingApplicationEntityTitle = word(0x00020017)
    meta.ImplementationVersionName = word(0x00020013)
    meta.ImplementationClassUID = f"{UID_ROOT}{0x00020012}"
    meta.PrivateInformationCreatorUID = f"{UID_ROOT}{0x00020100}"
    meta.PrivateInformation = word(0x00020102).encode()


def write_planted(path: Path, dataset: Dataset) -> None:
    """With a planted preamble. Raw elements go out as they are."""
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    preamble = (word(0) * 8)[:128].encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(preamble + buffer.getvalue()[128:])


def _patterns() -> dict[str, re.Pattern[bytes]]:
    """Every form in which a planted text may lie in bytes."""
    dated = (tag for tag, (vr, *_) in DicomDictionary.items() if vr in ("DA", "DT"))
    dates = {planted_date(tag).encode() for tag in dated}
    wide_date = b"1\x008\x00[0-5]\x00[0-9]\x00[01]\x00[0-9]\x00[0-3]\x00[0-9]"
    texts = {"word": WORD, "uid": UID_ROOT, "time": TIME, "age": AGES}
    found = {
        "date": re.compile(rb"(?<![0-9])(?:%s)(?:[0-9]{4,6})?(?![0-9])" % b"|".join(sorted(dates))),
        "date in utf-16": re.compile(wide_date),
    }
    for name, text in texts.items():
        plain = text.encode()
        found[name] = re.compile(re.escape(plain), re.IGNORECASE)
        for encoding in ("utf-16-le", "utf-16-be", "utf-32-le"):
            wide = re.escape(text.encode(encoding))
            found[f"{name} in {encoding}"] = re.compile(wide, re.IGNORECASE)
    for name in ("word", "uid"):
        plain = texts[name].encode()
        found[f"{name} in hex"] = re.compile(plain.hex().encode(), re.IGNORECASE)
        for shift in range(3):  # the same bytes look different by their place among three
            coded = base64.b64encode(b"\0" * shift + plain).rstrip(b"=")
            inner = coded[-(-8 * shift // 6) : len(coded) - (1 if (shift + len(plain)) % 3 else 0)]
            found[f"{name} in base64, {shift}"] = re.compile(re.escape(inner))
        found[f"{name} reversed"] = re.compile(re.escape(plain[::-1]), re.IGNORECASE)
    return found


PATTERNS = _patterns()


def traces(root: Path) -> list[str]:
    """Where below `root` something planted lies: in names, bytes and what the bytes decode to."""
    found = []
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        found += [f"{name}: {kind} in its name" for kind in kinds(name.encode())]
        if path.is_file():
            for form, data in _forms(path):
                found += [f"{name}, {form}: {kind}" for kind in kinds(data)]
    return found


def kinds(data: bytes) -> list[str]:
    return [kind for kind, pattern in PATTERNS.items() if pattern.search(data)]


def _forms(path: Path) -> Iterator[tuple[str, bytes]]:
    data = path.read_bytes()
    yield "bytes", data
    if path.suffix == ".gz":
        yield "unzipped", gzip.decompress(data)
    elif path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            yield "metadata", repr(file.metadata.metadata).encode()
            for column in file.read().itercolumns():
                for value in column.to_pylist():
                    yield "column", value if isinstance(value, bytes) else repr(value).encode()
    elif path.name == "zarr.json" and b'"array"' in data:
        array = zarr.open_array(str(path.parent), mode="r")
        yield "voxels", array[...].tobytes()
    for start in (m.start() for m in re.finditer(rb"\x78[\x01\x9c\xda]", data[:4096])):
        try:
            yield "inflated", zlib.decompress(data[start:])
        except zlib.error:
            continue
