"""Worker processes that may die: each takes one item at a time, and a dead one names its file."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from ctypes import Array, c_char, c_double
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from storage import bounds

__all__ = ["Done", "Executor", "Lost", "Workers", "default_workers", "memory_limit"]

# Memory that a worker should have: twice what a CT of 1000 slices of 512 x 512 takes on a finer
# grid. A bound on the default number of workers, not on a worker.
_ROOMY_BYTES = 4 << 30
_MEMORY_SHARE = 0.85  # of the machine's memory, for all workers together

_POLL_S = 0.5
_GRACE_S = 2.0  # after the worker's own timer, which a C library can keep from running
_PATH_BYTES = 4096
_CONTEXT = multiprocessing.get_context("spawn")

# Read by libraries when they are loaded, and by the C library when the process begins.
_ENVIRONMENT = {
    # Parallel over series, not within them: threads of libraries would only wait for one another,
    # and their stacks count as memory.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "BLOSC_NTHREADS": "1",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
    # Memory of one volume is kept for the next: to get it from the kernel anew, page by page, took
    # a fifth of the time.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Lost:
    """In place of a result: the worker died or was ended. path: the file in work, if any."""

    path: Path | None
    reason: str


@dataclass(frozen=True)
class Done(Generic[Result]):
    """One item's outcome. index: of the item. worker: which one did it, from 0 on."""

    index: int
    result: Result | Lost
    worker: int
    seconds: float


class Executor(Protocol):
    """Does work on items somewhere else, within `storage.bounds`."""

    def map(
        self, work: Callable[[Item], Result], items: Iterable[Item]
    ) -> Generator[Done[Result], None, None]:
        """Outcomes as they come, in any order; an item whose worker died gives `Lost`.

        work: picklable, and so are the items and what it returns. What it raises ends the
        iteration. Items are taken one by one, when there is somebody to work on them; closing the
        iterator abandons those in work.
        """
        ...


class Workers:
    """Spawned processes of this machine, never forked: threads of libraries survive no fork.

    count: how many. memory_bytes: what each may have (RLIMIT_DATA, Linux); more raises MemoryError
    there.

    An item whose worker was killed from outside (SIGKILL, as the kernel does when memory is short)
    is given out once more; one whose worker crashed is not. A worker with one file in work for more
    than `bounds.MAX_SECONDS` is killed. Dead workers are replaced.
    """

    def __init__(self, count: int, memory_bytes: int | None = None) -> None:
        self._workers: list[_Worker | None] = [None] * count
        self._memory_bytes = memory_bytes

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for number in range(len(self._workers)):
            self._end(number)

    def map(
        self, work: Callable[[Item], Result], items: Iterable[Item]
    ) -> Generator[Done[Result], None, None]:
        fresh = enumerate(items)
        again: deque[tuple[int, Item]] = deque()
        retried: set[int] = set()
        busy: dict[int, tuple[int, Item]] = {}
        try:
            while True:
                for number in range(len(self._workers)):
                    if number not in busy:
                        task = again.popleft() if again else next(fresh, None)
                        if task is None:
                            break
                        self._give(number, work, task[1])
                        busy[number] = task
                if not busy:
                    return
                for number, answer in self._answers(busy):
                    index, item = busy.pop(number)
                    if isinstance(answer, _Died):
                        if answer.killed and index not in retried:
                            retried.add(index)
                            again.append((index, item))
                        else:
                            yield Done(index, answer.lost, number, 0.0)
                        continue
                    if isinstance(answer.result, _Raised):
                        raise answer.result.error
                    yield Done(index, answer.result, number, answer.seconds)
        finally:
            for number in busy:
                self._end(number)

    def _give(self, number: int, work: Callable[[Any], Any], item: object) -> None:
        """Hand an item to an idle worker, or to a new one in its place if it has died."""
        message = pickle.dumps((work, item), pickle.HIGHEST_PROTOCOL)
        worker = self._workers[number]
        if worker is not None:
            try:
                worker.pipe.send_bytes(message)
                return
            except OSError:
                self._end(number)
        worker = self._workers[number] = _Worker(self._memory_bytes)
        with suppress(OSError):  # dead already; `_answers` says so
            worker.pipe.send_bytes(message)

    def _answers(self, busy: Iterable[int]) -> Iterator[tuple[int, _Answer | _Died]]:
        """What the busy workers have to say after at most _POLL_S."""
        numbers = {worker.pipe: n for n in busy if (worker := self._workers[n]) is not None}
        for pipe in connection.wait(list(numbers), _POLL_S):
            number = numbers.pop(pipe)  # type: ignore[call-overload]
            worker = self._workers[number]
            assert worker is not None
            answer = worker.answer()
            if isinstance(answer, _Died):
                self._end(number)
            if answer is not None:
                yield number, answer
        for number in numbers.values():
            worker = self._workers[number]
            if worker is not None and (hung := worker.hung()) is not None:
                self._end(number)
                yield number, hung

    def _end(self, number: int) -> None:
        worker, self._workers[number] = self._workers[number], None
        if worker is not None:
            worker.end()


def default_workers() -> int:
    """One for each core of this process, and no more than there is memory for."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(cores, _machine_bytes() // _ROOMY_BYTES))


def memory_limit(workers: int) -> int:
    """Bytes that each of so many workers may have on this machine."""
    return int(_machine_bytes() * _MEMORY_SHARE) // workers


def _machine_bytes() -> int:
    """The machine's memory, or what a container leaves of it."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroup 2, cgroup 1
        with suppress(OSError, ValueError):  # not Linux, or "max"
            sizes.append(int((Path("/sys/fs/cgroup") / name).read_text(encoding="utf-8")))
    return min(sizes)


@dataclass(frozen=True)
class _Raised:
    error: Exception


@dataclass(frozen=True)
class _Answer:
    result: Any
    seconds: float


@dataclass(frozen=True)
class _Died:
    lost: Lost
    killed: bool  # from outside


class _Worker:
    """One process as its parent sees it."""

    def __init__(self, memory_bytes: int | None) -> None:
        self._began: Array[c_double] = _CONTEXT.RawArray(c_double, 1)
        self._path: Array[c_char] = _CONTEXT.RawArray(c_char, _PATH_BYTES)
        self._ready = False
        self.pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(
            target=_serve, args=(theirs, self._began, self._path, memory_bytes), daemon=True
        )
        # Ctrl-C goes to all processes of a terminal, and what it means the parent decides. Blocked
        # before the child begins, which would be hit while it starts; and the tracker before that,
        # since its start unblocks the signal.
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        environment = os.environ.copy()
        os.environ.update(_ENVIRONMENT)
        try:
            self._process.start()
        finally:
            os.environ.clear()
            os.environ.update(environment)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()

    def answer(self) -> _Answer | _Died | None:
        """What it has sent; None if that is no answer yet."""
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            return self._death()
        if not self._ready:
            self._ready = True
            return None
        return answer  # type: ignore[no-any-return]

    def hung(self) -> _Died | None:
        began, path = self._began[0], self._file()
        if path is None or time.monotonic() - began < bounds.MAX_SECONDS + _GRACE_S:
            return None
        reason = (
            f"{path}: takes more than {bounds.MAX_SECONDS:g} s to read; expected a file that takes "
            "less"
        )
        return _Died(Lost(path, reason), killed=False)

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()

    def _file(self) -> Path | None:
        return Path(os.fsdecode(self._path.value)) if self._began[0] else None

    def _death(self) -> _Died:
        code = self._process.exitcode or 0
        killed = code == -signal.SIGKILL
        if not self._ready and not killed:
            raise RuntimeError(
                f"a worker process ended with exit code {code} before it had begun; a script that "
                "ingests must do so below `if __name__ == '__main__':`"
            )
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        path = self._file()
        if killed:
            doubt = " twice (is there too little memory? use fewer workers)"
            reason = f"the process that worked on it was ended by {cause}{doubt}"
        else:
            reason = f"the process that read it ended by {cause}; expected a file that can be read"
        return _Died(Lost(path, f"{path}: {reason}" if path else reason), killed)


def _serve(
    pipe: connection.Connection[Any, Any],
    began: Array[c_double],
    path: Array[c_char],
    memory_bytes: int | None,
) -> None:
    """A worker's life."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Nothing forks here; but the locks that libraries make would otherwise have names, and outlive
    # a process that is killed.
    multiprocessing.set_start_method("fork", force=True)
    if memory_bytes is not None and sys.platform == "linux":
        limits = resource.getrlimit(resource.RLIMIT_DATA)
        lowest = min(end for end in (memory_bytes, *limits) if end != resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_DATA, (lowest, limits[1]))

    def on_file(file: Path | None) -> None:
        began[0] = 0.0
        if file is not None:
            path.value = os.fsencode(file)[: _PATH_BYTES - 1]
            began[0] = time.monotonic()

    bounds.enable(on_file)
    pipe.send("ready")
    while True:
        try:
            work, item = pipe.recv()
        except EOFError:
            return
        started = time.monotonic()
        try:
            result = work(item)
        except Exception as error:
            result = _Raised(error)
        pipe.send(_Answer(result, time.monotonic() - started))


def _end_with_parent() -> None:
    """A killed parent leaves nobody behind, not even one that is busy."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
