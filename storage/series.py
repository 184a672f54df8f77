"""Finding image series under a folder, and reading them whatever their file format."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydicom.dataset import Dataset

from .bounds import reading
from .dicom_file import START_BYTES, begins_as_dicom
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

    recognises: by the path and the file's first START_BYTES. key: of the series that the file
    belongs to; raises IngestError for a file that belongs to none.
    """

    recognises: Callable[[Path, bytes], bool]
    key: Callable[[Path], str]
    read: Callable[[Sequence[Path]], tuple[Volume, Sequence[Dataset]]]


def find_sources(root: Path) -> tuple[list[Source], list[Refusal]]:
    """All series under a folder (or in the one file), and the medical files that are none.

    `files_under`, `scan` and `group` in one. Only headers are read, so a source may still turn
    out unusable in `read_source`. Both lists are sorted. Raises IngestError if there is nothing at
    `root`.
    """
    return group(scan(files_under(root), root))


def files_under(root: Path) -> Iterator[Path]:
    """Every file below the folder but hidden ones: unfinished writing, desktop programs' notes.

    Sorted, and symbolic links as themselves: no folder is entered through one. A folder that
    cannot be listed comes in the place of its files. Raises IngestError if there is nothing at
    `root`; a `root` that is a file stands for itself.
    """
    if not root.exists():
        raise IngestError(f"{root}: no such file or folder; expected DICOM or NIfTI files")
    waiting = [root]
    while waiting:
        path = waiting.pop()
        if path != root and (path.is_symlink() or not path.is_dir()):
            yield path
            continue
        try:
            names = [name for name in os.listdir(path) if not name.startswith(".")]
        except OSError:  # the root is a file, or a folder may not be read
            yield path
            continue
        waiting += [path / name for name in sorted(names, reverse=True)]


def scan(paths: Iterable[Path], root: Path) -> list[Finding]:
    """What each of the files below `root` is; the result can be sent between processes.

    DICOM is recognised by content or name, NIfTI by name. Headers only are read, each file within
    the bounds of `reading`. What is no regular file (FIFOs, devices, symbolic links that lead out
    of `root`) is refused unread.
    """
    place = root.resolve()
    return [_finding(path, place) for path in paths]


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


def read_source(source: Source) -> tuple[Volume, Sequence[Dataset]]:
    """The source's volume in HU, and the headers of its slices (none for NIfTI).

    Raises GeometryError or IngestError as `read_series` and `read_nifti` do.
    """
    return _FORMATS[source.kind].read(source.files)


def _finding(path: Path, root: Path) -> Finding:
    try:
        if not _leads_to_a_file(path, root):
            return Finding(path)
        with reading(path):
            with path.open("rb") as file:
                start = file.read(START_BYTES)
            for kind, file_format in _FORMATS.items():
                if file_format.recognises(path, start):
                    return Finding(path, kind, file_format.key(path))
    except (IngestError, OSError) as error:
        return Finding(path, reason=str(error))
    return Finding(path)


def _leads_to_a_file(path: Path, root: Path) -> bool:
    """False for a link to a folder below the root, whose files are found at their own place.

    Raises IngestError for what is neither a regular file nor a link to one below the root.
    """
    if path.is_symlink():
        target = path.resolve()
        if not target.is_relative_to(root):
            raise IngestError(
                f"{path}: is a symbolic link that leads out of {root}; expected a file"
            )
        return not target.is_dir()
    return True


def _is_dicom(path: Path, start: bytes) -> bool:
    # What is called DICOM is taken for it, so that a damaged slice is refused, not passed over.
    return begins_as_dicom(start) or path.suffix.lower() in _DICOM_SUFFIXES


def _is_nifti(path: Path, _start: bytes) -> bool:
    return path.name.endswith((".nii", ".nii.gz"))


def _read_nifti(files: Sequence[Path]) -> tuple[Volume, Sequence[Dataset]]:
    return read_nifti(files[0]), []


# A file format is one line here and the functions that it names.
_FORMATS: dict[Kind, _Format] = {
    "nifti": _Format(_is_nifti, str, _read_nifti),
    "dicom": _Format(_is_dicom, series_uid, read_series),
}
