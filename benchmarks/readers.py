"""Readers of random patches: the stream and its peers, each an endless iterator of batches.

All deliver collated batches of `BATCH` patches, and with each a function that tells what it was
made of, which is not called while time is taken. Peers get the same reuse as the stream: `REUSE`
patches of each volume, or part of one, that is read.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc

from benchmarks.cohort import PEER_CHUNK, Cohort
from storage.layout import CHUNK, Index, layout_of
from storage.sampling import PairSampler
from storage.store import Store
from storage.stream import Batch, PatchStream

__all__ = ["BATCH", "LARGE", "READERS", "REUSE", "Reader", "Seen", "stream_batches"]

BATCH = 32
REUSE = 16
LARGE = 2**19  # voxels of a patch from which on fewer are in memory at once


@dataclass(frozen=True)
class Seen:
    """What a batch was made of, patch by patch: its volume, and the read that it came from.

    reads: numbers, -1 for a patch that was read alone. decoded: voxels decoded for one delivered.
    """

    volumes: Sequence[int]
    reads: Sequence[int]
    decoded: float


Batches = Iterator[Callable[[], Seen]]


@dataclass(frozen=True)
class Reader:
    """needs: formats that it reads, beside the store and the raw files. warm_up: batches until it
    runs as it goes on to run."""

    open: Callable[[Cohort, Index, int], Batches]
    needs: tuple[str, ...] = ()
    warm_up: int = 4


def _places(cohort: Cohort, patch: Index, seed: int) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """Volumes and boxes, drawn beforehand: what costs the stream time costs these readers none."""
    rng = np.random.default_rng(seed)
    volumes = rng.integers(cohort.count, size=4096).tolist()
    starts = rng.integers(0, np.subtract(cohort.shape, patch) + 1, size=(4096, 3)).tolist()
    boxes = [tuple(slice(a, a + n) for a, n in zip(s, patch, strict=True)) for s in starts]
    return itertools.cycle(zip(volumes, boxes, strict=True))


def _alone(
    cohort: Cohort,
    patch: Index,
    seed: int,
    read: Callable[[int, tuple[slice, ...]], Any],
    unit: Index = (1, 1, 1),
) -> Batches:
    """Batches of patches that are each read alone, by something that decodes whole `unit`s."""
    places = _places(cohort, patch, seed)
    while True:
        out = np.empty((BATCH, *patch), np.int16)
        batch = list(itertools.islice(places, BATCH))
        for index, (volume, box) in enumerate(batch):
            out[index] = read(volume, box)
        yield partial(_seen_alone, batch, unit)


def _seen_alone(batch: list[tuple[int, tuple[slice, ...]]], unit: Index) -> Seen:
    touched = [
        [
            (-(-s.stop // u) - s.start // u) * u / (s.stop - s.start)
            for s, u in zip(box, unit, strict=True)
        ]
        for _, box in batch
    ]
    volumes = [volume for volume, _ in batch]
    return Seen(volumes, [-1] * len(batch), float(np.mean(np.prod(touched, axis=1))))


def _memmap(cohort: Cohort, patch: Index, seed: int) -> Batches:
    maps = [cohort.raw(number) for number in range(cohort.count)]
    return _alone(cohort, patch, seed, lambda volume, box: maps[volume][box])


def _zarr(cohort: Cohort, patch: Index, seed: int) -> Batches:
    import zarr

    arrays = [zarr.open_array(cohort.path(n, "zarr"), mode="r") for n in range(cohort.count)]
    return _alone(cohort, patch, seed, lambda volume, box: arrays[volume][box], PEER_CHUNK)


def _zarrs(cohort: Cohort, patch: Index, seed: int, threads: int | None) -> Batches:
    """threads: of its pool; None for its default, one for each core of the machine."""
    if threads is not None:
        os.environ["RAYON_NUM_THREADS"] = str(threads)  # read when the library is loaded
    import zarr
    import zarrs  # noqa: F401

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    if threads is not None:
        zarr.config.set({"threading.max_workers": threads})
    return _zarr(cohort, patch, seed)


def _tensorstore(cohort: Cohort, patch: Index, seed: int) -> Batches:
    import tensorstore

    context = tensorstore.Context({"data_copy_concurrency": {"limit": 1}})
    arrays = [
        tensorstore.open(
            {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": str(cohort.path(n, "zarr"))},
            },
            context=context,
        ).result()
        for n in range(cohort.count)
    ]
    return _alone(
        cohort, patch, seed, lambda volume, box: arrays[volume][box].read().result(), PEER_CHUNK
    )


def _blosc2(cohort: Cohort, patch: Index, seed: int, format: str) -> Batches:
    """Files kept open and mapped into memory, as nnU-Net's loader has them."""
    if patch[0] == 1 and format == "nnunet.b2nd":
        format = "nnunet-2d.b2nd"
    import blosc2

    blosc2.set_nthreads(1)
    parameters = blosc2.DParams(nthreads=1)
    arrays = [
        blosc2.open(str(cohort.path(n, format)), mode="r", mmap_mode="r", dparams=parameters)
        for n in range(cohort.count)
    ]
    blocks = arrays[0].blocks
    return _alone(cohort, patch, seed, lambda volume, box: arrays[volume][box], blocks)


def _torchio(cohort: Cohort, patch: Index, seed: int) -> Batches:
    import torch
    import torchio

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    subjects = [
        torchio.Subject(ct=torchio.ScalarImage(cohort.path(n, "nii")), volume=n)
        for n in range(cohort.count)
    ]
    queue = torchio.Queue(
        torchio.SubjectsDataset(subjects),
        max_length=4 * REUSE,
        samples_per_volume=REUSE,
        sampler=torchio.UniformSampler(patch),
        num_workers=0,
    )
    while True:
        for batch in torchio.SubjectsLoader(queue, batch_size=BATCH, num_workers=0):
            volumes = torch.as_tensor(batch["volume"]).tolist()
            if len(volumes) == BATCH:
                yield partial(Seen, volumes, volumes, _whole(cohort, patch))


def _monai(cohort: Cohort, patch: Index, seed: int, cached: bool, folder: Path | None) -> Any:
    import torch
    from monai.data import CacheDataset, DataLoader, PersistentDataset, list_data_collate
    from monai.transforms import Compose, Lambdad, RandSpatialCropSamplesd
    from monai.utils import set_determinism

    set_determinism(seed)
    torch.set_num_threads(1)
    load = Lambdad("ct", lambda path: torch.from_numpy(np.load(path)), overwrite=True)
    crop = RandSpatialCropSamplesd("ct", roi_size=patch, num_samples=REUSE, random_size=False)
    items = [{"ct": str(cohort.path(n, "npy")), "volume": n} for n in range(cohort.count)]
    transform = Compose([load, crop])
    if cached:
        data = CacheDataset(items, transform, copy_cache=False, progress=False)
    else:
        data = PersistentDataset(items, transform, cache_dir=folder)
    return DataLoader(
        data,
        batch_size=BATCH // REUSE,
        shuffle=True,
        num_workers=0,
        collate_fn=list_data_collate,
        drop_last=True,
    )


def _monai_persistent(cohort: Cohort, patch: Index, seed: int) -> Batches:
    loader = _monai(cohort, patch, seed, False, cohort.folder / f"monai-{os.getpid()}")
    while True:
        for batch in loader:
            reads = np.arange(BATCH) // REUSE
            yield partial(Seen, batch["volume"].tolist(), reads.tolist(), _whole(cohort, patch))


def _monai_cache(cohort: Cohort, patch: Index, seed: int) -> Batches:
    loader = _monai(cohort, patch, seed, True, None)
    while True:
        for batch in loader:
            reads = np.arange(BATCH) // REUSE
            yield partial(Seen, batch["volume"].tolist(), reads.tolist(), 0.0)


def _whole(cohort: Cohort, patch: Index) -> float:
    return float(np.prod(cohort.shape)) / (REUSE * float(np.prod(patch)))


def _sampler(store: Store, patch: Index, seed: int) -> PairSampler:
    # Four batches, or one of large patches: several such streams share this machine's memory.
    pool = 2 * BATCH if np.prod(patch) < LARGE else BATCH // 2
    return PairSampler(store.rows, seed=seed, patch_shape=patch, pool=pool, patches_per_visit=REUSE)


def _stream(cohort: Cohort, patch: Index, seed: int, memory_bytes: int, threads: int) -> Batches:
    store = Store.open(cohort.folder / "store")
    return stream_batches(store, patch, seed, memory_bytes=memory_bytes, threads=threads)


def stream_batches(
    store: Store, patch: Index, seed: int, *, memory_bytes: int, threads: int
) -> Batches:
    sampler = _sampler(store, patch, seed)
    with PatchStream(
        store,
        sampler,
        rank=0,
        world_size=1,
        global_batch=BATCH // 2,
        memory_bytes=memory_bytes,
        threads=threads,
    ) as stream:
        for batch in stream:
            yield partial(_seen_streamed, store, sampler, batch, stream.in_memory)


def _seen_streamed(store: Store, sampler: PairSampler, batch: Batch, in_memory: bool) -> Seen:
    volumes, reads = [], []
    decoded = delivered = 0
    for n, names in zip(batch.samples.tolist(), batch.volume_ids, strict=True):
        slot, number, _ = sampler.turn(n)
        visit = sampler.visit(slot, number)
        for domain, name in enumerate(names):
            volumes.append(int(name[1:]))
            reads.append(2 * (number * sampler.pool + slot) + domain)
            decoded += len(_chunks(store, visit.starts[domain], name, sampler)) * np.prod(CHUNK)
            delivered += REUSE * np.prod(sampler.patch_shape)
    return Seen(volumes, reads, 0.0 if in_memory else float(decoded / delivered))


def _chunks(store: Store, starts: np.ndarray, name: str, sampler: PairSampler) -> set[Index]:
    """Which chunks of a volume a visit's patches touch."""
    row = store.row(name)
    first = starts + layout_of(row.shape, row.frame_origin).lead
    last = first + sampler.patch_shape - 1
    return {
        cell
        for a, b in zip((first // CHUNK).tolist(), (last // CHUNK).tolist(), strict=True)
        for cell in itertools.product(*(range(i, j + 1) for i, j in zip(a, b, strict=True)))
    }


def _bare(cohort: Cohort, patch: Index, seed: int, whole: bool) -> Batches:
    """The chunks of the stream's own visits, decoded over and over into one buffer.

    whole: read and checked as well, each alone; else they lie in memory.
    """
    blosc.use_threads = False
    store = Store.open(cohort.folder / "store")
    sampler = _sampler(store, patch, seed)
    out = np.empty(CHUNK, np.int16)
    visits = []
    for slot in range(12):
        entries = []
        visit = sampler.visit(slot, 0)
        for domain, volume in enumerate(visit.volumes):
            name = f"v{volume}"
            array = store._array(name)  # its bytes are not to be had otherwise
            for place in _chunks(store, visit.starts[domain], name, sampler):
                entry = array._entry(place)
                (stored,) = store.place.read_ranges(entry.name, [entry.offset], [entry.length])
                entries.append((entry, stored[:-4], stored[-4:]))
        visits.append(entries)
    for entries in itertools.cycle(visits):
        for entry, body, checksum in entries:
            if whole:
                (stored,) = store.place.read_ranges(entry.name, [entry.offset], [entry.length])
                body, checksum = stored[:-4], stored[-4:]  # noqa: PLW2901
                assert google_crc32c.value(body) == int.from_bytes(checksum, "little")
            blosc.decompress(body, out)
        decoded = len(entries) * out.size / (BATCH * float(np.prod(patch)))
        yield partial(Seen, [0] * BATCH, [-1] * BATCH, decoded)


_SETTLED = 2 * REUSE * 4  # batches: every slot has been through two visits

READERS: dict[str, Reader] = {
    "memmap (limit)": Reader(_memmap),
    "blosc decode, bytes in memory (limit)": Reader(partial(_bare, whole=False)),
    "read + CRC + blosc decode (limit)": Reader(partial(_bare, whole=True)),
    "stream": Reader(partial(_stream, memory_bytes=0, threads=1), warm_up=_SETTLED),
    "stream, 2 threads": Reader(partial(_stream, memory_bytes=0, threads=2), warm_up=_SETTLED),
    "stream, cohort in memory": Reader(
        partial(_stream, memory_bytes=2**50, threads=1), warm_up=_SETTLED
    ),
    "MONAI CacheDataset": Reader(_monai_cache, ("npy",)),
    "MONAI PersistentDataset": Reader(_monai_persistent, ("npy",)),
    "TorchIO Queue": Reader(_torchio, ("nii",)),
    "blosc2, as nnU-Net": Reader(
        partial(_blosc2, format="nnunet.b2nd"), ("nnunet.b2nd", "nnunet-2d.b2nd")
    ),
    "blosc2, int16 lz4": Reader(partial(_blosc2, format="b2nd"), ("b2nd",)),
    "tensorstore": Reader(_tensorstore, ("zarr",)),
    "zarrs, one thread": Reader(partial(_zarrs, threads=1), ("zarr",)),
    "zarrs, all cores": Reader(partial(_zarrs, threads=None), ("zarr",)),
    "zarr": Reader(_zarr, ("zarr",)),
}
