"""What a run leaves for people, through a job's log: `python -m launch.archive FOLDER`.

A job server carries nothing back but what its jobs print. The files therefore travel as a
compressed tar in lines of base64 that begin with a mark, so that other output does no harm.
"""

from __future__ import annotations

import base64
import io
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import click

from launch.access import AccessError

__all__ = ["ArchiveReader", "files_of", "send"]

_MARK = "pmg-archive:"
_LINE_BYTES = 12_000  # base64 of it is below 20,000 characters, where Ray breaks lines
# Of a run's or an evaluation's folder: all but what only resuming needs.
_LEFT_OUT = ("checkpoints", "ray", "lock", "stop", "dicom", ".partial")
_LEFT_OUT_SUFFIXES = (".nii.gz", ".dcm", ".partial")


class ArchiveReader:
    """The receiving side: feed it what the job prints, then extract."""

    def __init__(self) -> None:
        self._rest = ""
        self._received = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the reader

    def feed(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.startswith(_MARK):
                self._received.write(base64.b64decode(line.removeprefix(_MARK)))

    def extract(self, out: Path) -> list[Path]:
        """Write the files below `out`, and nothing that is no plain file.

        Raises AccessError, with nothing written, where a name leads out of it.
        """
        self._received.seek(0)
        with tarfile.open(fileobj=self._received, mode="r:gz") as archive:
            # Not extractall, whose filter Python 3.11.2, that of Debian 12, does not have.
            files = {out / member.name: member for member in archive if member.isfile()}
            for path, member in files.items():
                if not path.resolve().is_relative_to(out.resolve()):
                    raise AccessError(
                        f"archive of the job: {member.name}: lies outside of {out}; "
                        f"nothing was written; is the cluster the right one?"
                    )
            for path, member in files.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                content = archive.extractfile(member)
                assert content is not None
                with content, path.open("wb") as file:
                    shutil.copyfileobj(content, file)
        return sorted(files)


def files_of(folder: Path) -> list[Path]:
    """Files for people, below a folder: reports, tables, panels, model, configuration, logs.

    Not the checkpoints, nor translated images, which may be terabytes and are fetched from the
    shared disk.
    """
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and not set(_LEFT_OUT) & set(path.relative_to(folder).parts)
        and not path.name.endswith(_LEFT_OUT_SUFFIXES)
        and not path.name.startswith(".")
    )


def send(folder: Path, out: BinaryIO) -> None:
    """Write the folder's files as marked lines."""
    lines = _Lines(out)
    with tarfile.open(fileobj=lines, mode="w|gz") as archive:
        for path in files_of(folder):
            archive.add(path, path.relative_to(folder), recursive=False)
    lines.flush()


class _Lines(io.RawIOBase):
    """A stream that writes what it is given as lines of base64."""

    def __init__(self, out: BinaryIO) -> None:
        self._out, self._waiting = out, bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        self._waiting += data
        for line in self._full():
            self._out.write(_line(line))
        return len(data)

    def flush(self) -> None:
        if self._waiting:
            self._out.write(_line(bytes(self._waiting)))
            self._waiting.clear()
        self._out.flush()

    def _full(self) -> Iterator[bytes]:
        while len(self._waiting) >= _LINE_BYTES:
            yield bytes(self._waiting[:_LINE_BYTES])
            del self._waiting[:_LINE_BYTES]


def _line(data: bytes) -> bytes:
    return _MARK.encode() + base64.b64encode(data) + b"\n"


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    """Print the reports, tables and the model below FOLDER, for `pmg job fetch` to read."""
    send(folder, sys.stdout.buffer)


if __name__ == "__main__":
    main()
