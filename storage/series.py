"""Finding image series under a folder, and reading them whatever their file format."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

from .dicom_read import read_series
from .errors import IngestError
from .nifti import read_nifti
from .volume import Volume

__all__ = ["Refusal", "Source", "find_sources", "read_source"]

Kind = Literal["dicom", "nifti"]


@dataclass(frozen=True)
class Source:
    """One image as it lies on disk: the files of a DICOM series, or a NIfTI file.

    key: the series instance UID, or the file's path.
    """

    kind: Kind
    key: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Refusal:
    """A file that is medical data but no image that can be read, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class _Format:
    """What the program must know of a file format."""

    recognises: Callable[[Path], bool]
    group: Callable[[list[Path]], tuple[list[Source], list[Refusal]]]
    read: Callable[[Sequence[Path]], tuple[Volume, list[Dataset]]]


def find_sources(root: Path) -> tuple[list[Source], list[Refusal]]:
    """All series under a folder (or in the one file), and the medical files that are none.

    DICOM is recognised by content, NIfTI by name; files of other formats are passed over. Only
    headers are read, so a source may still turn out unusable in `read_source`. Both lists are
    sorted. Raises IngestError if there is nothing at `root`.
    """
    if not root.exists():
        raise IngestError(f"{root}: no such file or folder; expected DICOM or NIfTI files")
    found: dict[Kind, list[Path]] = defaultdict(list)
    for path in _files(root):
        for kind, file_format in _FORMATS.items():
            if file_format.recognises(path):
                found[kind].append(path)
                break
    sources: list[Source] = []
    refusals: list[Refusal] = []
    for kind, paths in found.items():
        more_sources, more_refusals = _FORMATS[kind].group(paths)
        sources += more_sources
        refusals += more_refusals
    return sorted(sources, key=lambda one: one.files), sorted(refusals, key=lambda one: one.path)


def read_source(source: Source) -> tuple[Volume, list[Dataset]]:
    """The source's volume in HU, and the headers of its slices (none for NIfTI).

    Raises GeometryError or IngestError as `read_series` and `read_nifti` do.
    """
    return _FORMATS[source.kind].read(source.files)


def _files(root: Path) -> Iterator[Path]:
    """Every file below the folder but hidden ones: unfinished writing, desktop programs' notes."""
    if root.is_file():
        yield root
        return
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.is_file() and not hidden:
            yield path


def _is_dicom(path: Path) -> bool:
    """DICM after the preamble; or, without both, an element of group 0002 or 0008 at the start."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return False
    # Either encoding: two capitals for the value representation, or a length below 65536.
    bare = start[:2] in (b"\x02\x00", b"\x08\x00") and start[3:4] == b"\x00"
    plausible = start[4:6].isupper() or start[6:8] == b"\x00\x00"
    return start[128:] == b"DICM" or (len(start) == 132 and bare and plausible)


def _group_dicom(paths: list[Path]) -> tuple[list[Source], list[Refusal]]:
    series: dict[str, list[Path]] = defaultdict(list)
    refusals = []
    for path in paths:
        try:
            header = pydicom.dcmread(
                path,
                stop_before_pixels=True,
                force=True,
                specific_tags=["SOPClassUID", "SeriesInstanceUID"],
            )
            storage = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
            uid = header.get("SeriesInstanceUID")
        except Exception as error:  # pydicom 3.0 raises eight classes and more on malformed files
            refusals.append(Refusal(path, f"not a readable DICOM file: {error!r}"))
            continue
        if storage != CTImageStorage:
            named = getattr(storage, "name", storage) or "missing"
            reason = f"SOPClassUID (0008,0016) is {named}; expected CT Image Storage"
            refusals.append(Refusal(path, reason))
        elif not uid:
            refusals.append(Refusal(path, "SeriesInstanceUID (0020,000E) is missing or empty"))
        else:
            series[str(uid)].append(path)
    return [Source("dicom", uid, tuple(files)) for uid, files in series.items()], refusals


def _is_nifti(path: Path) -> bool:
    return path.name.endswith((".nii", ".nii.gz"))


def _group_nifti(paths: list[Path]) -> tuple[list[Source], list[Refusal]]:
    return [Source("nifti", str(path), (path,)) for path in paths], []


def _read_nifti(files: Sequence[Path]) -> tuple[Volume, list[Dataset]]:
    return read_nifti(files[0]), []


# A file format is one line here and the functions that it names.
_FORMATS: dict[Kind, _Format] = {
    "nifti": _Format(_is_nifti, _group_nifti, _read_nifti),
    "dicom": _Format(_is_dicom, _group_dicom, read_series),
}
