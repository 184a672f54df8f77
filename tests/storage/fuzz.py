"""Mutants of good series, read in a child process; `python tests/storage/fuzz.py 5000 7` by hand.

The child is the program as the ingest runs it: files_under, scan, group and read_source within the
bounds of one file. It prints a line of JSON for each source and refusal, so that whatever it has
not spoken of when it dies is what killed it.
"""

import json
import random
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from make_enhanced import enhanced, save
from make_series import (
    a_series,
    a_volume,
    as_jpeg_of_twelve_bits,
    compress_by_gdcm,
    edit,
    stored_as,
)
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

SHAPE = (4, 36, 40)


def encoded(syntax):
    def change(file):
        def to(dataset):
            if syntax == ExplicitVRBigEndian:
                dataset.PixelData = dataset.pixel_array.astype(">i2").tobytes()
            if syntax.is_compressed and not syntax.is_deflated:
                dataset.compress(syntax)
            dataset.file_meta.TransferSyntaxUID = syntax

        edit(file, to)

    return change


def by_gdcm(name):
    def change(file):
        edit(file, stored_as(np.uint16, intercept=-1024, bits_stored=12))
        compress_by_gdcm(file, name)

    return change


def jpeg_of_twelve_bits(file):
    edit(file, stored_as(np.uint16, intercept=-1024, bits_stored=12))
    edit(file, as_jpeg_of_twelve_bits)


SINGLE = {
    "explicit": lambda file: None,
    "implicit": encoded(ImplicitVRLittleEndian),
    "big endian": encoded(ExplicitVRBigEndian),
    "deflated": encoded(DeflatedExplicitVRLittleEndian),
    "rle": encoded(RLELossless),
    "jpeg-ls": encoded(JPEGLSLossless),
    "jpeg 2000": encoded(JPEG2000Lossless),
    "jpeg lossless": by_gdcm("JPEGLosslessProcess14_1"),
    "jpeg lossy": jpeg_of_twelve_bits,
}
MULTI = {"enhanced": None, "enhanced rle": RLELossless, "enhanced jpeg 2000": JPEG2000Lossless}


def good_series(folder):
    """One series of every kind: name -> its files."""
    made = {}
    for name, change in SINGLE.items():
        made[name] = a_series(a_volume(shape=SHAPE), folder / name)
        for file in made[name]:
            change(file)
    for name, syntax in MULTI.items():
        dataset = enhanced(a_volume(shape=SHAPE))
        if syntax is not None:
            dataset.compress(syntax)
        (folder / name).mkdir()
        made[name] = [save(dataset, folder / name / "whole.dcm")]
    return made


# What is put in the place of a value or a length.
_TEXTS = [
    b"nan",
    b"1e999",
    b"-1",
    b"0",
    b"",
    b"\\\\",
    b"1\\2\\3\\4\\5\\6\\7",
    b"\xff\xff",
    b"99999999",
]
_LENGTHS = [0, 1, 2, 7, 0x7F, 0xFF, 0x7FFF, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF]


def element_places(blob):
    """Where the values of top-level elements begin, and their lengths, by pydicom."""
    try:
        dataset = pydicom.dcmread(pydicom.filebase.DicomBytesIO(blob), force=True)
        elements = [dataset.get_item(tag) for tag in list(dataset.keys())]
        places = [
            (one.value_tell, one.length) if hasattr(one, "value_tell") else (one.file_tell, 0)
            for one in elements
        ]
        return [(at, min(length, 64)) for at, length in places if at and 8 < at < len(blob)]
    except Exception:
        return []


def mutated(blob, places, rng):
    """One mutant of a file."""
    data = bytearray(blob)
    kind = rng.choice(
        [
            "flip",
            "flip",
            "cut",
            "length",
            "length",
            "tag",
            "text",
            "text",
            "nest",
            "insert",
            "delete",
            "fill",
            "stream",
        ]
    )
    at, length = rng.choice(places) if places else (rng.randrange(len(data)), 8)
    if kind == "flip":
        end = len(data) if rng.random() < 0.5 else min(len(data), 2500)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(128, end)] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[rng.randrange(len(data)) :]
    elif kind == "length":
        width = rng.choice([2, 4])
        value = rng.choice(_LENGTHS) & ((1 << 8 * width) - 1)
        data[at - width : at] = value.to_bytes(width, rng.choice(["little", "big"]))
    elif kind == "tag":
        other, _ = rng.choice(places) if places else (at, 0)
        data[at - 8 : at - 4], data[other - 8 : other - 4] = (
            data[other - 8 : other - 4],
            data[at - 8 : at - 4],
        )
    elif kind == "text":
        text = rng.choice(_TEXTS)
        data[at : at + length] = (text + b" " * length)[:length]
    elif kind == "nest":
        item = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
        data[at - 8 : at - 8] = item * rng.choice([1, 40, 70, 500])
    elif kind == "insert":
        where = rng.randrange(len(data))
        data[where:where] = rng.randbytes(rng.choice([1, 2, 16, 300]))
    elif kind == "delete":
        where = rng.randrange(128, len(data))
        del data[where : where + rng.choice([1, 2, 16, 300])]
    elif kind == "fill":
        where = rng.randrange(128, len(data))
        size = rng.choice([4, 64, 1000])
        data[where : where + size] = rng.choice([b"\0", b"\xff", b"\x41"]) * size
    else:  # within the pixels' own headers
        pixels = blob.rfind(b"\xe0\x7f\x10\x00")
        start = pixels if pixels > 0 else len(data) // 2
        for _ in range(rng.randint(1, 6)):
            where = min(start + rng.randrange(160), len(data) - 1)
            data[where] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    return bytes(data)


@dataclass(frozen=True)
class Outcome:
    """What became of one fuzzing run."""

    returncode: int
    errors: str
    read: dict[str, list[int]]  # folder of each source that was read, and its volume's shape
    refused: dict[str, list[str]]  # folder or file -> reasons
    in_work: str


def fuzz(count, seed, folder):
    """Write `count` mutants below `folder`, each of one file in its series, and read them all.

    Folders `good/...` hold whole series, `mutants/0001/...` the mutants.
    """
    rng = random.Random(seed)
    good = good_series(folder / "good")
    kinds = list(good)
    places = {
        name: [element_places(file.read_bytes()) for file in files] for name, files in good.items()
    }
    uid = {name: pydicom.dcmread(files[0]).SeriesInstanceUID for name, files in good.items()}
    for number in range(count):
        name = kinds[number % len(kinds)]
        target = folder / "mutants" / f"{number:05d} {name}"
        target.mkdir(parents=True)
        own = generate_uid()[: len(uid[name])].ljust(len(uid[name]), "1").encode()
        index = rng.randrange(len(good[name]))
        for position, file in enumerate(good[name]):
            blob = file.read_bytes()
            if position == index:
                blob = mutated(blob, places[name][position], rng)
            # A series of its own, where its UID can still be seen.
            (target / file.name).write_bytes(blob.replace(uid[name].encode(), own))
    child = subprocess.run(
        [sys.executable, __file__, "--read", str(folder)],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )
    read, refused = {}, {}
    for line in child.stdout.splitlines():
        path, shape, reason = json.loads(line)
        if reason:
            refused.setdefault(path, []).append(reason)
        else:
            read[path] = shape
    in_work = folder / "in_work"
    return Outcome(
        child.returncode,
        child.stderr,
        read,
        refused,
        in_work.read_text() if in_work.exists() else "",
    )


def read_all(folder):
    """The child's work."""
    import warnings  # noqa: PLC0415

    from storage.bounds import enable  # noqa: PLC0415
    from storage.errors import GeometryError, IngestError  # noqa: PLC0415
    from storage.series import find_sources, read_source  # noqa: PLC0415

    warnings.simplefilter("ignore")  # pydicom's, on values it has to guess
    in_work = folder / "in_work"
    enable(lambda path: in_work.write_text(str(path or "")))
    for part in [*sorted((folder / "mutants").iterdir()), folder / "good"]:
        sources, refusals = find_sources(part)
        for refusal in refusals:
            print(json.dumps([str(refusal.path), None, refusal.reason]), flush=True)
        for source in sources:
            path = str(source.files[0].parent)
            try:
                volume, headers = read_source(source)
                assert len(list(headers)) == len(volume.hu)
                print(json.dumps([path, volume.shape, ""]), flush=True)
            except (GeometryError, IngestError) as refusal:
                print(json.dumps([path, None, str(refusal)]), flush=True)


def main():
    if sys.argv[1] == "--read":
        read_all(Path(sys.argv[2]))
        return
    count, seed = map(int, sys.argv[1:])
    folder = Path(tempfile.mkdtemp())
    outcome = fuzz(count, seed, folder)
    print(outcome.returncode, outcome.errors[-3000:], outcome.in_work)
    print(f"{len(outcome.read)} read, {len(outcome.refused)} refused")
    if outcome.returncode == 0:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
