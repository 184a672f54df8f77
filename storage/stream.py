"""The patch stream: batches of co-located pairs for one rank, read ahead by threads."""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import numpy as np

from storage.errors import StoreError
from storage.pairing import Balance, Pairing
from storage.sampling import PairSampler, rank_samples, split_patients
from storage.shard import ShardedArray
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
    goes on exactly there, at any world size that divides `global_batch`. The sampler's pool is a
    multiple of `global_batch`, so that each slot belongs to one rank.

    Threads carry out visits in the order in which the batches need them. A visit writes its patches
    straight into the batches that will deliver them, up to `patches_per_visit` rounds of the pool
    ahead: nothing is kept decoded, and no patch is copied twice. The cohort (all volumes of the
    sampler) is kept decoded only when it takes no more than `memory_bytes`; visits then copy from
    there instead of reading, the same patches. At most `memory_bound_bytes` are in memory.

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
        share = len(rank_samples(start_step, rank, world_size, global_batch))
        if sampler.pool % global_batch:
            raise ValueError(
                f"the sampler's pool is {sampler.pool}; expected a multiple of "
                f"global_batch = {global_batch}"
            )
        self.step = start_step
        self._store = store
        self.sampler = sampler
        self._share = (rank, world_size, global_batch)
        self._count = share
        self._volume_ids: list[str] = sampler.rows.column("volume_id").tolist()
        for volume_id in self._volume_ids:
            store.require(volume_id)
        shapes = sampler.rows.column("shape").astype(np.int64)
        self.cohort_bytes = int(2 * shapes.prod(axis=1).sum())
        self.in_memory = self.cohort_bytes <= memory_bytes
        self._tallest = int(shapes[:, 0].max())
        self._decoded: dict[int, np.ndarray] = {}
        self._decoding = [threading.Lock() for _ in self._volume_ids] if self.in_memory else []
        self._round = sampler.pool // global_batch
        # Steps in which as many visits begin as keep the threads busy.
        self._horizon = -(-2 * threads * sampler.patches_per_visit // share)
        self._drafts: dict[int, _Draft] = {}
        self._tasks = self._visits(start_step)
        self._next_task = next(self._tasks)
        self._ahead: deque[tuple[int, Future[None]]] = deque()
        self._process = os.getpid()
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="patches")

    @property
    def memory_bound_bytes(self) -> int:
        """Most bytes that the stream has in memory, beside the catalogue.

        The batches under way, (pool / global_batch * (patches_per_visit - 1) + horizon + 1) times
        this rank's share of pairs, where in `horizon` steps two visits for each thread begin; for
        each thread what `ShardedArray.cut` takes; and the cohort where it is kept. Neither the
        number of volumes nor that of samples is in it.
        """
        steps = self._round * (self.sampler.patches_per_visit - 1) + self._horizon + 1
        pair_bytes = 2 * 2 * math.prod(self.sampler.patch_shape)
        cohort = self.cohort_bytes if self.in_memory else 0
        working = self._threads * ShardedArray.working_bytes(self._tallest)
        return steps * self._count * pair_bytes + working + cohort

    def __next__(self) -> Batch:
        if os.getpid() != self._process:
            raise StoreError("PatchStream was opened before a fork; open one in each process")
        while self._next_task.step <= self.step + self._horizon:
            self._submit(self._next_task)
            self._next_task = next(self._tasks)
        # Taken off only when it is there: an error or Ctrl-C leaves `step` and the queue in line.
        while self._ahead and self._ahead[0][0] <= self.step:
            self._ahead[0][1].result()
            self._ahead.popleft()
        batch = self._drafts.pop(self.step).finished(self.step, self._share, self.sampler)
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
        self._drafts.clear()
        self._decoded.clear()

    def _visits(self, start_step: int) -> Iterator[_Task]:
        """This rank's visits by the step that needs them first; the first ones are under way."""
        for step in itertools.count(start_step):
            for position, n in enumerate(rank_samples(step, *self._share)):
                slot, number, which = self.sampler.turn(n)
                if which == 0 or step < start_step + self._round:
                    yield _Task(step, position, slot, number, which)

    def _submit(self, task: _Task) -> None:
        count = self.sampler.patches_per_visit - task.which
        drafts = [self._draft(task.step + turn * self._round) for turn in range(count)]
        self._ahead.append((task.step, self._pool.submit(self._carry_out, task, drafts)))

    def _draft(self, step: int) -> _Draft:
        draft = self._drafts.get(step)
        if draft is None:
            shape = (self._count, *self.sampler.patch_shape)
            draft = self._drafts[step] = _Draft.empty(shape)
        return draft

    def _carry_out(self, task: _Task, drafts: list[_Draft]) -> None:
        """Write what is left of a visit into the batches that deliver it, one patch into each."""
        visit = self.sampler.visit(task.slot, task.number)
        at = task.position
        for domain, volume in enumerate(visit.volumes):
            outs = [draft.hu[domain][at] for draft in drafts]
            self._cut(volume, visit.starts[domain, task.which :], outs)
        one, two = (self._volume_ids[volume] for volume in visit.volumes)
        place_mm = (visit.frame * self.sampler.spacing_mm).astype(np.float32)
        for draft, place in zip(drafts, place_mm.swapaxes(0, 1)[task.which :], strict=True):
            draft.position_mm[at] = place
            draft.volume_ids[at] = (one, two)

    def _cut(self, volume: int, starts: np.ndarray, outs: list[np.ndarray]) -> None:
        shape = self.sampler.patch_shape
        if not self.in_memory:
            self._store.cut(self._volume_ids[volume], starts, shape, outs)
            return
        whole, (d, h, w) = self._whole(volume), shape
        for (z, y, x), out in zip(starts.tolist(), outs, strict=True):
            out[...] = whole[z : z + d, y : y + h, x : x + w]

    def _whole(self, volume: int) -> np.ndarray:
        """The decoded volume; read once, by the first thread that asks, its digest checked."""
        hu = self._decoded.get(volume)
        if hu is None:
            with self._decoding[volume]:
                hu = self._decoded.get(volume)
                if hu is None:
                    hu = self._decoded[volume] = self._store.read(self._volume_ids[volume]).hu
        return hu


class _Task(NamedTuple):
    """A visit of this rank: at `step` its patch `which` is the batch's sample at `position`."""

    step: int
    position: int
    slot: int
    number: int
    which: int


@dataclass(frozen=True)
class _Draft:
    """A batch under way. Its samples are written by the threads that carry out their visits."""

    hu: tuple[np.ndarray, np.ndarray]
    position_mm: np.ndarray
    volume_ids: list[tuple[str, str]]

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> _Draft:
        return cls(
            (np.empty(shape, np.int16), np.empty(shape, np.int16)),
            np.empty((shape[0], 2, 3), np.float32),
            [("", "")] * shape[0],
        )

    def finished(self, step: int, share: tuple[int, int, int], sampler: PairSampler) -> Batch:
        return Batch(
            hu1=self.hu[0],
            hu2=self.hu[1],
            position_mm=self.position_mm,
            samples=np.array(rank_samples(step, *share), np.int64),
            spacing_mm=sampler.spacing_mm,
            volume_ids=tuple(self.volume_ids),
        )


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
    def balance(self) -> Balance: ...
    @property
    def body_fraction(self) -> float: ...
    @property
    def mask_fraction(self) -> float: ...
    @property
    def pool(self) -> int | None: ...
    @property
    def patches_per_visit(self) -> int: ...
    @property
    def amplification(self) -> float: ...
    @property
    def validation_fraction(self) -> float: ...
    @property
    def validation_seed(self) -> int: ...
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
    """The training stream of one rank: the patients that are not held out for validation.

    Who is held out depends on the settings alone: runs with other seeds train on the same patients.
    The pool, four batches where the settings leave it open, is rounded up to whole batches.
    """
    pool = -(-(settings.pool or 4 * global_batch) // global_batch) * global_batch
    training, _ = split_patients(store.rows, settings.validation_fraction, settings.validation_seed)
    flat = len(settings.patch) == 2
    z, y, x = (settings.slices, *settings.patch) if flat else settings.patch
    sampler = PairSampler(
        training,
        seed=seed,
        patch_shape=(z, y, x),
        pairing=settings.pairing,
        balance=settings.balance,
        jitter=settings.jitter,
        body_fraction=settings.body_fraction,
        mask_fraction=settings.mask_fraction,
        pool=pool,
        patches_per_visit=settings.patches_per_visit,
        amplification=settings.amplification,
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
