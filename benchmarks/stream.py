"""Patches per second of the stream beside its peers, in one run on the same volumes.

    python -m benchmarks.stream [--quick] [--patches 32x64x64 ...] [--seconds 0.5] [--rounds 3]

Volumes of 192x384x384 are made in a temporary folder, in every reader's format, and read from the
page cache. Each reader runs in processes of its own, of one thread unless it says otherwise; all
deliver collated batches of 32 patches, and readers that reuse what they read take 16 patches of it.
They take turns, so that a noisy moment does not hit one alone (readers of large patches do not:
their memory is limited); the median of the rounds counts.
What other work on the same cores does to a reader shows in its patches per second, but hardly in
its patches per second of its own CPU time.

amplification: voxels decoded for each one delivered. same volume, same read: share of the pairs of
patches in a batch that are of one volume, and that came from one read of (a part of) it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.cohort import Cohort, add_format, make_cohort
from benchmarks.demo_wait import report_wait
from benchmarks.readers import BATCH, LARGE, READERS, Seen
from benchmarks.remote import report_remote
from benchmarks.start_up import report_start_up

Index = tuple[int, int, int]

# What the stream is to reach, one process and one thread: (its reader, other reader, ratio).
_ASKED: dict[str, tuple[tuple[str, str, float], ...]] = {
    "32x64x64": (
        ("stream", "memmap (limit)", 0.35),
        ("stream", "blosc2, as nnU-Net", 3),
        ("stream", "MONAI PersistentDataset", 6),
        ("stream", "TorchIO Queue", 40),
        ("stream", "zarrs, one thread", 12),
        ("stream, 2 threads", "zarrs, all cores", 12),
    ),
    "1x128x128": (
        ("stream", "memmap (limit)", 0.15),
        ("stream", "blosc2, as nnU-Net", 3),
        ("stream", "MONAI PersistentDataset", 20),
    ),
}
_ASKED_OF_ALL = (("stream, cohort in memory", "MONAI CacheDataset", 1),)
# The same of voxels decoded, beside the same chunks decoded from memory into one buffer.
_BARE, _ASKED_OF_BARE = "blosc decode, bytes in memory (limit)", 0.7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round, smaller volumes")
    parser.add_argument(
        "--patches", nargs="+", default=["1x128x128", "32x64x64", "64x128x128"], metavar="DxHxW"
    )
    parser.add_argument("--seconds", type=float, default=0.5, help="per reader and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--readers", nargs="+", default=list(READERS), metavar="NAME")
    parser.add_argument("--volumes", type=int, default=4)
    parser.add_argument("--shape", default="192x384x384", metavar="DxHxW")
    parser.add_argument("--only-readers", action="store_true", help="leave the last sections out")
    arguments = parser.parse_args()
    shape = _shape("96x256x256" if arguments.quick else arguments.shape)
    volumes = 4 if arguments.quick else arguments.volumes
    seconds = 0.5 if arguments.quick else arguments.seconds
    rounds = 1 if arguments.quick else arguments.rounds
    with tempfile.TemporaryDirectory(prefix="pmg-stream-") as folder:
        cohort = make_cohort(Path(folder), volumes, shape)
        stored = cohort.count * 2 * np.prod(shape) / _size(cohort.folder / "store")
        print(f"# `python -m benchmarks.stream`, {datetime.now(UTC):%Y-%m-%d}\n")
        print(
            f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
            f"{_versions()}; {volumes} volumes of {'x'.join(map(str, shape))}, "
            f"stored at a ratio of {stored:.2f}; load at the start {os.getloadavg()[0]:.1f}.\n"
        )
        names = _available(cohort, arguments.readers)
        for text in arguments.patches:
            print(f"## {text}\n", flush=True)
            _compare(cohort, names, text, seconds, rounds)
        if not arguments.only_readers:
            report_remote(cohort, seconds, rounds)
            report_wait(cohort)
            report_start_up(Path(folder) / "many", 10_000 if arguments.quick else 100_000)


def _compare(cohort: Cohort, names: Sequence[str], text: str, seconds: float, rounds: int) -> None:
    patch = _shape(text)
    # Readers of large patches run one after the other: together they need more than 20 GB.
    together = [[name] for name in names] if np.prod(patch) >= LARGE else [names]
    rates: dict[str, list[tuple[Pace, Pace]]] = {}
    seen: dict[str, list[Seen]] = {}
    for some in together:
        _run(cohort, some, patch, seconds, rounds, rates, seen)
    alone = {
        name: Pace(*(statistics.median(p) for p in zip(*(one for one, _ in found), strict=True)))
        for name, found in rates.items()
    }
    decoded = {name: statistics.mean(batch.decoded for batch in seen[name]) for name in names}
    print(
        "| reader | patches/s | per CPU s | of memmap | 2 processes | amplification "
        "| same volume | same read |"
    )
    print("|---|---|---|---|---|---|---|---|")
    limit = alone.get("memmap (limit)", Pace(float("nan"), float("nan")))
    for name in names:
        gain = statistics.median(two.wall / one.wall for one, two in rates[name])
        batches = seen[name]
        same = [_same(batch.volumes) for batch in batches]
        reads = [_same(batch.reads) for batch in batches]
        print(
            f"| {name} | {alone[name].wall:.0f} | {alone[name].cpu:.0f} | "
            f"{alone[name].cpu / limit.cpu:.3f} | x{gain:.2f} | {decoded[name]:.2f} | "
            f"{statistics.mean(same):.3f} | {statistics.mean(reads):.3f} |"
        )
    print()
    for ours, other, asked in (*_ASKED.get(text, ()), *_ASKED_OF_ALL):
        if ours in alone and other in alone:
            turns = list(zip(rates[ours], rates[other], strict=True))
            wall = statistics.median(mine.wall / theirs.wall for (mine, _), (theirs, _) in turns)
            cpu = statistics.median(mine.cpu / theirs.cpu for (mine, _), (theirs, _) in turns)
            print(f"- {ours} / {other}: {wall:.2f}, per CPU second {cpu:.2f} (asked: {asked})")
    if "stream" in alone and _BARE in alone:
        turns = list(zip(rates["stream"], rates[_BARE], strict=True))
        touched = decoded["stream"] / decoded[_BARE]
        wall, cpu = (
            touched * statistics.median(mine[i] / theirs[i] for (mine, _), (theirs, _) in turns)
            for i in (0, 1)
        )
        print(
            f"- voxels decoded, stream / {_BARE}: {wall:.2f}, per CPU second {cpu:.2f} "
            f"(asked: {_ASKED_OF_BARE})"
        )
    print(flush=True)


def _run(
    cohort: Cohort,
    names: Sequence[str],
    patch: Index,
    seconds: float,
    rounds: int,
    rates: dict[str, list[tuple[Pace, Pace]]],
    seen: dict[str, list[Seen]],
) -> None:
    """Measure readers in turns: into `rates` the pace of one process and of two at once."""
    processes: dict[str, list[_Process]] = {}
    try:
        for name in names:
            processes[name] = [_Process(name, cohort, patch, seed) for seed in (1, 2)]
            for process in processes[name]:
                process.wait_until_ready()
        for _ in range(rounds):
            for name, both in processes.items():
                found = _pace(both[:1], seconds), _pace(both, seconds)
                rates.setdefault(name, []).append(found)
        for name, both in processes.items():
            seen[name] = both[0].describe()
    finally:
        for both in processes.values():
            for process in both:
                process.end()


def _same(numbers: Sequence[int]) -> float:
    """Share of all pairs that have the same number; -1 is like no other."""
    _, counts = np.unique([n for n in numbers if n >= 0], return_counts=True)
    return float((counts * (counts - 1)).sum() / (len(numbers) * (len(numbers) - 1)))


class Pace(NamedTuple):
    """Patches per second, and per second of CPU time."""

    wall: float
    cpu: float


class _Process:
    """A reader in a process of its own, that runs when it is told to and for as long."""

    def __init__(self, name: str, cohort: Cohort, patch: Index, seed: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        arguments = (name, cohort, patch, seed, other)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        other.close()

    def wait_until_ready(self) -> None:
        self._pipe.recv()

    def start(self, seconds: float) -> None:
        self._pipe.send(seconds)

    def pace(self) -> Pace:
        return Pace(*self._pipe.recv())

    def describe(self) -> list[Seen]:
        self._pipe.send(None)
        seen: list[Seen] = self._pipe.recv()
        return seen

    def end(self) -> None:
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.terminate()


def _pace(processes: Sequence[_Process], seconds: float) -> Pace:
    for process in processes:
        process.start(seconds)
    paces = [process.pace() for process in processes]
    return Pace(sum(pace.wall for pace in paces), statistics.mean(pace.cpu for pace in paces))


def _serve(name: str, cohort: Cohort, patch: Index, seed: int, pipe: Connection) -> None:
    reader = READERS[name]
    batches = reader.open(cohort, patch, seed)
    pools = 1 if np.prod(patch) >= LARGE else 4  # batches in the stream's pool
    for _ in range(-(-reader.warm_up * pools // 4)):
        next(batches)
    pipe.send("ready")
    while True:
        try:
            seconds = pipe.recv()
        except EOFError:
            return
        if seconds is None:
            pipe.send([next(batches)() for _ in range(20)])
            continue
        count, started, used = 0, time.perf_counter(), time.process_time()
        while (elapsed := time.perf_counter() - started) < seconds:
            next(batches)
            count += BATCH
        pipe.send((count / elapsed, count / (time.process_time() - used)))


def _available(cohort: Cohort, names: Sequence[str]) -> list[str]:
    """The readers whose libraries are there; the others are named."""
    there = []
    for name in names:
        try:
            for format in READERS[name].needs:
                add_format(cohort, format)
            _import_of(name)
            there.append(name)
        except ImportError as error:
            print(f"- not measured: {name} ({error}); pip install 'pmg[bench]'")
    return there


def _import_of(name: str) -> None:
    package = name.split(maxsplit=1)[0].strip(",").lower()
    if package in ("monai", "torchio", "tensorstore", "zarrs", "blosc2"):
        __import__(package)


def _versions() -> str:
    packages = ("zarr", "numcodecs", "monai", "torchio", "blosc2", "tensorstore", "zarrs")
    return ", ".join(f"{package} {_version(package)}" for package in packages)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _shape(text: str) -> Index:
    z, y, x = map(int, text.split("x"))
    return z, y, x


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
