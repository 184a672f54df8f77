"""Finding image series under a folder, and reading them whatever their file format."""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydicom.dataset import Dataset

from .bounds import reading
from .dicom_file import begins_as_dicom
from .dicom_read import read_series, series_uid
from .errors import IngestError
from .nifti import read_nifti
from .volume import Volume

__all__ = [
    "Finding",
    "Refusal",
    "Source",
    "files_under",
    "find_sources",
    "group",
    "read_source",
    "scan",
]

Kind = Literal["dicom", "nifti"]

# Of a file, to know what it is by, and nearly always of which series.
_START_BYTES = 1 << 14

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


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
class Finding:
    """What one file is, by its header: of the series `key`, refused for `reason`, or neither.

    kind is None for a refused file and for one of another format, which has no reason either.
    """

    path: Path
    kind: Kind | None = None
    key: str = ""
    reason: str = ""


@dataclass(frozen=True)
class _Format:
    """What the program must know of a file format.

    recognises: by the path and the file's first bytes. key: of the series that the file belongs
    to, by the same; raises IngestError for a file that belongs to none. read: as `read_source`.
    """

    recognises: Callable[[Path, bytes], bool]
    key: Callable[[Path, bytes], str]
    read: Callable[[Sequence[Path], dict[Path, bytes] | None], tuple[Volume, Sequence[Dataset]]]


def find_sources(root: Path) -> tuple[list[Source], list[Refusal]]:
    """All series under a folder (or in the one file), and the medical files that are none.

    `files_under`, `scan` and `group` in one. Only headers are read, so a source may still turn
    out unusable in `read_source`. Both lists are sorted. Raises IngestError if there is nothing at
    `root`.
    """
    return group(scan(files_under(root)))


def files_under(root: Path) -> list[Path]:
    """Every file below the folder but hidden ones: unfinished writing, desktop programs' notes.

    Sorted, under the names that they have from `root` on. Symbolic links are followed wherever they
    lead, for exports are often made of them; each folder is entered once, so that links in a circle
    end, and what has a place of its own below `root` comes from there. A folder that cannot be
    listed, and a link to nothing, comes in the place of its files. Raises IngestError if there is
    nothing at `root`; a `root` that is a file stands for itself.
    """
    if not root.exists():
        raise IngestError(f"{root}: no such file or folder; expected DICOM or NIfTI files")
    files: list[str] = []
    seen: set[tuple[int, int]] = set()  # device and number of folders and files
    folders, links = [str(root)], deque[str]()
    while folders or links:
        path = folders.pop() if folders else links.popleft()
        try:
            status = os.stat(path)
            place = status.st_dev, status.st_ino
            if place in seen:
                continue
            seen.add(place)
            entries = list(os.scandir(path))
        except OSError:  # a file, a link to nothing or in a circle, or a folder that is closed
            files.append(path)
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                links.append(entry.path)
            elif entry.is_dir():
                folders.append(entry.path)
            else:
                files.append(entry.path)
                seen.add((status.st_dev, entry.inode()))
    return [Path(path) for path in sorted(files, key=lambda path: path.split(os.sep))]


def scan(paths: Iterable[Path]) -> list[Finding]:
    """What each of the files is; the result can be sent between processes.

    DICOM is recognised by content or name, NIfTI by name. Headers only are read, each file within
    the bounds of `reading`. What is no regular file (FIFOs, devices) is refused unread.
    """
    return [_finding(path) for path in paths]


def group(findings: Iterable[Finding]) -> tuple[list[Source], list[Refusal]]:
    """The findings of one root as series, and its refused files. Both lists are sorted."""
    series: dict[tuple[Kind, str], list[Path]] = defaultdict(list)
    refusals = []
    for one in findings:
        if one.kind:
            series[one.kind, one.key].append(one.path)
        elif one.reason:
            refusals.append(Refusal(one.path, one.reason))
    sources = [Source(kind, key, tuple(sorted(files))) for (kind, key), files in series.items()]
    return sorted(sources, key=lambda one: one.files), sorted(refusals, key=lambda one: one.path)


def read_source(
    source: Source, digests: dict[Path, bytes] | None = None
) -> tuple[Volume, Sequence[Dataset]]:
    """The source's volume in HU, and the headers of its slices (none for NIfTI).

    digests: takes the BLAKE3 of the contents of those files that were read at once.
    Raises GeometryError or IngestError as `read_series` and `read_nifti` do.
    """
    return _FORMATS[source.kind].read(source.files, digests)


def _finding(path: Path) -> Finding:
    try:
        with reading(path):
            with path.open("rb", buffering=0) as file:
                start = file.read(_START_BYTES)
            for kind, file_format in _FORMATS.items():
                if file_format.recognises(path, start):
                    return Finding(path, kind, file_format.key(path, start))
    except (IngestError, OSError) as error:
        return Finding(path, reason=str(error))
    return Finding(path)


def _is_dicom(path: Path, start: bytes) -> bool:
    # What is called DICOM is taken for it, so that a damaged slice is refused, not passed over.
    return begins_as_dicom(start) or path.suffix.lower() in _DICOM_SUFFIXES


def _is_nifti(path: Path, _start: bytes) -> bool:
    return path.name.endswith((".nii", ".nii.gz"))


def _path(path: Path, _start: bytes) -> str:
    return str(path)


def _read_nifti(
    files: Sequence[Path], _digests: dict[Path, bytes] | None
) -> tuple[Volume, Sequence[Dataset]]:
    return read_nifti(files[0]), []


# A file format is one line here and the functions that it names.
_FORMATS: dict[Kind, _Format] = {
    "nifti": _Format(_is_nifti, _path, _read_nifti),
    "dicom": _Format(_is_dicom, series_uid, read_series),
}
