"""Slices per second of an ingest beside SimpleITK's series reader, in one run over the same files.

    python -m benchmarks.ingest [--series 4] [--slices 256] [--rounds 3] [--real] [--out FOLDER]

Series of 512 x 512 pixels of a phantom are written as DICOM into a temporary folder and read from
the page cache. SimpleITK (GetGDCMSeriesFileNames, ImageSeriesReader, to a NumPy array) only reads.
The ingest finds the series, reads and hashes the files, finds the body, compresses, writes with
fsync, reads back and compares, and commits: with a cohort's grid it resamples too. Its workers are
started before the clock, which the first line of the table states. All take turns, so that a noisy
moment does not hit one alone; the best of the rounds counts.

threads: SimpleITK's reader works in one; an ingest worker too, and in two more while it finds the
body and stages a volume (hash, count, compress). On 1 core: the worker may use no other, so that
two processes on two cores have twice of what it has. CPU: of the driver and the reader's workers
together, which depends less on who else uses the machine than the wall's time does.

floor: the same files only read, rescaled, compressed chunk by chunk and written with fsync: what
no ingest can go below.

memory: the largest sum of the proportional set sizes of the driver and the reader's workers,
sampled ten times a second in the first round, which that slows down. Workers keep what they had,
so that later readers may show an earlier one's peak.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numcodecs import blosc
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from scipy import ndimage

from storage.array import content_digest
from storage.body import find_body
from storage.catalogue import body_cells, hu_histogram
from storage.dicom_write import write_series
from storage.grid import canonical, resample
from storage.ingest import ingest
from storage.ingest_series import _digest
from storage.layout import CHUNK
from storage.phantom import Protocol, draw_subject, render
from storage.series import find_sources, read_source
from storage.store import Spacing, Store
from storage.volume import Volume
from storage.workers import Workers, memory_limit

GRID: Spacing = (3.0, 1.5, 1.5)
ASKED_SHARE, ASKED_SCALING = 0.8, 1.7
REAL = Path(sysconfig.get_path("purelib")) / "cerr/datasets/radiomics_phantom_dicom"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--series", type=int, default=4)
    parser.add_argument("--slices", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3, help="2 or more")
    parser.add_argument("--real", action="store_true", help="pycerr's four chest series instead")
    parser.add_argument("--out", type=Path, help="keep the DICOM files there and use them again")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        root = arguments.out or work / "dicom"
        if arguments.real:
            root = REAL
        elif not root.exists():
            write_cohort(root, arguments.series, arguments.slices)
        slices = sum(1 for _ in root.rglob("*.dcm"))
        megabytes = sum(path.stat().st_size for path in root.rglob("*.dcm")) / 1e6
        print(
            f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python "
            f"{platform.python_version()}, SimpleITK {version('simpleitk')}, load "
            f"{os.getloadavg()[0]:.1f}; {slices} slices, {megabytes:.0f} MB\n"
        )
        compare(root, work, slices, arguments.rounds)
        steps(root)


def compare(root: Path, work: Path, slices: int, rounds: int) -> None:
    """The table of readers, and the ratios that were asked for."""
    with ExitStack() as stack:
        started = time.perf_counter()
        one = stack.enter_context(Workers(1, memory_limit(1)))
        two = stack.enter_context(Workers(2, memory_limit(2)))
        bound = stack.enter_context(Workers(1, memory_limit(1)))
        peer = stack.enter_context(Workers(1))
        pids = {
            id(workers): {done.result for done in workers.map(_warm, [0.3, 0.3])}
            for workers in (one, two, bound, peer)
        }
        for pid in pids[id(bound)]:
            psutil.Process(pid).cpu_affinity([0])
        print(f"starting five worker processes took {time.perf_counter() - started:.1f} s\n")
        folders = sorted({path.parent for path in root.rglob("*.dcm")})
        runs: dict[str, tuple[Workers, Callable[[Path], None]]] = {
            "SimpleITK, 1 process": (peer, lambda _: _use(peer, _read_by_simpleitk, folders)),
            "pmg, own grid, 1 process": (one, lambda store: _ingest(root, store, None, one)),
            "pmg, own grid, 2 processes": (two, lambda store: _ingest(root, store, None, two)),
            "pmg, own grid, 1 core": (bound, lambda store: _ingest(root, store, None, bound)),
            "pmg, 3 x 1.5 x 1.5 mm, 1 process": (one, lambda s: _ingest(root, s, GRID, one)),
            "pmg, 3 x 1.5 x 1.5 mm, 2 processes": (two, lambda s: _ingest(root, s, GRID, two)),
            "pmg, 3 x 1.5 x 1.5 mm, 1 core": (bound, lambda s: _ingest(root, s, GRID, bound)),
        }
        best: dict[str, float] = {}
        cpu: dict[str, float] = {}
        memory: dict[str, int] = {}
        for number in range(rounds):
            for name, (workers, run) in runs.items():
                store = work / f"store{number}"
                started = time.perf_counter()
                used = _cpu_seconds(pids[id(workers)])
                sampled = number == 0  # which takes time of its own
                with _memory(pids[id(workers)]) if sampled else nullcontext([0]) as peak:
                    run(store)
                    seconds = time.perf_counter() - started
                used = _cpu_seconds(pids[id(workers)]) - used
                best[name] = min(best.get(name, seconds), seconds)
                cpu[name] = min(cpu.get(name, used), used)
                memory[name] = max(memory.get(name, 0), *peak)
                shutil.rmtree(store, ignore_errors=True)
        store = work / "again"
        _ingest(root, store, None, two)
        started = time.perf_counter()
        _ingest(root, store, None, two)
        again = time.perf_counter() - started
    print(
        "| reader | slices/s | ms/slice | of SimpleITK | CPU ms/slice | of its CPU | memory, MB |"
    )
    print("|---|---|---|---|---|---|---|")
    by_cpu = cpu["SimpleITK, 1 process"]
    reference = best["SimpleITK, 1 process"]
    for name, seconds in best.items():
        print(
            f"| {name} | {slices / seconds:.0f} | {1e3 * seconds / slices:.2f} "
            f"| {reference / seconds:.2f} | {1e3 * cpu[name] / slices:.2f} "
            f"| {by_cpu / cpu[name]:.2f} | {memory[name] / 1e6:.0f} |"
        )
    print(
        f"| pmg, a second run | {slices / again:.0f} files/s | {1e3 * again / slices:.3f} "
        "| | | | |\n"
    )
    for name, grid in (("own grid", "own grid"), ("with resampling", "3 x 1.5 x 1.5 mm")):
        alone, both, core = (
            best[f"pmg, {grid}, {what}"] for what in ("1 process", "2 processes", "1 core")
        )
        print(
            f"{name}: {reference / alone:.2f} of SimpleITK (asked: {ASKED_SHARE}), "
            f"{alone / both:.2f} times as fast with 2 processes (asked: {ASKED_SCALING}), "
            f"{core / both:.2f} times as fast as 1 process on 1 core"
        )


def steps(root: Path) -> None:
    """Where the time of one process goes, by the CPU time of each step alone."""
    source = find_sources(root)[0][0]
    count = len(source.files)
    folder = source.files[0].parent
    print("\n| step, one thread | ms/slice |")
    print("|---|---|")

    def timed(name: str, work: Callable[[], Any]) -> Any:
        best, result = float("inf"), None
        for _ in range(2):
            started = time.process_time()
            result = work()
            best = min(best, time.process_time() - started)
        print(f"| {name} | {1e3 * best / count:.2f} |")
        return result

    timed("(SimpleITK: names and pixels)", lambda: _read_by_simpleitk(folder))
    with tempfile.TemporaryDirectory() as place:
        timed("(floor: read, compress, write)", lambda: _floor(source.files, Path(place) / "f"))
    timed("headers of all files", lambda: find_sources(folder))
    timed("read to HU", lambda: read_source(source))
    timed("hash the files", lambda: [_digest(path) for path in source.files])
    volume = canonical(read_source(source)[0])
    timed("resample to 3 x 1.5 x 1.5 mm", lambda: resample(volume, GRID))
    body, origin = timed("find the body and its frame", lambda: find_body(volume))
    timed("hash the voxels", lambda: content_digest(volume.hu, volume.affine.ravel().tolist()))
    timed("histogram", lambda: hu_histogram(volume.hu))
    timed("cells with body", lambda: body_cells(body, volume.spacing_mm))
    with tempfile.TemporaryDirectory() as place:
        store = Store.create(Path(place) / "s", None)
        with store.writer() as writer:
            fields = {"volume_id": "v", "patient": "p", "domain": 1, "phase": "a"}
            fields |= {"source_digest": "", "ingest_version": 1, "provenance": {}}
            timed(
                "stage: the three above, compress, write, read back",
                lambda: writer.stage(volume, body, origin, **fields),
            )


def _floor(files: Sequence[Path], out: Path) -> None:
    """Read native 16-bit slices of 512 x 512, compress them in the store's chunks, and write."""
    z, y, x = CHUNK
    pixels = 512 * 512
    hu = np.empty((len(files), 512, 512), np.int16)
    for path, plane in zip(files, hu, strict=True):
        data = path.read_bytes()
        stored = np.frombuffer(data, np.int16, pixels, len(data) - 2 * pixels)
        np.add(stored.reshape(512, 512), np.int16(-1024), out=plane)
    with out.open("wb") as file:
        for corner in product(range(0, len(hu), z), range(0, 512, y), range(0, 512, x)):
            box = tuple(slice(a, a + n) for a, n in zip(corner, CHUNK, strict=True))
            chunk = np.ascontiguousarray(hu[box])
            file.write(blosc.compress(chunk, b"lz4", 5, blosc.BITSHUFFLE))
        os.fsync(file.fileno())


def write_cohort(root: Path, series: int, slices: int) -> None:
    """Series of 512 x 512 of one phantom, each with noise of its own and UIDs of its own.

    Anatomy from a phantom of half the resolution, which takes a tenth of the time; the noise, which
    decides how well HU compress, at the full one.
    """
    half = Protocol(
        shape=(slices // 2, 256, 256), spacing_mm=(2.5, 1.5, 1.5), thickness_mm=2.5,
        noise_sd_hu=(0.0, 0.0),
    )  # fmt: skip
    coarse = render(draw_subject(1), "portal", half, None)
    anatomy = ndimage.zoom(coarse.hu.astype(np.float32), 2, order=1)
    affine = coarse.affine.copy()
    affine[:3, :3] /= 2
    for number in range(series):
        rng = np.random.default_rng(number)
        noise = rng.standard_normal(anatomy.shape, dtype=np.float32)
        hu = anatomy + 25 * ndimage.gaussian_filter(noise, (0, 0.7, 0.7)) / 0.4
        header = _header(number)
        write_series(Volume(hu.round().astype(np.int16), affine), root / f"{number}", header)


def _header(number: int) -> Dataset:
    """As long as scanners write them: about 150 elements, of which half are private."""
    header = Dataset()
    header.PatientID = f"P{number}"
    header.PatientName = f"Phantom^{number}"
    header.SeriesInstanceUID = generate_uid()
    header.Modality = "CT"
    header.StudyDate, header.StudyTime = "20240102", "101500"
    header.Manufacturer, header.ManufacturerModelName = "pmg", "phantom"
    for keyword in _TEXTS.split():
        setattr(header, keyword, f"TEXT {len(keyword)}")
    for keyword in _NUMBERS.split():
        setattr(header, keyword, 123.5)
    private = header.private_block(0x0019, "PMG PRIVATE", create=True)
    for element in range(80):
        private.add_new(element, "LO", f"value {element}")
    for keyword in ("ProcedureCodeSequence", "RequestAttributesSequence"):
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "1", "DCM", "a procedure"
        setattr(header, keyword, [item])
    return header


_TEXTS = """
    InstitutionName StationName StudyDescription SeriesDescription InstitutionalDepartmentName
    ProtocolName StudyID ScanOptions ConvolutionKernel FilterType DeviceSerialNumber
    SoftwareVersions ContrastBolusAgent RequestedProcedureDescription AccessionNumber
"""
_NUMBERS = """
    KVP DataCollectionDiameter ReconstructionDiameter DistanceSourceToDetector
    DistanceSourceToPatient TableHeight FocalSpots SingleCollimationWidth
    TotalCollimationWidth TableSpeed TableFeedPerRotation SpiralPitchFactor CTDIvol PatientWeight
"""


def _ingest(root: Path, store: Path, spacing_mm: Spacing | None, workers: Workers) -> None:
    report = ingest(
        root,
        store,
        domain=1,
        spacing_mm=spacing_mm,
        key_path=store.with_name("key"),
        executor=workers,
    )
    if not report.count("ingested") and not report.count("skipped"):
        raise SystemExit(report.table())


def _read_by_simpleitk(folder: Path) -> tuple[int, ...]:
    import SimpleITK as sitk  # noqa: PLC0415

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    hu: np.ndarray = sitk.GetArrayFromImage(reader.Execute())
    return hu.shape


def _use(workers: Workers, work: Callable[[Any], Any], items: list[Any]) -> None:
    for _ in workers.map(work, items):
        pass


def _warm(seconds: float) -> int:
    """Import what an ingest needs, and take long enough for the other worker to start as well.
    Returns the process's id."""
    import SimpleITK  # noqa: F401, PLC0415

    import storage.ingest_series  # noqa: F401, PLC0415

    time.sleep(seconds)
    return os.getpid()


def _cpu_seconds(workers: set[Any]) -> float:
    """Of this process and the workers."""
    times = [psutil.Process(pid).cpu_times() for pid in {os.getpid(), *workers}]
    return sum(one.user + one.system for one in times)


@contextlib.contextmanager
def _memory(workers: set[Any]) -> Iterator[list[int]]:
    """Bytes that this process and the workers have, sampled while the block runs."""
    processes = [psutil.Process(pid) for pid in {os.getpid(), *workers}]
    samples: list[int] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.1):
            samples.append(sum(one.memory_full_info().pss for one in processes))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    main()
