"""Writers that are killed, that meet, that sleep, and that find the disk full."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from make_cohort import SHAPE, body_hu, stage, two_volumes
from tampering import files
from writers import add_volumes, locked_within, stage_and_wait

import storage.s3
from storage.errors import StoreError
from storage.place import Place
from storage.store import Store

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def store(place: Place) -> Store:
    return two_volumes(place)


def volume_ids(place: Place) -> list[str]:
    ids: list[str] = Store.open(place).rows.column("volume_id").tolist()
    return ids


def arrays(place: Place) -> set[str]:
    return {name.rstrip("/") for name in place.list("volumes") if name.endswith("/")}


def assert_nothing_is_left_over(store: Store) -> None:
    store = Store.open(store.place)
    assert arrays(store.place) == set(store.rows.column("array_path"))
    assert store.verify() == []


class TestKilled:
    def test_between_stage_and_commit(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(storage.s3, "LOCK_STALE_S", 1)
        pipe, child = SPAWN.Pipe()
        process = SPAWN.Process(target=stage_and_wait, args=(store.place, child))
        process.start()
        array_path = pipe.recv()
        process.kill()
        process.join()
        assert files(store.place, array_path)
        assert volume_ids(store.place) == ["v1", "v2"]
        assert store.verify() == []
        with locked_within(store.place, 20):
            pass
        with store.writer() as writer:
            assert not files(store.place, array_path)
            writer.commit([stage(writer, body_hu(SHAPE, 5))])
        assert volume_ids(store.place) == ["new", "v1", "v2"]
        assert_nothing_is_left_over(store)

    @pytest.mark.slow
    def test_at_any_moment(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(storage.s3, "LOCK_STALE_S", 1)
        rng = np.random.default_rng(4)
        told, number = ["v1", "v2"], 0
        for _ in range(5):
            started, (pipe, child) = SPAWN.Event(), SPAWN.Pipe()
            names = [f"k{number + index:03d}" for index in range(100)]
            process = SPAWN.Process(target=add_volumes, args=(store.place, names, started, child))
            process.start()
            started.set()
            told.append(pipe.recv())
            time.sleep(rng.uniform(0, 0.5))
            process.kill()
            process.join()
            told += messages(pipe, child)
            there = volume_ids(store.place)
            # What was told to be there is; at most the one in work is there untold.
            assert set(told) <= set(there)
            assert len(there) <= len(told) + 1
            assert Store.open(store.place).verify() == []
            told, number = there, number + 100
            with locked_within(store.place, 20):
                pass
        with store.writer():
            pass
        assert_nothing_is_left_over(store)


class TestTwoAtOnce:
    def test_each_completes_or_is_refused_clearly(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started = SPAWN.Event()
        pipes, processes = [], []
        for letter in "ab":
            names = [f"{letter}{index}" for index in range(5)]
            pipe, child = SPAWN.Pipe()
            process = SPAWN.Process(target=add_volumes, args=(store.place, names, started, child))
            process.start()
            processes.append(process)
            pipes.append((names, pipe, child))
        time.sleep(1)  # both have imported what they need
        started.set()
        expected = {"v1", "v2"}
        for process, (names, pipe, child) in zip(processes, pipes, strict=True):
            process.join()
            *added, last = messages(pipe, child)
            assert last == "done" or ("writ" in last and "store" in last)
            assert added == (names if last == "done" else [])
            expected |= set(added)
        assert len(expected) >= 7
        assert set(volume_ids(store.place)) == expected
        assert_nothing_is_left_over(store)

    def test_one_that_slept_until_it_was_taken_for_dead_commits_nothing(
        self, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(storage.s3, "LOCK_STALE_S", 1)
        store = two_volumes(Place.of(f"{s3_bucket}/slept-place"))
        pipe, child = SPAWN.Pipe()
        process = SPAWN.Process(target=stage_and_wait, args=(store.place, child))
        process.start()
        array_path = pipe.recv()
        os.kill(process.pid or 0, signal.SIGSTOP)
        try:
            with locked_within(store.place, 20):
                pass
            with store.writer():
                assert not files(store.place, array_path)
            os.kill(process.pid or 0, signal.SIGCONT)
            pipe.send("commit now")
            assert "another process has replaced it" in pipe.recv()
            process.join()
        finally:
            process.kill()
        assert volume_ids(store.place) == ["v1", "v2"]
        assert_nothing_is_left_over(store)


class TestFullDisk:
    def test_a_volume_that_does_not_fit_leaves_nothing(self, tmp_path: Path) -> None:
        with small_disk(tmp_path / "disk", 4 * 2**20) as disk:
            store = two_volumes(Place.of(disk / "store"))
            rng = np.random.default_rng(0)
            with store.writer() as writer:
                before = files(store.place)
                noise = rng.integers(-1000, 1000, (80, 200, 200), dtype=np.int16)
                with pytest.raises(StoreError, match=r"volumes/new-.*not written \(No space left"):
                    stage(writer, noise)
                assert files(store.place) == before
                writer.commit([stage(writer, body_hu(SHAPE, 3))])
            assert volume_ids(store.place) == ["new", "v1", "v2"]
            assert_nothing_is_left_over(store)

    def test_a_catalogue_that_does_not_fit_leaves_the_old_one(self, tmp_path: Path) -> None:
        with small_disk(tmp_path / "disk", 4 * 2**20) as disk:
            store = two_volumes(Place.of(disk / "store"))
            with store.writer() as writer:
                row = stage(writer, body_hu(SHAPE, 3))
                with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
                    while True:
                        ballast.write(bytes(1024))
                with pytest.raises(StoreError, match=r"catalogue\.parquet: not written \(No space"):
                    writer.commit([row])
                assert volume_ids(store.place) == ["v1", "v2"]
                (disk / "ballast").unlink()
                writer.commit([row])
            assert volume_ids(store.place) == ["new", "v1", "v2"]
            assert_nothing_is_left_over(store)

    def test_a_file_size_limit_is_like_a_full_disk(self, tmp_path: Path) -> None:
        store = two_volumes(Place.of(tmp_path / "store"))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        with store.writer() as writer:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
            try:
                with pytest.raises(StoreError, match=r"volumes/new-.*not written"):
                    stage(writer, body_hu(SHAPE, 5))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert_nothing_is_left_over(store)


def messages(pipe: Connection, child: Connection) -> list[str]:
    """What a process had sent before it ended."""
    child.close()
    sent = []
    with suppress(EOFError):
        while True:
            sent.append(pipe.recv())
    return sent


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A disk of its own of so many bytes; needs the right to mount, which root usually has."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no right to mount a small disk: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
