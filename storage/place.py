"""Where a store lies: files by name, read, replaced in one instant, and locked for one writer."""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import shutil
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from storage.durable import make_folders, replace_file, replacing_file
from storage.errors import StoreCorrupt, StoreError, StoreMissing

if TYPE_CHECKING:
    from zarr.storage import LocalStore

__all__ = ["SMALL", "LocalPlace", "Place", "checked", "refuse_large"]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
SMALL = 16 * 2**20  # bytes; far more than any file of a store but its catalogue and shards has
_OPEN_FILES = 256  # kept open by a place; a process usually may have 1024


class Place(ABC):
    """A folder of a local disk or a prefix of an object store; `str` names it in messages.

    `name` is relative to it, its parts separated by '/'. A name that leads elsewhere (`..`, an
    absolute path, a symbolic link out of the folder) raises StoreCorrupt, a file that is not there
    StoreMissing; whatever else the disk or the server refuses raises StoreError. Both name the
    file. Safe to share between threads, and picklable; not for use across a fork.
    """

    @staticmethod
    def of(where: str | os.PathLike[str] | Place) -> Place:
        """`where` is a path or `s3://bucket/prefix`. Nothing is opened or made yet."""
        if isinstance(where, Place):
            return where
        text = os.fspath(where)
        if text.startswith("s3:"):
            from storage.s3 import S3Place  # noqa: PLC0415  it takes a while; most stores are local

            return S3Place(text)
        if _URL.match(text):
            raise StoreError(f"{text.partition(':')[0]}:...: expected a path or s3://bucket/prefix")
        return LocalPlace(Path(text))

    @property
    @abstractmethod
    def address(self) -> str:
        """What `of` opens the same place by, from any working directory."""

    @property
    @abstractmethod
    def zarr_store(self) -> Any:
        """This place, read-only, as zarr takes it for `store`."""

    def read(self, name: str, *, limit: int = SMALL) -> bytes:
        """The whole file. Raises StoreCorrupt, and reads nothing, when it is larger than `limit`
        bytes."""
        return self.read_version(name, limit=limit)[0]

    @abstractmethod
    def read_version(self, name: str, *, limit: int = SMALL) -> tuple[bytes, str]:
        """The file as `read` gives it and the mark of this version of it, for `replace`."""

    @abstractmethod
    def read_ranges(
        self,
        name: str,
        starts: Sequence[int],
        lengths: Sequence[int],
        scratch: memoryview | None = None,
    ) -> Sequence[Any]:
        """One buffer of `length` bytes for each range. Raises StoreCorrupt for a file that is
        shorter. The file is taken to be immutable: it may be kept open.

        scratch: memory for all ranges that the buffers may be parts of, until it is used again.
        """

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes."""

    @abstractmethod
    def replace(self, name: str, data: bytes, *, expected: str | None = None) -> str:
        """Write the file, durably and in one instant, and return the mark of the new version.

        Raises StoreError, and leaves the file as it was, when it is not in the version `expected`
        any more.
        """

    @contextmanager
    def replacing(self, name: str) -> Iterator[BinaryIO]:
        """`replace` for what is written piece by piece: the file is there when the block has ended
        without an error."""
        memory = BytesIO()
        yield memory
        self.replace(name, memory.getvalue())

    @abstractmethod
    def list(self, folder: str = "") -> Iterator[str]:
        """Names of the files and (with '/' at the end) folders right in `folder`; none if it is
        not there. They are names that the other methods take."""

    @abstractmethod
    def remove_tree(self, folder: str) -> None:
        """Remove all that is under `folder`, if there is any."""

    @abstractmethod
    def locked(self) -> AbstractContextManager[None]:
        """The right to write. Raises StoreError at once while another process has it."""


class LocalPlace(Place):
    """A folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # Immutable files stay open: opening one costs as much as reading a chunk. The last thread
        # that lets go of a descriptor closes it. (No bound method: a cycle would keep it open.)
        self._file = lru_cache(maxsize=_OPEN_FILES)(partial(_open, root))

    def __str__(self) -> str:
        return str(self.root)

    def __reduce__(self) -> tuple[type[LocalPlace], tuple[Path]]:
        return LocalPlace, (self.root,)

    @property
    def address(self) -> str:
        return str(self.root.resolve())

    @property
    def zarr_store(self) -> LocalStore:
        from zarr.storage import LocalStore  # noqa: PLC0415  45 MB that a stream doesn't need

        return LocalStore(self.root, read_only=True)

    def read_version(self, name: str, *, limit: int = SMALL) -> tuple[bytes, str]:
        file = _open(self.root, name)
        status = os.fstat(file.descriptor)
        refuse_large(str(file.path), status.st_size, limit)
        return file.read(0, status.st_size, status.st_size), _version(status)

    def read_ranges(
        self,
        name: str,
        starts: Sequence[int],
        lengths: Sequence[int],
        scratch: memoryview | None = None,
    ) -> Sequence[bytes | memoryview]:
        file, size = self._current(name)
        if scratch is None:
            return [file.read(a, n, size) for a, n in zip(starts, lengths, strict=True)]
        ends = list(itertools.accumulate(lengths))
        buffers = [scratch[end - n : end] for end, n in zip(ends, lengths, strict=True)]
        for start, buffer in zip(starts, buffers, strict=True):
            file.read_into(buffer, start, size)
        return buffers

    def size(self, name: str) -> int:
        return self._current(name)[1]

    def replace(self, name: str, data: bytes, *, expected: str | None = None) -> str:
        path = self._path(name)
        if expected is not None and not (path.exists() and expected == _version(path.stat())):
            raise StoreError(f"{path}: another process has replaced it; run again")
        make_folders(path.parent)
        replace_file(path, data)
        return _version(path.stat())

    @contextmanager
    def replacing(self, name: str) -> Iterator[BinaryIO]:
        path = self._path(name)
        make_folders(path.parent)
        with replacing_file(path) as file:
            yield file

    def list(self, folder: str = "") -> Iterator[str]:
        path = self._path(folder) if folder else self.root
        if not path.exists():
            return
        prefix = f"{folder}/" if folder else ""
        with os.scandir(path) as entries:
            for entry in entries:
                yield f"{prefix}{entry.name}{'/' if entry.is_dir() else ''}"

    def remove_tree(self, folder: str) -> None:
        parent, _, last = checked(folder).rpartition("/")
        path = (self._path(parent) if parent else self.root) / last
        try:
            if path.is_symlink():
                path.unlink()
            elif path.exists():
                shutil.rmtree(path)
        except OSError as error:
            raise StoreError(f"{path}: not removed ({error.strerror})") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The lock is the kernel's (flock) and goes with the process that held it, however it
        died."""
        make_folders(self.root)
        with (self.root / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise StoreError(
                    f"{self}: process {file.read() or '?'} is writing to this store; "
                    "run again when it has ended"
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def _path(self, name: str) -> Path:
        return _inside(self.root, name)

    def _current(self, name: str) -> tuple[_File, int]:
        """The open file that has this name now, and its size."""
        file = self._file(name)
        try:
            status = os.stat(file.path)
            same = (status.st_dev, status.st_ino) == file.identity
        except OSError:
            same = False
        if not same:  # deleted or replaced, which no writer does
            self._file.cache_clear()
            file = self._file(name)
            status = os.fstat(file.descriptor)
        return file, status.st_size


class _File:
    """A descriptor for reading that is closed when nobody refers to it any more."""

    def __init__(self, path: Path) -> None:
        self.descriptor = -1
        self.path = path
        # Not blocking: a pipe in a file's place would wait for its writer.
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(self.descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise StoreCorrupt(f"{path}: is not a file")
        self.identity = (status.st_dev, status.st_ino)

    def read(self, start: int, length: int, size: int) -> bytes:
        """size: of the file. Nothing is allocated for what lies beyond it."""
        if start + length > size:
            raise self._truncated(size, start + length)
        out = bytearray(length)
        self.read_into(memoryview(out), start, size)
        return bytes(out)

    def read_into(self, out: memoryview, start: int, size: int) -> None:
        """Fill `out` with the bytes from `start` on."""
        end = start + len(out)
        try:
            while start < end <= size:
                count = os.preadv(self.descriptor, [out], start)  # at most 2 GiB a call
                if not count:
                    break  # truncated at this moment
                start, out = start + count, out[count:]
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be read ({error.strerror})") from error
        if start < end:
            raise self._truncated(size, end)

    def _truncated(self, size: int, end: int) -> StoreCorrupt:
        return StoreCorrupt(f"{self.path}: truncated; has {size} bytes, expected {end} or more")

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def _inside(root: Path, name: str) -> Path:
    path = root / checked(name)
    if not path.resolve().is_relative_to(root.resolve()):
        raise StoreCorrupt(f"{path}: this path leads out of the store")
    return path


def _open(root: Path, name: str) -> _File:
    path = _inside(root, name)
    try:
        return _File(path)
    except FileNotFoundError as error:
        raise StoreMissing(f"{path}: the file is missing") from error
    except OSError as error:
        raise StoreError(f"{path}: cannot be opened ({error.strerror})") from error


def _version(status: os.stat_result) -> str:
    return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"


def checked(name: str) -> str:
    """The name. Raises StoreCorrupt for one that leads out of the place."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        raise StoreCorrupt(f"{name!r}: this path leads out of the store")
    return name


def refuse_large(path: str, size: int, limit: int) -> None:
    """Raises StoreCorrupt for a file of more than `limit` bytes."""
    if size > limit:
        raise StoreCorrupt(f"{path}: has {size} bytes; expected at most {limit}")
