"""Which patches make sample n: pure functions of integers and the catalogue, without any I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from storage.catalogue import Catalogue, Index, Row
from storage.errors import GeometryError, StoreError

__all__ = ["PairSampler", "Pairing", "PatchPair", "rank_samples", "split_patients"]

Pairing = Literal["unpaired", "same_patient"]

# Bodies cover most of their boxes, so that a position is found in two or three draws.
_PAIR_DRAWS = 64
_POSITION_DRAWS = 32

_SAME_SPACING_MM = 1e-3
_SAME_DIRECTION = 1e-2  # half a degree, in a cosine's terms


@dataclass(frozen=True)
class PatchPair:
    """Two patches at one place of the body-centred frame. Pairs are (domain 1, domain 2).

    volumes: indices into the sampler's `rows`.
    starts: first voxel of each patch in its array, z, y, x.
    frame: the same voxels counted from the frame's origin; equal when there is no jitter.
    """

    volumes: tuple[int, int]
    starts: tuple[Index, Index]
    frame: tuple[Index, Index]


class PairSampler:
    """Co-located patch pairs: `pair(n)` depends on (seed, n, catalogue) and on nothing else.

    A volume of domain 1 is drawn of those that have a partner, then its partner of domain 2: of
    another patient (`unpaired`) or the same (`same_patient`), and of the same frame rule, because
    origins found by different rules are different places of the body. Then one position u of the
    common frame is drawn where the patch lies inside both arrays and its centre inside both bodies
    (to a cell's precision). Both are cropped at u; `jitter` moves the second patch by up to so many
    voxels along each axis, within its array.

    rows: in any order; they are sorted by volume id, so the order of ingest does not matter.
    patch_shape: voxels along z, y, x; (1, h, w) for 2D.

    Raises GeometryError when two volumes are not of one spacing and orientation, StoreError when
    no volumes can be paired.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        seed: int,
        patch_shape: Index,
        pairing: Pairing = "unpaired",
        jitter: int = 0,
    ) -> None:
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed is {seed}; expected 0 to 2^64 - 1")
        if len(patch_shape) != 3 or min(patch_shape) < 1:
            raise ValueError(f"patch_shape is {patch_shape}; expected three positive integers")
        if pairing not in get_args(Pairing):
            raise ValueError(f"pairing is {pairing!r}; expected one of {get_args(Pairing)}")
        if jitter < 0:
            raise ValueError(f"jitter is {jitter} voxels; expected 0 or more")
        self.seed = seed
        self.patch_shape = patch_shape
        self.pairing = pairing
        self.jitter = jitter
        self.rows = _sorted(Catalogue.of(rows))
        self._places = np.hstack([self.rows.column(name) for name in _PLACE]).reshape(-1, 6, 3)
        self._cells_start, self._cells = self.rows.bitmaps()

        domain = self.rows.column("domain")
        fits = (self.rows.column("shape") >= np.array(patch_shape)).all(axis=1)
        first, second = (np.flatnonzero(fits & (domain == d)) for d in (1, 2))
        for number, usable in ((1, first), (2, second)):
            if not len(usable):
                raise StoreError(self._why_empty(number, domain))
        self.spacing_mm = _common_grid(self.rows)

        # Domain 2 by frame rule, then by patient: a rule is a block to draw from, and a patient a
        # block in it, to be drawn from alone or left out.
        rules, rule = np.unique(self.rows.column("frame_rule"), return_inverse=True)
        patients, patient = np.unique(self.rows.column("patient"), return_inverse=True)
        block = rule * len(patients) + patient
        self._second = second[np.argsort(block[second], kind="stable")]
        begin, end = _blocks(block[self._second], block[first])
        rule_begin, rule_end = _blocks(rule[self._second], rule[first])
        own = end - begin
        partners = own if pairing == "same_patient" else rule_end - rule_begin - own
        able = partners > 0
        if not able.any():
            raise StoreError(self._why_no_partner(rules, rule[first], rule[second]))
        self._first, self._begin, self._rule_begin = first[able], begin[able], rule_begin[able]
        self._own, self._partners = own[able], partners[able]

    def pair(self, n: int) -> PatchPair:
        """Sample n of the run. Raises StoreError when no place is found in a bounded search."""
        draws = _Draws(self.seed, n)
        apart = 0
        for _ in range(_PAIR_DRAWS):
            one, two = self._volumes(draws)
            places = self._place(one), self._place(two)
            common = _common_range(places, self.patch_shape)
            if common is None:
                apart += 1
                continue
            for _ in range(_POSITION_DRAWS):
                z, y, x = (low + draws.below(high - low + 1) for low, high in common)
                if self._body_at(one, places[0], (z, y, x)) and self._body_at(
                    two, places[1], (z, y, x)
                ):
                    return self._cropped(draws, (one, two), places, (z, y, x))
        raise StoreError(
            f"sample {n}: no place for a patch of {self.patch_shape} voxels found in {_PAIR_DRAWS} "
            f"pairs ({len(self._first)} volumes of domain 1, {len(self._second)} of domain 2): "
            f"{apart} pairs have no common extent of their bodies, the others no body at a common "
            "place; check the frame's origin of both domains, or take a smaller patch"
        )

    def _volumes(self, draws: _Draws) -> tuple[int, int]:
        pick = draws.below(len(self._first))
        begin, own = int(self._begin[pick]), int(self._own[pick])
        other = draws.below(int(self._partners[pick]))
        if self.pairing == "same_patient":
            other += begin
        else:
            other += int(self._rule_begin[pick])
            if other >= begin:
                other += own
        return int(self._first[pick]), int(self._second[other])

    def _place(self, volume: int) -> _Place:
        return _Place._make(self._places[volume].tolist())

    def _body_at(self, volume: int, place: _Place, u: Index) -> bool:
        """Whether the cell at the centre of a patch at u holds body; see `body_cells`."""
        bit = 0
        for axis, size in enumerate(self.patch_shape):
            centre = u[axis] + place.origin[axis] + size // 2
            bit = bit * place.grid[axis] + centre // place.cell[axis]
        byte = int(self._cells[int(self._cells_start[volume]) + bit // 8])
        return bool(byte >> (bit % 8) & 1)

    def _cropped(
        self, draws: _Draws, volumes: tuple[int, int], places: tuple[_Place, _Place], u: Index
    ) -> PatchPair:
        one, two = places
        moved = [axis_u + draws.below(2 * self.jitter + 1) - self.jitter for axis_u in u]
        start_1 = [a + o for a, o in zip(u, one.origin, strict=True)]
        start_2 = [
            min(max(a + o, 0), n - size)
            for a, o, n, size in zip(moved, two.origin, two.extent, self.patch_shape, strict=True)
        ]
        frame_2 = [a - o for a, o in zip(start_2, two.origin, strict=True)]
        return PatchPair(volumes, (_index(start_1), _index(start_2)), (u, _index(frame_2)))

    def _why_empty(self, number: int, domain: np.ndarray) -> str:
        there = domain == number
        if not there.any():
            return f"domain {number} has no volume among {len(domain)}; expected at least one"
        largest = self.rows.column("shape")[there].max(axis=0).tolist()
        return (
            f"a patch of {self.patch_shape} voxels fits none of the {there.sum()} volumes of "
            f"domain {number} (largest extents {largest}); take a smaller patch"
        )

    def _why_no_partner(self, rules: np.ndarray, first: np.ndarray, second: np.ndarray) -> str:
        wanted = "the same patient" if self.pairing == "same_patient" else "another patient"
        counts = "; ".join(
            f"{rule!r}: {(first == number).sum()} and {(second == number).sum()}"
            for number, rule in enumerate(rules)
        )
        return (
            f"pairing {self.pairing!r}: none of the {len(first)} volumes of domain 1 has a partner "
            f"of {wanted} among the {len(second)} of domain 2 whose frame's origin was found by "
            f"the same rule; volumes of domains 1 and 2 by rule: {counts}"
        )


# What `pair` needs of a volume: 18 integers, which `_Place` takes apart.
_PLACE = ("shape", "frame_origin", "body_box", "cell_shape", "cells_grid")


class _Place(NamedTuple):
    extent: list[int]
    origin: list[int]
    body_low: list[int]
    body_high: list[int]
    cell: list[int]
    grid: list[int]


def _common_range(
    places: tuple[_Place, _Place], patch_shape: Index
) -> list[tuple[int, int]] | None:
    """Lowest and highest u on each axis with the patch in both arrays, its centre in both boxes."""
    ranges = []
    for axis, size in enumerate(patch_shape):
        low = max(max(0, p.body_low[axis] - size // 2) - p.origin[axis] for p in places)
        high = min(
            min(p.extent[axis] - size, p.body_high[axis] - 1 - size // 2) - p.origin[axis]
            for p in places
        )
        if high < low:
            return None
        ranges.append((low, high))
    return ranges


class _Draws:
    """Random integers of one sample: Philox (Salmon et al. 2011) keyed by (seed, n).

    Taken from the raw words: NumPy promises those for all versions, `Generator`'s methods not.
    """

    def __init__(self, seed: int, n: int) -> None:
        if not 0 <= n < 2**64:
            raise ValueError(f"sample index is {n}; expected 0 to 2^64 - 1")
        self._words = np.random.Philox(key=np.array([seed, n], np.uint64))
        self._ready: list[int] = []

    def below(self, bound: int) -> int:
        """Uniform in 0 to bound - 1; its bias, bound / 2^64, is beyond any count of samples."""
        if not self._ready:
            self._ready = self._words.random_raw(16).tolist()
        return self._ready.pop() * bound >> 64


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
    patients, which = np.unique(catalogue.column("patient"), return_inverse=True)
    held = np.array([_unit_hash(seed, patient) < fraction for patient in patients], bool)[which]
    return catalogue.select(~held), catalogue.select(held)


def _unit_hash(seed: int, patient: str) -> float:
    digest = hashlib.sha256(f"{seed}\0{patient}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _blocks(ordered: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each wanted value begins and ends in an ordered array; both are equal if it lacks."""
    return np.searchsorted(ordered, wanted, "left"), np.searchsorted(ordered, wanted, "right")


def _sorted(rows: Catalogue) -> Catalogue:
    ids = rows.column("volume_id")
    order = np.argsort(ids, kind="stable")
    return rows if (order == np.arange(len(order))).all() else rows.select(order)


def _common_grid(rows: Catalogue) -> tuple[float, float, float]:
    """The spacing of all rows. Raises GeometryError naming two volumes that differ."""
    spacing = rows.column("spacing_mm")
    directions = rows.column("affine").reshape(-1, 4, 4)[:, :3, :3] / spacing[:, None, :]
    other_spacing = np.abs(spacing - spacing[0]).max(axis=1) > _SAME_SPACING_MM
    turned = np.abs(directions - directions[0]).max(axis=(1, 2)) > _SAME_DIRECTION
    for what, differs in (("spacing", other_spacing), ("direction of axes", turned)):
        if differs.any():
            row, other = rows[0], rows[int(np.argmax(differs))]
            raise GeometryError(
                f"volumes {row.volume_id} and {other.volume_id} differ in {what} (spacing "
                f"{row.spacing_mm} and {other.spacing_mm} mm); patches can be co-located on one "
                "grid only: ingest into a store with spacing_mm set"
            )
    z, y, x = spacing[0].tolist()
    return z, y, x


def _index(values: list[int]) -> Index:
    z, y, x = values
    return z, y, x
