"""Bounds on reading one input file: its size, and in a worker process its time and memory too."""

from __future__ import annotations

import resource
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from storage.errors import IngestError

__all__ = ["MAX_FILE_BYTES", "MAX_SECONDS", "OnFile", "enable", "reading"]

MAX_FILE_BYTES = 1 << 30
MAX_SECONDS = 10.0

OnFile = Callable[[Path | None], None]


class _TimeIsUp(BaseException):
    """No Exception, since decoders catch those to try the next plug-in."""


@dataclass
class _Watch:
    """What this process watches. Without on_file it keeps its signals and limits to itself."""

    on_file: OnFile | None = None
    path: Path | None = None

    def alarm(self, _signal: int, _frame: FrameType | None) -> None:
        if self.path is not None:
            raise _TimeIsUp


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
    the block takes longer than MAX_SECONDS, or more than MAX_FILE_BYTES of memory beyond what the
    process had (by RLIMIT_DATA, Linux only). Within another `reading` it adds no bound of its own.
    """
    _require_small_regular_file(path)
    nested = _watch.path is not None
    main = threading.current_thread() is threading.main_thread()
    if _watch.on_file is None or nested or not main:
        yield
        return
    try:
        with _watched(path, _watch.on_file):
            yield
    except _TimeIsUp:
        raise IngestError(
            f"{path}: takes more than {MAX_SECONDS:g} s to read; expected a file that takes less"
        ) from None
    except MemoryError as error:
        raise IngestError(
            f"{path}: takes more than {MAX_FILE_BYTES} bytes of memory to read; expected less"
        ) from error


def _require_small_regular_file(path: Path) -> None:
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


@contextmanager
def _watched(path: Path, on_file: OnFile) -> Iterator[None]:
    """The clock runs, and memory is limited."""
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    _watch.path = path
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
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    return pages * resource.getpagesize()
