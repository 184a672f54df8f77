"""Which patches make sample n: pure functions of integers and the catalogue, without any I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from storage.catalogue import Catalogue, Row
from storage.draws import Draws
from storage.errors import GeometryError, StoreError
from storage.foreground import Foreground
from storage.layout import Index
from storage.pairing import Balance, Pairing, Pairs
from storage.windows import spread, window_around, window_for

__all__ = ["PairSampler", "PatchPair", "Visit", "rank_samples", "split_patients"]

# Bodies cover most of their boxes, so that a place is found in two or three draws.
_PAIR_DRAWS = 64
_PLACE_DRAWS = 32
_ROUNDS = 16  # of as many places as a visit has patches

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio

_SAME_SPACING_MM = 1e-3
_SAME_DIRECTION = 1e-2  # half a degree, in a cosine's terms


@dataclass(frozen=True)
class Visit:
    """Patches of one pair of volumes that lie close to each other. R of them; (domain 1, domain 2).

    volumes: indices into the sampler's `rows`.
    starts: [2, R, 3] first voxel of each patch in its array, z, y, x.
    frame: [2, R, 3] the same voxels counted from the frame's origin; equal when there is no jitter.
    """

    volumes: tuple[int, int]
    starts: np.ndarray
    frame: np.ndarray


@dataclass(frozen=True)
class PatchPair:
    """Two patches at one place of the body-centred frame; one of a `Visit`'s."""

    volumes: tuple[int, int]
    starts: tuple[Index, Index]
    frame: tuple[Index, Index]


class PairSampler:
    """Co-located patch pairs: `pair(n)` depends on (seed, n, catalogue, settings), nothing else.

    Sample n is taken in slot n mod `pool`. A slot holds one visit, takes `patches_per_visit`
    samples from it one after the other, and goes on to its next; slots change their visits at
    different times. So the samples of `pool` consecutive n are of as many visits, and a reader has
    to decode one visit where it delivers `patches_per_visit` samples.

    A visit draws a pair of volumes (see `Pairs`), and a place u of the common frame where the patch
    lies inside both arrays and, for `body_fraction` of the visits, its centre inside both bodies
    (to a cell's precision). Its patches are spread over the window round u (see `windows`), under
    the same condition. Of all visits `mask_fraction` draw u in a masked cell of either volume
    instead, and so all their patches. Both volumes are cropped at u; `jitter` moves the second
    patch by up to so many voxels along each axis, within its array.

    rows: in any order; they are sorted by volume id, so the order of ingest does not matter.
    patch_shape: voxels along z, y, x; (1, h, w) for 2D.
    amplification: voxels decoded for each one delivered, which decides the windows' size.

    Raises GeometryError when two volumes are not of one spacing and orientation, StoreError when
    no volumes can be paired or none has a mask that was asked for.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        seed: int,
        patch_shape: Index,
        pairing: Pairing = "unpaired",
        balance: Balance = "volumes",
        jitter: int = 0,
        body_fraction: float = 1.0,
        mask_fraction: float = 0.0,
        pool: int = 64,
        patches_per_visit: int = 16,
        amplification: float = 1.3,
    ) -> None:
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed is {seed}; expected 0 to 2^64 - 1")
        if len(patch_shape) != 3 or min(patch_shape) < 1:
            raise ValueError(f"patch_shape is {patch_shape}; expected three positive integers")
        if jitter < 0:
            raise ValueError(f"jitter is {jitter} voxels; expected 0 or more")
        if pool < 1 or patches_per_visit < 1:
            raise ValueError(
                f"pool is {pool}, patches_per_visit {patches_per_visit}; expected 1 or more"
            )
        for name, share in (("body_fraction", body_fraction), ("mask_fraction", mask_fraction)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}; expected 0 to 1")
        self.seed = seed
        self.patch_shape = patch_shape
        self.jitter = jitter
        self.pool = pool
        self.patches_per_visit = patches_per_visit
        self.rows = _sorted(Catalogue.of(rows))
        self._shares = (mask_fraction, body_fraction)
        # By the golden ratio, any run of slots changes its visits at evenly spread times.
        self._leads = [(i * _GOLDEN % 2**64) * patches_per_visit >> 64 for i in range(pool)]

        domain = self.rows.column("domain")
        fits = np.all(self.rows.column("shape") >= np.array(patch_shape), axis=1)
        for number in (1, 2):
            if not (fits & (domain == number)).any():
                raise StoreError(self._why_empty(number, domain))
        self.spacing_mm = _common_grid(self.rows)
        self._pairs = Pairs(self.rows, fits, pairing, balance)
        self._ground = Foreground(self.rows, patch_shape)
        self._masked = self._pairs.among(self._ground.has_mask()) if mask_fraction else None
        if self._masked is not None and not any(map(len, self._masked)):
            raise StoreError(
                f"mask_fraction is {mask_fraction}, but none of the {len(self.rows)} volumes that "
                "can be paired has a mask; ingest one, or set it to 0"
            )
        usual = np.median(self.rows.column("shape")[fits], axis=0).astype(int)
        self.window = window_for(patch_shape, usual.tolist(), patches_per_visit, amplification)

    def turn(self, n: int) -> tuple[int, int, int]:
        """(slot, number of its visit, which of the visit's patches) of sample n."""
        if not 0 <= n < 2**64:
            raise ValueError(f"sample index is {n}; expected 0 to 2^64 - 1")
        turn, slot = divmod(n, self.pool)
        return slot, *divmod(turn + self._leads[slot], self.patches_per_visit)

    def pair(self, n: int) -> PatchPair:
        """Sample n of the run."""
        slot, number, which = self.turn(n)
        visit = self.visit(slot, number)
        (start_1, start_2), (frame_1, frame_2) = visit.starts[:, which], visit.frame[:, which]
        return PatchPair(
            visit.volumes,
            (_index(start_1.tolist()), _index(start_2.tolist())),
            (_index(frame_1.tolist()), _index(frame_2.tolist())),
        )

    def visit(self, slot: int, number: int) -> Visit:
        """The visit of a slot. Raises StoreError when no place is found in a bounded search."""
        draws = Draws(self.seed, number * self.pool + slot)
        if self._masked is not None and draws.chance(self._shares[0]):
            draw_spot = self._masked_spot
        elif draws.chance(self._shares[1]):
            draw_spot = self._body_spot
        else:
            draw_spot = self._any_spot
        for _ in range(_PAIR_DRAWS):
            spot = draw_spot(draws)
            if spot is not None:
                return self._cropped(spot, self._spread(spot, draws), draws)
        raise StoreError(
            f"visit {number} of slot {slot}: no place for a patch of {self.patch_shape} voxels "
            f"found in {_PAIR_DRAWS} pairs of volumes: they have no common extent, or no body at a "
            "common place; check the frame's origin of both domains, or take a smaller patch"
        )

    def _body_spot(self, draws: Draws) -> _Spot | None:
        pair = self._pairs.draw(draws)
        extent = self._ground.common_body(pair)
        if extent is None:
            return None
        places = _uniform(draws, *extent, _PLACE_DRAWS)
        inside = np.flatnonzero(self._ground.in_bodies(pair, places))
        if not len(inside):
            return None
        return _Spot(pair, places[inside[0]].tolist(), *extent, self._ground.in_bodies)

    def _masked_spot(self, draws: Draws) -> _Spot | None:
        assert self._masked is not None
        pair, at = self._pairs.draw_from(self._masked, draws)
        extent = self._ground.common_extent(pair)
        if extent is None:
            return None
        cell = self._ground.masked_cell(pair[at], draws.below(2**32))
        low = [max(a, b) for a, b in zip(extent[0], cell[0], strict=True)]
        high = [min(a, b) for a, b in zip(extent[1], cell[1], strict=True)]
        if any(a > b for a, b in zip(low, high, strict=True)):
            return None
        place = _uniform(draws, low, high, 1)[0].tolist()
        return _Spot(pair, place, *extent, self._ground.in_masks)

    def _any_spot(self, draws: Draws) -> _Spot | None:
        pair = self._pairs.draw(draws)
        extent = self._ground.common_extent(pair)
        if extent is None:
            return None
        return _Spot(pair, _uniform(draws, *extent, 1)[0].tolist(), *extent, None)

    def _spread(self, spot: _Spot, draws: Draws) -> np.ndarray:
        """[R, 3] places of a visit's patches in the window round its spot."""
        count = self.patches_per_visit
        first, last = window_around(spot.place, spot.low, spot.high, self.window)
        found = np.empty((0, 3), np.int64)
        for _ in range(_ROUNDS):
            places = spread(draws, first, last, count)
            if spot.valid is not None:
                places = places[spot.valid(spot.pair, places)]
            found = np.concatenate([found, places])
            if len(found) >= count:
                return found[:count]
        # The window has next to nothing but its spot, and is drawn as rarely.
        found = np.concatenate([found, [spot.place]])
        return found[np.arange(count) % len(found)]

    def _cropped(self, spot: _Spot, places: np.ndarray, draws: Draws) -> Visit:
        origins = np.array([self._ground.origin(volume) for volume in spot.pair])[:, None]
        starts = places + origins
        if self.jitter:
            moves = draws.fractions(len(places), 3) * np.uint64(2 * self.jitter + 1)
            moved = starts[1] + (moves >> np.uint64(32)).astype(np.int64) - self.jitter
            most = np.subtract(self._ground.extent(spot.pair[1]), self.patch_shape)
            starts[1] = np.clip(moved, 0, most)
        return Visit(spot.pair, starts, starts - origins)

    def _why_empty(self, number: int, domain: np.ndarray) -> str:
        there = domain == number
        if not there.any():
            return f"domain {number} has no volume among {len(domain)}; expected at least one"
        largest = self.rows.column("shape")[there].max(axis=0).tolist()
        return (
            f"a patch of {self.patch_shape} voxels fits none of the {there.sum()} volumes of "
            f"domain {number} (largest extents {largest}); take a smaller patch"
        )


@dataclass(frozen=True)
class _Spot:
    """A place that a visit has drawn, the lowest and highest that it could have, and on which
    condition."""

    pair: tuple[int, int]
    place: list[int]
    low: list[int]
    high: list[int]
    valid: Callable[[tuple[int, int], np.ndarray], np.ndarray] | None


def _uniform(draws: Draws, low: list[int], high: list[int], count: int) -> np.ndarray:
    """[count, 3] places from low to high inclusive."""
    size = np.subtract(high, low).astype(np.uint64) + np.uint64(1)
    offset = draws.fractions(count, 3) * size >> np.uint64(32)
    places: np.ndarray = np.asarray(low, np.int64) + offset.astype(np.int64)
    return places


def rank_samples(step: int, rank: int, world_size: int, global_batch: int) -> range:
    """The samples of one rank at one step.

    The ranks' ranges follow one another and together are `global_batch` samples from
    step * global_batch on, so that the sequence of the run is the same at every world size.
    """
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size}; expected 0 to world_size - 1")
    if global_batch < 1 or global_batch % world_size:
        raise ValueError(
            f"global_batch is {global_batch}; expected a multiple of world_size = {world_size}"
        )
    if step < 0:
        raise ValueError(f"step is {step}; expected 0 or more")
    share = global_batch // world_size
    begin = step * global_batch + rank * share
    return range(begin, begin + share)


def split_patients(rows: Sequence[Row], fraction: float, seed: int) -> tuple[Catalogue, Catalogue]:
    """(the rest, about `fraction` of the patients), every patient wholly on one side.

    A patient's side is a hash of (seed, patient): it does not change when others come or go. In a
    cohort of few patients the second part may therefore be empty.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction is {fraction}; expected 0 to 1")
    catalogue = Catalogue.of(rows)
    patients, which = catalogue.codes("patient")
    held = np.array([_unit_hash(seed, patient) < fraction for patient in patients], bool)[which]
    kept = catalogue.select(~held) if held.any() else catalogue  # not copied for nothing
    return kept, catalogue.select(held)


def _unit_hash(seed: int, patient: str) -> float:
    digest = hashlib.sha256(f"{seed}\0{patient}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _sorted(rows: Catalogue) -> Catalogue:
    ids = rows.array("volume_id")
    if pc.all(pc.less_equal(ids[:-1], ids[1:])).as_py() is not False:
        return rows
    return rows.select(np.argsort(rows.column("volume_id"), kind="stable"))


def _common_grid(rows: Catalogue) -> tuple[float, float, float]:
    """The spacing of all rows. Raises GeometryError naming two volumes that differ."""
    spacing, affine = rows.column("spacing_mm"), rows.column("affine").reshape(-1, 4, 4)
    first = affine[0, :3, :3] / spacing[0]
    for begin in range(0, len(rows), 4096):  # a large cohort's directions take much memory
        some = slice(begin, begin + 4096)
        directions = affine[some, :3, :3] / spacing[some, None, :]
        other_spacing = np.abs(spacing[some] - spacing[0]).max(axis=1) > _SAME_SPACING_MM
        turned = np.abs(directions - first).max(axis=(1, 2)) > _SAME_DIRECTION
        for what, differs in (("spacing", other_spacing), ("direction of axes", turned)):
            if differs.any():
                row, other = rows[0], rows[begin + int(np.argmax(differs))]
                raise GeometryError(
                    f"volumes {row.volume_id} and {other.volume_id} differ in {what} (spacing "
                    f"{row.spacing_mm} and {other.spacing_mm} mm); patches can be co-located on "
                    "one grid only: ingest into a store with spacing_mm set"
                )
    z, y, x = spacing[0].tolist()
    return z, y, x


def _index(values: list[int]) -> Index:
    z, y, x = values
    return z, y, x
