"""Ingests that are killed, interrupted, doubled, or out of disk: the store is whole, always."""

from __future__ import annotations

import csv
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from ingesting import SHAPE, digests
from make_cohort import body_hu, write_dicom
from victims import run, start

from storage import ingest as module
from storage.errors import StoreError
from storage.ingest import Step, ingest
from storage.interrupts import uninterrupted
from storage.store import Store
from storage.workers import Workers

KILLS = 50


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest of three DICOM series and five NIfTI files, and a key."""
    root = tmp_path_factory.mktemp("cohort")
    lines = []
    for number in range(8):
        hu = body_hu(SHAPE, number)
        name = f"{number}.nii.gz" if number > 2 else str(number)
        if number > 2:
            nib.save(nib.Nifti1Image(hu.T, np.diag([-1.25, -1.5, 3.0, 1.0])), root / name)
        else:
            write_dicom(root / name, hu, patient=f"P{number}")
        lines.append((name, 1 + number % 2, "a"))
    with (root / "m.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "domain", "phase"), *lines])
    (root / "key").write_bytes(bytes(range(32)))
    (root / "key").chmod(0o600)
    return root


def kill_group(process: Any) -> None:
    with suppress(ProcessLookupError):  # it has not become a group's leader yet
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()
    # Its workers hold what they inherited, the lock too, until the last of them has died.
    deadline = time.monotonic() + 30
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.01)


def undisturbed(cohort: Path, store: Path) -> tuple[float, float]:
    """Seconds until the workers of an ingest work, and that they work."""
    started = time.monotonic()
    victim = start(cohort, store, method="fork")
    victim.wait_until(0)
    begun = time.monotonic()
    victim.process.join()
    return begun - started, time.monotonic() - begun


@pytest.mark.slow
class TestKills:
    def test_killed_at_50_moments_a_store_is_whole_and_a_rerun_completes_it(
        self, cohort: Path, tmp_path: Path, workers: Workers
    ) -> None:
        # Spawned workers take a second to start, which 50 ingests would mostly wait for: those of
        # four kills in five are forked.
        def kill(number: int) -> tuple[int, Path]:
            """Kill one ingest; the next one of this thread goes on with what is left."""
            store = stores.setdefault(threading.get_ident(), tmp_path / f"killed{number}")
            method = "fork" if number % 5 else "spawn"
            # Every third commits at the end only, the others after each volume.
            every_s = 0.0 if number % 3 else 10.0
            victim = start(cohort, store, commit_every_s=every_s, method=method)
            if number % 10 < 2:
                time.sleep(rng.uniform(0, start_s))
            else:
                victim.wait_until(int(rng.integers(0, 8)))
                time.sleep(rng.uniform(0, work_s / 8))
            kill_group(victim.process)
            there = {}
            if (store / "zarr.json").exists():
                assert Store.open(store).verify() == []
                there = digests(store)
            assert there.items() <= expected.items()
            if len(there) == len(expected):
                del stores[threading.get_ident()]
            return len(there), store

        rng = np.random.default_rng(5)
        stores: dict[int, Path] = {}
        with ThreadPoolExecutor(2) as threads:
            times = threads.map(lambda n: undisturbed(cohort, tmp_path / f"whole{n}"), range(2))
            start_s, work_s = next(times)
            expected = digests(tmp_path / "whole0")
            assert len(expected) == 8
            found = list(threads.map(kill, range(KILLS)))
        # The moments were neither all too early nor all too late to mean anything.
        assert any(0 < count < 8 for count, _ in found)
        for store in {store for _, store in found}:
            run(cohort, store, workers)
            assert digests(store) == expected
            assert Store.open(store).verify() == []
            arrays = [entry for entry in (store / "volumes").iterdir() if entry.is_dir()]
            assert len(arrays) == len(expected)

    def test_workers_end_with_a_killed_parent(self, cohort: Path, tmp_path: Path) -> None:
        victim = start(cohort, tmp_path / "s", commit_every_s=10.0)
        victim.wait_until(0)
        process = victim.process
        process.kill()
        process.join()
        deadline = time.monotonic() + 30
        with suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(process.pid, 0)
                time.sleep(0.1)
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)

    def test_a_killed_worker_costs_nothing(self, cohort: Path, tmp_path: Path) -> None:
        killed: list[int] = []

        def kill_one(step: Step) -> None:
            if step.report is not None and not killed:
                victims = multiprocessing.active_children()
                killed.extend(one.pid for one in victims if one.pid is not None)
                os.kill(killed[-1], signal.SIGKILL)

        with Workers(2) as workers:
            run(cohort, tmp_path / "s", workers, progress=kill_one)
        assert killed
        assert len(digests(tmp_path / "s")) == 8


class TestInterrupts:
    def test_what_was_done_is_kept(self, cohort: Path, tmp_path: Path, workers: Workers) -> None:
        def interrupt(step: Step) -> None:
            if step.series == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(cohort, tmp_path / "s", workers, progress=interrupt)
        assert len(digests(tmp_path / "s")) == 3
        arrays = [entry for entry in (tmp_path / "s" / "volumes").iterdir() if entry.is_dir()]
        assert len(arrays) == 3
        run(cohort, tmp_path / "s", workers)
        assert len(digests(tmp_path / "s")) == 8

    @pytest.mark.slow
    @pytest.mark.parametrize(("number", "group"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
    def test_ctrl_c_and_sigterm_end_the_command_cleanly(
        self, cohort: Path, tmp_path: Path, number: signal.Signals, group: bool
    ) -> None:
        command = [sys.executable, "-c", "from pmg.cli import main; main()", "ingest"]
        command += ["--manifest", str(cohort / "m.csv"), "--store", str(tmp_path / "s")]
        command += ["--key", str(cohort / "key"), "--workers", "1"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        ) as process:
            assert process.stdout is not None
            assert b"ingested" in process.stdout.readline()
            (os.killpg if group else os.kill)(process.pid, number)
            _, errors = process.communicate(timeout=60)
        assert process.returncode == 128 + number
        assert errors == b""
        assert 1 <= len(digests(tmp_path / "s")) < 8
        assert Store.open(tmp_path / "s").verify() == []
        assert (tmp_path / "s" / "ingest-report.parquet").exists()


class TestTwoAtOnce:
    def test_the_second_is_refused(self, cohort: Path, tmp_path: Path, workers: Workers) -> None:
        refusals: list[str] = []

        def start_second(step: Step) -> None:
            if step.series == 1 and not refusals:
                command = [sys.executable, "-c", _SECOND, str(cohort), str(tmp_path / "s")]
                second = subprocess.run(command, capture_output=True, text=True, check=False)
                refusals.append(second.stderr.strip().splitlines()[-1])

        run(cohort, tmp_path / "s", workers, progress=start_second)
        assert "is writing to this store; run again when it has ended" in refusals[0]
        assert len(digests(tmp_path / "s")) == 8


_SECOND = """
import sys
from pathlib import Path
from storage.ingest import ingest
cohort, store = map(Path, sys.argv[1:])
ingest(None, store, manifest=cohort / "m.csv", key_path=cohort / "key")
"""


class TestFullDisk:
    def test_what_was_committed_before_stays_and_the_error_is_clear(
        self, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_COMMIT_EVERY_S", 0.0)
        root = tmp_path / "in"
        root.mkdir()
        shutil.copy(cohort / "3.nii.gz", root / "1.nii.gz")
        large = body_hu((60, 160, 160), 3)
        nib.save(nib.Nifti1Image(large.T, np.diag([-1.25, -1.5, 3.0, 1.0])), root / "2.nii.gz")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            # Workers inherit it, and a file that grows beyond is refused as on a full disk.
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
            with pytest.raises(StoreError, match=r"volumes/series-.*not written"):
                ingest(root, tmp_path / "s", domain=1, key_path=cohort / "key", workers=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        store = Store.open(tmp_path / "s")
        assert len(store.rows) == 1
        assert store.verify() == []
        arrays = [entry for entry in (tmp_path / "s" / "volumes").iterdir() if entry.is_dir()]
        assert len(arrays) == 1


def test_signals_wait_for_a_commit() -> None:
    done = []

    def commit() -> None:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("committed")

    with pytest.raises(KeyboardInterrupt):
        commit()
    assert done == ["committed"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
