"""The patch stream: batches of co-located pairs for one rank, read ahead by threads."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from storage.catalogue import Index
from storage.errors import StoreError
from storage.sampling import Pairing, PairSampler, rank_samples, split_patients
from storage.store import Store

__all__ = ["Batch", "PatchStream", "StreamSettings", "open_stream"]


@dataclass(frozen=True)
class Batch:
    """One rank's share of one step. B samples; d, h, w voxels, d = 1 for 2D.

    hu1, hu2: [B, d, h, w] int16, HU of domains 1 and 2.
    position_mm: [B, 2, 3] float32, place of each patch's first voxel in the body-centred frame
    (z, y, x), of domain 1 and 2.
    samples: [B] int64, the run's global numbers of these samples.
    volume_ids: for each sample the volume of domain 1 and that of domain 2.
    """

    hu1: np.ndarray
    hu2: np.ndarray
    position_mm: np.ndarray
    samples: np.ndarray
    spacing_mm: tuple[float, float, float]
    volume_ids: tuple[tuple[str, str], ...]


class PatchStream(Iterator[Batch]):
    """Batches from `start_step` on, without end, in an order that the threads do not change.

    `step`, the step of the next batch, is the whole state: a stream opened with it as `start_step`
    goes on exactly there, at any world size that divides `global_batch`.

    The cohort (all volumes of the sampler) is kept decoded in memory when it takes no more than
    `memory_bytes`: then a patch is a slice of an array. Otherwise patches are read as boxes
    through the store. At most in memory: that cohort where it is kept, 2 * threads + 1 batches, and
    one volume (or box) per thread while it is being decoded.

    What a thread raises is raised to the consumer. Not for use across a fork: threads stay behind.
    Raises StoreError when the sampler knows a volume that the store has not.
    """

    def __init__(
        self,
        store: Store,
        sampler: PairSampler,
        *,
        rank: int,
        world_size: int,
        global_batch: int,
        start_step: int = 0,
        memory_bytes: int,
        threads: int = 2,
    ) -> None:
        if threads < 1:
            raise ValueError(f"threads is {threads}; expected 1 or more")
        rank_samples(start_step, rank, world_size, global_batch)  # refuse wrong numbers now
        self.step = start_step
        self._store = store
        self._sampler = sampler
        self._share = (rank, world_size, global_batch)
        self._volume_ids: list[str] = sampler.rows.column("volume_id").tolist()
        for volume_id in self._volume_ids:
            store.require(volume_id)
        shapes = sampler.rows.column("shape").astype(np.int64)
        self.cohort_bytes = int(2 * shapes.prod(axis=1).sum())
        self.in_memory = self.cohort_bytes <= memory_bytes
        self._decoded: dict[int, np.ndarray] = {}
        self._decoding = [threading.Lock() for _ in self._volume_ids] if self.in_memory else []
        self._ahead: deque[Future[Batch]] = deque()
        self._depth = 2 * threads
        self._process = os.getpid()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="patches")

    def __next__(self) -> Batch:
        if os.getpid() != self._process:
            raise StoreError("PatchStream was opened before a fork; open one in each process")
        while len(self._ahead) < self._depth:
            self._ahead.append(self._pool.submit(self._batch, self.step + len(self._ahead)))
        # Taken off only when it is there: an error or Ctrl-C leaves `step` and the queue in line.
        batch = self._ahead[0].result()
        self._ahead.popleft()
        self.step += 1
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads and let go of the volumes. A closed stream yields no more batches."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._ahead.clear()
        self._decoded.clear()

    def _batch(self, step: int) -> Batch:
        samples = rank_samples(step, *self._share)
        shape = (len(samples), *self._sampler.patch_shape)
        hu = (np.empty(shape, np.int16), np.empty(shape, np.int16))
        frame = np.empty((len(samples), 2, 3), np.float64)
        volume_ids = []
        for index, n in enumerate(samples):
            pair = self._sampler.pair(n)
            for domain in (0, 1):
                hu[domain][index] = self._patch(pair.volumes[domain], pair.starts[domain])
            frame[index] = pair.frame
            one, two = pair.volumes
            volume_ids.append((self._volume_ids[one], self._volume_ids[two]))
        return Batch(
            hu1=hu[0],
            hu2=hu[1],
            position_mm=(frame * self._sampler.spacing_mm).astype(np.float32),
            samples=np.array(samples, np.int64),
            spacing_mm=self._sampler.spacing_mm,
            volume_ids=tuple(volume_ids),
        )

    def _patch(self, volume: int, start: Index) -> np.ndarray:
        shape = self._sampler.patch_shape
        if not self.in_memory:
            return self._store.read_box(self._volume_ids[volume], start, shape)
        z, y, x = (slice(a, a + n) for a, n in zip(start, shape, strict=True))
        return self._whole(volume)[z, y, x]

    def _whole(self, volume: int) -> np.ndarray:
        """The decoded volume; read once, by the first thread that asks, its digest checked."""
        hu = self._decoded.get(volume)
        if hu is None:
            with self._decoding[volume]:
                hu = self._decoded.get(volume)
                if hu is None:
                    hu = self._decoded[volume] = self._store.read(self._volume_ids[volume]).hu
        return hu


class StreamSettings(Protocol):
    """How patches are drawn, as a configuration says it.

    patch: (h, w) or (d, h, w) voxels. slices: neighbouring slices in a patch of (h, w).
    """

    @property
    def patch(self) -> Sequence[int]: ...
    @property
    def slices(self) -> int: ...
    @property
    def pairing(self) -> Pairing: ...
    @property
    def jitter(self) -> int: ...
    @property
    def validation_fraction(self) -> float: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def threads(self) -> int: ...


def open_stream(
    store: Store,
    settings: StreamSettings,
    *,
    seed: int,
    rank: int,
    world_size: int,
    global_batch: int,
    start_step: int = 0,
) -> PatchStream:
    """The training stream of one rank: the patients that are not held out for validation."""
    training, _ = split_patients(store.rows, settings.validation_fraction, seed)
    flat = len(settings.patch) == 2
    z, y, x = (settings.slices, *settings.patch) if flat else settings.patch
    sampler = PairSampler(
        training,
        seed=seed,
        patch_shape=(z, y, x),
        pairing=settings.pairing,
        jitter=settings.jitter,
    )
    return PatchStream(
        store,
        sampler,
        rank=rank,
        world_size=world_size,
        global_batch=global_batch,
        start_step=start_step,
        memory_bytes=settings.memory_bytes,
        threads=settings.threads,
    )
