"""Writing that survives a crash: files replaced in one instant, folders synced, one writer."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.errors import StoreError

__all__ = ["locked", "replace_file", "sync_tree"]


def replace_file(path: Path, data: bytes) -> None:
    """Write `path` so that a crash leaves the old bytes or the new ones, never a mixture.

    One writer at a time (see `locked`). Raises StoreError when the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"{path}: not written ({error.strerror}); the old one stands") from error


def sync_tree(folder: Path) -> None:
    """Bring a new folder with all its files to the disk.

    Zarr renames its files into place without fsync; after a power cut they could be empty although
    a catalogue written later names them.
    """
    for parent, _, names in os.walk(folder):
        for name in names:
            with (Path(parent) / name).open("rb") as file:
                os.fsync(file.fileno())
        _sync_folder(Path(parent))
    _sync_folder(folder.parent)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The right to write in a folder. Raises StoreError at once while another writer has it.

    The lock is the kernel's (flock) and goes with the process that held it, however it died.
    """
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise StoreError(
                f"{folder}: process {file.read() or '?'} is writing to this store; "
                "run again when it has ended"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
