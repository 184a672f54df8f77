"""Worker processes: one that dies, hangs or asks for too much costs its item and nothing else."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage import bounds, workers
from storage.bounds import reading
from storage.errors import IngestError, StoreError
from storage.workers import Done, Lost, Workers, default_workers, memory_limit


@pytest.fixture(scope="module")
def pool() -> Iterator[Workers]:
    with Workers(2, memory_bytes=2 << 30) as pool:
        yield pool


def outcomes(pool: Workers, work: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    """Results in the order of the items."""
    done: list[Done[Any]] = sorted(pool.map(work, items), key=lambda one: one.index)
    assert [one.index for one in done] == list(range(len(items)))
    return [one.result for one in done]


def square(number: int) -> int:
    return number * number


def act(what: str) -> str:
    """What hostile files make of a process."""
    if what == "crash":
        ctypes.string_at(0)
    elif what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "exit":
        os._exit(3)
    elif what == "memory":
        return str(np.ones(3 << 30, np.uint8).sum())
    elif what.startswith("once"):
        path = Path(what.removeprefix("once "))
        if not path.exists():
            path.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return what


def act_on(task: tuple[Path, str]) -> str:
    path, what = task
    with reading(path):
        if what == "hang":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # as a C library would
            time.sleep(60)
        return act(what)


def remembered(error: type[Exception]) -> None:
    raise error("of the work")


def process(_: int) -> int:
    return os.getpid()


def environment(_: int) -> str | None:
    return os.environ.get("OMP_NUM_THREADS")


class TestOutcomes:
    def test_every_item_has_its_result(self, pool: Workers) -> None:
        assert outcomes(pool, square, list(range(50))) == [n * n for n in range(50)]
        assert outcomes(pool, square, []) == []

    def test_all_workers_work_in_other_processes_than_this_one(self, pool: Workers) -> None:
        done = list(pool.map(process, range(40)))
        assert {one.worker for one in done} == {0, 1}
        assert len({one.result for one in done}) == 2
        assert os.getpid() not in {one.result for one in done}
        assert outcomes(pool, environment, [0]) == ["1"]

    def test_items_are_taken_when_there_is_a_worker_for_them(self, pool: Workers) -> None:
        taken = []

        def items() -> Iterator[int]:
            for number in range(20):
                taken.append(number)
                yield number

        for count, _ in enumerate(pool.map(square, items())):
            assert len(taken) <= count + 3

    def test_what_the_work_raises_is_raised_here(self, pool: Workers) -> None:
        with pytest.raises(StoreError, match="of the work"):
            outcomes(pool, remembered, [StoreError])
        assert outcomes(pool, square, [3]) == [9]


class TestDeaths:
    @pytest.mark.parametrize(
        ("what", "cause"),
        [("crash", "SIGSEGV"), ("exit", "exit code 3"), ("killed", "SIGKILL twice")],
    )
    def test_a_dead_worker_costs_its_item_alone(self, pool: Workers, what: str, cause: str) -> None:
        results = outcomes(pool, act, ["a", what, "b", "c"])
        assert results[0] == "a"
        assert results[2:] == ["b", "c"]
        assert isinstance(results[1], Lost)
        assert results[1].path is None
        assert cause in results[1].reason

    def test_the_file_in_work_is_named(self, pool: Workers, tmp_path: Path) -> None:
        path = tmp_path / "Jürgen 1.dcm"
        path.write_bytes(b"x")
        crashed, fine = outcomes(pool, act_on, [(path, "crash"), (path, "fine")])
        assert fine == "fine"
        assert crashed.path == path
        assert crashed.reason.startswith(f"{path}: ")

    def test_a_worker_that_was_killed_once_gets_its_item_again(
        self, pool: Workers, tmp_path: Path
    ) -> None:
        item = f"once {tmp_path / 'mark'}"
        assert outcomes(pool, act, [item, "a"]) == [item, "a"]

    def test_a_file_that_hangs_in_a_library_is_given_up(
        self, pool: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bounds, "MAX_SECONDS", 0.5)
        monkeypatch.setattr(workers, "_GRACE_S", 0.2)
        path = tmp_path / "a.dcm"
        path.write_bytes(b"x")
        hung, fine = outcomes(pool, act_on, [(path, "hang"), (path, "fine")])
        assert fine == "fine"
        assert hung.path == path
        assert "takes more than 0.5 s" in hung.reason

    def test_memory_has_a_bound(self, pool: Workers) -> None:
        with pytest.raises(MemoryError):
            outcomes(pool, act, ["memory"])
        assert outcomes(pool, act, ["a"]) == ["a"]

    def test_abandoned_items_end_with_their_workers(self, pool: Workers) -> None:
        stream = pool.map(time.sleep, [0, 60])
        next(stream)
        started = time.monotonic()
        stream.close()
        assert outcomes(pool, square, [2]) == [4]
        assert time.monotonic() - started < 30


def test_the_default_leaves_every_worker_room() -> None:
    count = default_workers()
    assert 1 <= count <= (os.cpu_count() or 1)
    assert memory_limit(count) * count < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_file_that_is_too_slow_is_refused_by_its_own_worker(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(b"x")
    with Workers(1) as pool, pytest.raises(IngestError, match=r"a\.dcm: takes more than"):
        outcomes(pool, slow_on, [path])


def slow_on(path: Path) -> None:
    bounds.MAX_SECONDS = 0.2
    with reading(path):
        time.sleep(60)
