"""Bounds on reading one input file: its size, and in a worker process its time and memory too."""

from __future__ import annotations

import os
import resource
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType

from storage.errors import IngestError

__all__ = ["MAX_FILE_BYTES", "MAX_SECONDS", "OnFile", "advanced", "enable", "reading"]

MAX_FILE_BYTES = 1 << 30
MAX_SECONDS = 10.0  # without progress
# In all a file may take MAX_SECONDS and a second more for each of so many bytes: a fifth of the
# rate at which JPEG 2000, the slowest, is decoded.
_BYTES_PER_SECOND = 1_000_000
_OFTEN_S = 0.1  # enough for progress to be noted

OnFile = Callable[[Path | None], None]


class _TimeIsUp(BaseException):
    """No Exception, since decoders catch those to try the next plug-in."""


@dataclass
class _Watch:
    """What this process watches. Without on_file it keeps its signals and limits to itself."""

    on_file: OnFile | None = None
    path: Path | None = None
    began: float = 0.0
    noted: float = 0.0  # the last progress
    limit_s: float = 0.0  # in all

    def alarm(self, _signal: int, _frame: FrameType | None) -> None:
        if self.path is not None:
            raise _TimeIsUp

    def exceeded(self) -> str:
        """What the file in work took more than."""
        if time.monotonic() >= self.began + self.limit_s:
            return f"{self.limit_s:g} s"
        frame = " for one more frame" if self.noted > self.began else ""
        return f"{MAX_SECONDS:g} s{frame}"


_watch = _Watch()


def enable(on_file: OnFile) -> None:
    """From now on `reading` bounds time and memory in this process, and reports through on_file.

    on_file: called with a file's path when its reading begins and with None when it has ended, so
    that another process can name the file in work if this one dies or hangs in a C library.

    To be called in the main thread of a process that is made for reading: it takes SIGALRM over.
    """
    signal.signal(signal.SIGALRM, _watch.alarm)
    _watch.on_file = on_file


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Around all that touches one input file.

    Raises IngestError naming the file if it is no regular file or larger than MAX_FILE_BYTES,
    before it is opened: a FIFO would block for ever. In a process that called `enable`, also if
    the block goes on for MAX_SECONDS without a call of `advanced`, takes longer than the file's
    size allows, or more than MAX_FILE_BYTES of memory beyond what the process had (by RLIMIT_DATA,
    Linux only). Within another `reading` it adds no bound of its own.
    """
    size = _require_small_regular_file(path)
    nested = _watch.path is not None
    main = threading.current_thread() is threading.main_thread()
    if _watch.on_file is None or nested or not main:
        yield
        return
    try:
        with _watched(path, _watch.on_file, MAX_SECONDS + size / _BYTES_PER_SECOND):
            yield
    except _TimeIsUp:
        raise IngestError(
            f"{path}: takes more than {_watch.exceeded()} to read; expected a file that takes less"
        ) from None
    except MemoryError as error:
        raise IngestError(
            f"{path}: takes more than {MAX_FILE_BYTES} bytes of memory to read; expected less"
        ) from error


def advanced() -> None:
    """Say within `reading` that a part of the file is done, such as one frame of many: the clock
    begins anew, though not beyond what a file of that size may take in all."""
    if _watch.path is None or _watch.on_file is None:
        return
    now = time.monotonic()
    if now < _watch.noted + _OFTEN_S or threading.current_thread() is not threading.main_thread():
        return
    left = _watch.began + _watch.limit_s - now
    if left <= 0:
        raise _TimeIsUp
    _watch.noted = now
    _watch.on_file(_watch.path)
    signal.setitimer(signal.ITIMER_REAL, min(MAX_SECONDS, left), 1.0)


def _require_small_regular_file(path: Path) -> int:
    """Its size."""
    try:
        status = path.stat()
    except OSError as error:
        raise IngestError(f"{path}: cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise IngestError(f"{path}: is no regular file; expected one (no FIFO, device or folder)")
    if status.st_size > MAX_FILE_BYTES:
        raise IngestError(
            f"{path}: has {status.st_size} bytes; expected at most {MAX_FILE_BYTES} in one file"
        )
    return status.st_size


@contextmanager
def _watched(path: Path, on_file: OnFile, limit_s: float) -> Iterator[None]:
    """The clock runs, and memory is limited."""
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    _watch.path, _watch.limit_s = path, limit_s
    _watch.began = _watch.noted = time.monotonic()
    on_file(path)
    try:
        if sys.platform == "linux":
            ends = (_data_bytes() + MAX_FILE_BYTES, *limits)
            lowest = min(end for end in ends if end != resource.RLIM_INFINITY)
            resource.setrlimit(resource.RLIMIT_DATA, (lowest, limits[1]))
        # Again every second: a callback from C may swallow the exception.
        signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS, 1.0)
        yield
    finally:
        _watch.path = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_DATA, limits)
        on_file(None)


def _data_bytes() -> int:
    """What RLIMIT_DATA counts: the process's private writable memory."""
    pages = int(os.pread(_statm(), 200, 0).split()[5])
    return pages * resource.getpagesize()


@cache
def _statm() -> int:
    """Kept open: it is read for every file. (Only in a process of its own; nothing forks there.)"""
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
