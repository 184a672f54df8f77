"""Writing that survives a crash: files replaced in one instant, folders synced."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from storage.errors import StoreError

__all__ = ["make_folders", "replace_file", "replacing_file"]


def replace_file(path: Path, data: bytes) -> None:
    """Write `path` so that a crash leaves the old bytes or the new ones, never a mixture.

    One writer of this file at a time. Raises StoreError when the disk refuses.
    """
    with replacing_file(path) as file:
        file.write(data)


@contextmanager
def replacing_file(path: Path) -> Iterator[BinaryIO]:
    """`replace_file` for what is written piece by piece: the file is at its path when the block
    has ended without an error, and as it was before that."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(
            f"{path}: not written ({error.strerror}); the store stays as it was"
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_folders(path: Path) -> None:
    """The folder and its missing parents, so that a power cut does not take them away again.

    Raises StoreError when the disk refuses.
    """
    if path.is_dir():
        return
    make_folders(path.parent)
    try:
        path.mkdir(exist_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise StoreError(f"{path}: not made ({error.strerror})") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
