"""Patches per second of the stream, beside bare slices of a NumPy memmap in the same run.

    python -m benchmarks.stream [--threads 2] [--seconds 2]

A store of synthetic volumes is made in a temporary folder. The memmap is the limit: raw volumes in
the page cache, no codec, no sampler, no batch object; its starts are drawn beforehand. The stream
does all of its work: it samples, reads, checks and collates. A patch is one crop of one volume.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from storage.body import FrameOrigin
from storage.sampling import PairSampler
from storage.store import Store
from storage.stream import PatchStream
from storage.volume import Volume

SHAPE = (128, 256, 256)
PER_DOMAIN = 3
BATCH = 16
PATCHES = ((1, 128, 128), (32, 64, 64), (64, 128, 128))
ROUNDS = 3


def make_store(folder: Path) -> tuple[Store, list[np.ndarray]]:
    """The store, and each of its volumes (in its order) as a raw file mapped into memory."""
    rng = np.random.default_rng(0)
    store = Store.create(folder / "store", None)
    affine = np.array([[0, 0, 1.0, 0], [0, 1.0, 0, 0], [2.0, 0, 0, 0], [0, 0, 0, 1.0]])
    y, x = np.ogrid[-1 : 1 : SHAPE[1] * 1j, -1 : 1 : SHAPE[2] * 1j]
    body = np.broadcast_to(y**2 + x**2 < 0.8, SHAPE)
    maps: list[np.ndarray] = []
    with store.writer() as writer:
        for number in range(2 * PER_DOMAIN):
            # Noise of soft tissue at 3 mm: it decides how well the codec compresses.
            noise = rng.normal(0, 18, SHAPE).astype(np.float32)
            hu = np.where(body, 40 + noise, -1000 + noise / 4).astype(np.int16)
            row = writer.stage(
                Volume(hu, affine),
                body,
                FrameOrigin((64, 128, 128), "middle of the body"),
                volume_id=f"v{number}",
                patient=f"p{number}",
                domain=1 + number % 2,
                phase="synthetic",
                source_digest="",
                ingest_version=0,
                provenance={},
            )
            writer.commit([row])
            raw = folder / f"v{number}.raw"
            hu.tofile(raw)
            maps.append(np.memmap(raw, np.int16, "r", shape=SHAPE))
    return Store.open(store.place.root), maps


def memmap_rate(maps: list[np.ndarray], sampler: PairSampler, seconds: float) -> float:
    """Copies crops into one batch array, over and over."""
    pairs = [sampler.pair(n) for n in range(16 * BATCH)]
    crops = [crop for pair in pairs for crop in zip(pair.volumes, pair.starts, strict=True)]
    out = np.empty((2 * BATCH, *sampler.patch_shape), np.int16)

    def batches() -> Iterator[int]:
        while True:
            for first in range(0, len(crops), len(out)):
                for index, (volume, start) in enumerate(crops[first : first + len(out)]):
                    ends = np.add(start, sampler.patch_shape)
                    z, y, x = map(slice, start, ends)
                    out[index] = maps[volume][z, y, x]
                yield len(out)

    return rate(batches(), seconds)


def stream_rate(
    store: Store, sampler: PairSampler, *, memory_bytes: int, threads: int, seconds: float
) -> float:
    with PatchStream(
        store,
        sampler,
        rank=0,
        world_size=1,
        global_batch=BATCH,
        memory_bytes=memory_bytes,
        threads=threads,
    ) as stream:
        return rate((2 * len(batch.samples) for batch in stream), seconds)


def rate(batches: Iterator[int], seconds: float) -> float:
    """Patches per second, the first batches (page cache, first decoding) not counted."""
    for _ in range(4):
        next(batches)
    patches, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        patches += next(batches)
    return patches / (time.perf_counter() - start)


def measure(store: Store, maps: list[np.ndarray], threads: int, seconds: float) -> None:
    print(f"{'patch':>12} {'reader':>24} {'patches/s':>10} {'of memmap':>10}")
    for patch_shape in PATCHES:
        sampler = PairSampler(store.rows, seed=1, patch_shape=patch_shape)

        stream = partial(stream_rate, store, sampler, threads=threads, seconds=seconds)
        readers: dict[str, Callable[[], float]] = {
            "memmap (limit)": partial(memmap_rate, maps, sampler, seconds),
            "stream, cohort in memory": partial(stream, memory_bytes=2**40),
            "stream, boxes from store": partial(stream, memory_bytes=0),
        }
        # Readers take turns, so that a noisy moment of the machine does not hit one alone.
        rounds = [{name: read() for name, read in readers.items()} for _ in range(ROUNDS)]
        median = {name: statistics.median(r[name] for r in rounds) for name in readers}
        for name, value in median.items():
            shape = "x".join(map(str, patch_shape))
            ratio = value / median["memmap (limit)"]
            print(f"{shape:>12} {name:>24} {value:10.0f} {ratio:10.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="threads that read ahead")
    parser.add_argument("--seconds", type=float, default=2.0, help="per reader, patch and round")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store, maps = make_store(Path(folder))
        volumes = f"{len(maps)} volumes of {'x'.join(map(str, SHAPE))}"
        print(f"{volumes}, batches of {BATCH} pairs, {arguments.threads} threads, page cache warm")
        measure(store, maps, arguments.threads, arguments.seconds)


if __name__ == "__main__":
    main()
