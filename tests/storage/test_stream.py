"""The stream: the same patches at every world size, after a restart, and from every reader."""

from __future__ import annotations

import itertools
import multiprocessing
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_cohort import body_hu, coordinate_store, coordinates_hu, write_volume

from storage.errors import StoreCorrupt, StoreError
from storage.place import Place
from storage.sampling import PairSampler, split_patients
from storage.store import Store
from storage.stream import Batch, PatchStream, open_stream

PATCH = (2, 5, 6)
BATCH = 8


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return coordinate_store(tmp_path_factory.mktemp("stream") / "store")


@pytest.fixture
def own_store(tmp_path: Path) -> Store:
    """One that a test may damage."""
    return coordinate_store(tmp_path / "store")


def open_patches(store: Store, **changes: Any) -> PatchStream:
    sampler = PairSampler(
        store.rows,
        seed=changes.pop("seed", 3),
        patch_shape=changes.pop("patch_shape", PATCH),
        jitter=changes.pop("jitter", 0),
        pool=changes.pop("pool", 2 * BATCH),
        patches_per_visit=changes.pop("patches_per_visit", 4),
    )
    options: dict[str, Any] = {
        "rank": 0,
        "world_size": 1,
        "global_batch": BATCH,
        "memory_bytes": 2**30,
    }
    return PatchStream(store, sampler, **(options | changes))


def take(stream: PatchStream, count: int) -> list[Batch]:
    with stream:
        return list(itertools.islice(stream, count))


def same(one: Batch, other: Batch) -> bool:
    arrays = ("hu1", "hu2", "position_mm", "samples")
    return one.volume_ids == other.volume_ids and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays
    )


def whole_volume(store: Store, volume_id: str) -> np.ndarray:
    row = store.row(volume_id)
    return coordinates_hu(row.shape, row.frame_origin)


def joined(parts: tuple[Batch, ...]) -> Batch:
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("hu1", "hu2", "position_mm", "samples")
    }
    ids = tuple(itertools.chain.from_iterable(part.volume_ids for part in parts))
    return Batch(**arrays, spacing_mm=parts[0].spacing_mm, volume_ids=ids)


def frame_of(hu: np.ndarray) -> np.ndarray:
    """[..., 3] frame coordinates that `coordinates_hu` wrote into the voxels."""
    return np.stack([hu // 1024, hu // 32 % 32, hu % 32], axis=-1) - 16


@pytest.mark.parametrize("memory_bytes", [0, 2**30])
@pytest.mark.parametrize("patch_shape", [PATCH, (1, 8, 8)])
def test_both_patches_show_the_very_same_coordinates(
    store: Store, memory_bytes: int, patch_shape: tuple[int, int, int]
) -> None:
    for batch in take(open_patches(store, memory_bytes=memory_bytes, patch_shape=patch_shape), 6):
        assert batch.hu1.shape == batch.hu2.shape == (BATCH, *patch_shape)
        assert batch.hu1.dtype == np.int16
        np.testing.assert_array_equal(batch.hu1, batch.hu2)
        first = np.stack(np.meshgrid(*map(np.arange, patch_shape), indexing="ij"), axis=-1)
        for index in range(BATCH):
            voxels = batch.position_mm[index, 0] / batch.spacing_mm
            np.testing.assert_array_equal(frame_of(batch.hu1[index]), first + voxels)
        assert all(one.startswith("volume-1") for one, _ in batch.volume_ids)
        assert all(two.startswith("volume-2") for _, two in batch.volume_ids)


def test_with_jitter_each_position_still_says_where_its_patch_lies(store: Store) -> None:
    moved = 0
    for batch in take(open_patches(store, jitter=2), 4):
        for hu, position in ((batch.hu1, 0), (batch.hu2, 1)):
            voxels = batch.position_mm[:, position] / batch.spacing_mm
            np.testing.assert_array_equal(frame_of(hu[:, 0, 0, 0]), voxels)
        moved += int((batch.position_mm[:, 0] != batch.position_mm[:, 1]).any(axis=1).sum())
    assert moved > 16


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_see_what_one_rank_sees(store: Store, world_size: int) -> None:
    whole = take(open_patches(store), 5)
    ranks = [
        take(open_patches(store, rank=rank, world_size=world_size), 5) for rank in range(world_size)
    ]
    for one, parts in zip(whole, zip(*ranks, strict=True), strict=True):
        assert same(one, joined(parts))
    seen = [set(np.concatenate([batch.samples for batch in rank]).tolist()) for rank in ranks]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 5 * BATCH


@settings(max_examples=12)
@given(stop=st.integers(0, 6), world_size=st.sampled_from([1, 2, 4]), threads=st.integers(1, 3))
def test_a_restart_at_any_step_and_world_size_goes_on_exactly(
    store: Store, stop: int, world_size: int, threads: int
) -> None:
    whole = take(open_patches(store), 8)
    first = open_patches(store, threads=threads)
    before = take(first, stop)
    assert first.step == stop
    ranks = [
        take(open_patches(store, start_step=first.step, rank=rank, world_size=world_size), 8 - stop)
        for rank in range(world_size)
    ]
    after = [joined(parts) for parts in zip(*ranks, strict=True)]
    assert all(same(a, b) for a, b in zip(whole, before + after, strict=True))


@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**64 - 1),
    pool=st.integers(1, 5),
    per_visit=st.integers(1, 9),
    patch_shape=st.sampled_from([(1, 8, 8), (3, 8, 8), (6, 7, 5)]),
    world_size=st.sampled_from([1, 2, 8]),
    threads=st.integers(1, 4),
    memory_bytes=st.sampled_from([0, 2**30]),
)
def test_a_sample_is_what_the_sampler_says_whoever_reads_it(
    store: Store,
    seed: int,
    pool: int,
    per_visit: int,
    patch_shape: tuple[int, int, int],
    world_size: int,
    threads: int,
    memory_bytes: int,
) -> None:
    drawn = {
        "seed": seed,
        "pool": pool * BATCH,
        "patches_per_visit": per_visit,
        "patch_shape": patch_shape,
    }
    sampler = PairSampler(store.rows, **drawn)
    names = sampler.rows.column("volume_id")
    for rank in range(world_size):
        options = {"rank": rank, "world_size": world_size, "threads": threads}
        for batch in take(open_patches(store, memory_bytes=memory_bytes, **drawn, **options), 5):
            for index, n in enumerate(batch.samples.tolist()):
                pair = sampler.pair(n)
                assert batch.volume_ids[index] == tuple(names[list(pair.volumes)])
                np.testing.assert_array_equal(
                    batch.position_mm[index], np.multiply(pair.frame, store.rows[0].spacing_mm)
                )
                for hu, start, volume in zip(
                    (batch.hu1, batch.hu2), pair.starts, pair.volumes, strict=True
                ):
                    whole = whole_volume(store, names[volume])
                    z, y, x = (slice(a, a + n) for a, n in zip(start, patch_shape, strict=True))
                    np.testing.assert_array_equal(hu[index], whole[z, y, x])


def test_a_disk_and_an_object_store_give_the_same_batches(store: Store, place: Place) -> None:
    other = Store.open(coordinate_store(place).place)
    for one, two in zip(take(open_patches(store), 5), take(open_patches(other), 5), strict=True):
        assert same(one, two)


def test_memory_and_boxes_give_the_same_batches(store: Store) -> None:
    decoded = open_patches(store)
    boxes = open_patches(store, memory_bytes=decoded.cohort_bytes - 1)
    assert (decoded.in_memory, boxes.in_memory) == (True, False)
    assert decoded.cohort_bytes == sum(2 * int(np.prod(row.shape)) for row in store.rows)
    for one, other in zip(take(decoded, 5), take(boxes, 5), strict=True):
        assert same(one, other)


@pytest.mark.parametrize("memory_bytes", [0, 2**30])
def test_damage_reaches_the_consumer_with_its_name_and_the_step_stays(
    own_store: Store, memory_bytes: int
) -> None:
    damaged = own_store.row("volume-1-0")
    (shard,) = (
        f for f in (own_store.place.root / damaged.array_path / "c").rglob("*") if f.is_file()
    )
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    stream = open_patches(own_store, memory_bytes=memory_bytes)
    with pytest.raises(StoreCorrupt, match=r"volume-1-0.*volumes/volume-1-0-"):
        take(stream, 50)
    step = stream.step
    with (
        open_patches(own_store, memory_bytes=memory_bytes, start_step=step) as again,
        pytest.raises(StoreCorrupt, match="volume-1-0"),
    ):
        next(again)


def test_asking_again_after_an_error_does_not_skip_a_batch(own_store: Store) -> None:
    expected = take(open_patches(own_store), 1)[0]
    with open_patches(Store.open(own_store.place), memory_bytes=0) as stream:
        hidden = own_store.place.root / "volumes"
        hidden.rename(own_store.place.root / "away")
        for _ in range(2):
            with pytest.raises(StoreCorrupt):
                next(stream)
        (own_store.place.root / "away").rename(hidden)
        assert stream.step == 0
    assert same(take(open_patches(own_store, start_step=stream.step), 1)[0], expected)


def test_closing_ends_all_threads(store: Store) -> None:
    before = {thread.name for thread in threading.enumerate()}
    with open_patches(store, threads=3, memory_bytes=0) as stream:
        next(stream)
        assert any(t.name.startswith("patches") for t in threading.enumerate())
    stream.close()
    after = {t.name for t in threading.enumerate() if t.name.startswith("patches")}
    assert after <= before


def test_a_stream_does_not_cross_a_fork(store: Store) -> None:
    context = multiprocessing.get_context("fork")
    parent, child = context.Pipe()
    with open_patches(store) as stream:
        process = context.Process(target=_next_in_child, args=(stream, child))
        process.start()
        assert parent.poll(30)
        assert "before a fork" in parent.recv()
        process.join()


def test_wrong_numbers_are_refused_before_threads_start(store: Store) -> None:
    with pytest.raises(ValueError, match=r"global_batch is 8; expected a multiple of .* 3"):
        open_patches(store, world_size=3)
    with pytest.raises(ValueError, match="threads is 0"):
        open_patches(store, threads=0)
    with pytest.raises(ValueError, match=r"pool is 12; expected a multiple of global_batch = 8"):
        open_patches(store, pool=12)


def test_a_sampler_of_another_store_is_refused(store: Store, tmp_path: Path) -> None:
    other = Store.create(tmp_path / "other", None)
    sampler = PairSampler(store.rows, seed=0, patch_shape=PATCH)
    with pytest.raises(StoreError, match="no volume 'volume-1-0'"):
        PatchStream(other, sampler, rank=0, world_size=1, global_batch=2, memory_bytes=0)


@dataclass(frozen=True)
class Settings:
    patch: tuple[int, ...] = (8, 8)
    slices: int = 1
    pairing: Any = "unpaired"
    jitter: int = 0
    balance: Any = "volumes"
    body_fraction: float = 1.0
    mask_fraction: float = 0.0
    pool: int | None = None
    patches_per_visit: int = 2
    amplification: float = 2.0
    validation_fraction: float = 0.3
    validation_seed: int = 0
    memory_bytes: int = 2**30
    threads: int = 1


@pytest.mark.parametrize(
    ("patch", "slices", "shape"),
    [((8, 8), 1, (1, 8, 8)), ((8, 8), 3, (3, 8, 8)), ((4, 8, 8), 1, (4, 8, 8))],
)
def test_patches_are_flat_stacks_of_slices_or_blocks(
    store: Store, patch: tuple[int, ...], slices: int, shape: tuple[int, int, int]
) -> None:
    settings = Settings(patch=patch, slices=slices)
    with open_stream(store, settings, seed=0, rank=0, world_size=1, global_batch=BATCH) as stream:
        assert next(stream).hu1.shape == (BATCH, *shape)


def test_a_configured_stream_leaves_out_the_patients_held_for_validation(store: Store) -> None:
    seed = next(s for s in range(99) if 1 <= len(split_patients(store.rows, 0.3, s)[1]) <= 2)
    held = set(split_patients(store.rows, 0.3, seed)[1].column("volume_id"))
    for other in (seed, seed + 1):  # which a second training has
        settings = replace(Settings(), validation_seed=seed)
        stream = open_stream(store, settings, seed=other, rank=0, world_size=1, global_batch=BATCH)
        with stream:
            batches = take(stream, 10)
        seen = {name for batch in batches for pair in batch.volume_ids for name in pair}
        assert not seen & held
    assert batches[0].hu1.shape == (BATCH, 1, 8, 8)
    assert len(seen) == len(store.rows) - len(held)


def test_a_pool_is_rounded_up_to_whole_batches(store: Store) -> None:
    for pool, expected in ((None, 4 * BATCH), (1, BATCH), (BATCH + 1, 2 * BATCH)):
        given = replace(Settings(), pool=pool)
        with open_stream(store, given, seed=0, rank=0, world_size=1, global_batch=BATCH) as stream:
            assert stream.sampler.pool == expected


def test_memory_stays_flat_and_within_its_bound(tmp_path: Path) -> None:
    """Ten thousand samples, of volumes that are larger than the bound."""
    store = Store.create(tmp_path / "store", None)
    for number in range(6):
        hu = np.tile(body_hu((40, 300, 300), number), (3, 1, 1))
        write_volume(
            store,
            f"v{number}",
            domain=1 + number % 2,
            patient=f"p{number}",
            hu=hu,
            origin=(60, 150, 150),
        )
    context = multiprocessing.get_context("spawn")
    parent, child = context.Pipe()
    process = context.Process(target=_resident_bytes, args=(str(store.place), child))
    process.start()
    child.close()
    bound, cohort, before, *during = parent.recv()
    process.join()
    assert cohort > bound
    assert max(during) - before < bound
    settled = during[len(during) // 5 :]
    assert max(settled) - min(settled) < 0.2 * bound


def _resident_bytes(path: str, pipe: Any) -> None:
    store = Store.open(path)
    shape = (8, 64, 64)
    sampler = PairSampler(store.rows, seed=1, patch_shape=shape, pool=32, patches_per_visit=12)
    process = psutil.Process()
    before = process.memory_info().rss
    with PatchStream(
        store, sampler, rank=0, world_size=1, global_batch=BATCH, memory_bytes=0, threads=2
    ) as stream:
        seen = [stream.memory_bound_bytes, stream.cohort_bytes, before]
        for step in range(10_000 // BATCH):
            next(stream)
            if step % 25 == 0:
                seen.append(process.memory_info().rss)
    pipe.send(seen)


def _next_in_child(stream: Iterator[Batch], pipe: Any) -> None:
    try:
        next(stream)
        pipe.send("a batch")
    except StoreError as error:
        pipe.send(str(error))
