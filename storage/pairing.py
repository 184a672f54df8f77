"""Which two volumes a visit reads: pairs of both domains, drawn evenly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from storage.catalogue import Catalogue
from storage.draws import Draws
from storage.errors import StoreError

__all__ = ["Balance", "Pairing", "Pairs"]

Pairing = Literal["unpaired", "same_patient"]
Balance = Literal["volumes", "patients"]


class Pairs:
    """Draws a volume of one domain that has a partner, then its partner in the other domain.

    A partner is of another patient (`unpaired`) or of the same (`same_patient`), and of the same
    frame rule, because origins found by different rules are different places of the body.
    `balance` says what is drawn evenly: volumes, or patients and then one of the patient's volumes.

    rows: sorted. usable: bool [N], volumes that may be drawn at all.
    Raises StoreError when no volumes can be paired.
    """

    def __init__(
        self, rows: Catalogue, usable: np.ndarray, pairing: Pairing, balance: Balance
    ) -> None:
        if pairing not in get_args(Pairing):
            raise ValueError(f"pairing is {pairing!r}; expected one of {get_args(Pairing)}")
        if balance not in get_args(Balance):
            raise ValueError(f"balance is {balance!r}; expected one of {get_args(Balance)}")
        domain = rows.column("domain")
        rules, rule = rows.codes("frame_rule")
        patients, patient = rows.codes("patient")
        first, second = (np.flatnonzero(usable & (domain == d)) for d in (1, 2))
        self._balance = balance
        self._patient = patient
        self._ways = (
            _Way(first, second, rule, patient, len(patients), pairing, balance),
            _Way(second, first, rule, patient, len(patients), pairing, balance),
        )
        if not len(self._ways[0].anchors):
            counts = "; ".join(
                f"{name!r}: {(rule[first] == i).sum()} and {(rule[second] == i).sum()}"
                for i, name in enumerate(rules)
            )
            wanted = "the same patient" if pairing == "same_patient" else "another patient"
            raise StoreError(
                f"pairing {pairing!r}: none of the {len(first)} volumes of domain 1 has a partner "
                f"of {wanted} among the {len(second)} of domain 2 whose frame's origin was found "
                f"by the same rule; volumes of domains 1 and 2 by rule: {counts}"
            )
        self._all = self.among(np.ones(len(rows), bool))

    def among(self, chosen: np.ndarray) -> tuple[_Units, _Units]:
        """For `draw`: volumes to begin a pair with, of domain 1 and of domain 2; bool [N]."""
        one, two = (
            _Units.of(way.anchors[chosen[way.anchors]], self._patient, self._balance)
            for way in self._ways
        )
        return one, two

    def draw(self, draws: Draws) -> tuple[int, int]:
        """A volume of domain 1 and its partner of domain 2."""
        one = self._all[0].draw(draws, 0, len(self._all[0]))
        return one, self._ways[0].partner(one, draws)

    def draw_from(self, begin: tuple[_Units, _Units], draws: Draws) -> tuple[tuple[int, int], int]:
        """A pair of which at least the one at the returned place (0 or 1) is of `begin`."""
        at = int(draws.below(len(begin[0]) + len(begin[1])) >= len(begin[0]))
        anchor = begin[at].draw(draws, 0, len(begin[at]))
        partner = self._ways[at].partner(anchor, draws)
        return ((anchor, partner) if at == 0 else (partner, anchor)), at


@dataclass(frozen=True)
class _Units:
    """Volumes in groups of which each is drawn as often: single volumes, or those of a patient.

    volumes: indices, those of a group one after the other. bounds: where each group begins, and the
    end of the last one.
    """

    volumes: np.ndarray
    bounds: np.ndarray

    @classmethod
    def of(cls, volumes: np.ndarray, block: np.ndarray, balance: Balance) -> _Units:
        """Sorted by block [N]; a block is a patient, or a patient under one frame rule."""
        ordered = volumes[np.argsort(block[volumes], kind="stable")]
        if balance == "volumes":
            return cls(ordered, np.arange(len(ordered) + 1))
        changes = np.flatnonzero(np.diff(block[ordered], prepend=-1))
        return cls(ordered, np.append(changes, len(ordered)))

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def draw(self, draws: Draws, first: int, end: int) -> int:
        """A volume of the groups from `first` on, before `end`."""
        unit = first + draws.below(end - first)
        begin, stop = int(self.bounds[unit]), int(self.bounds[unit + 1])
        return int(self.volumes[begin + draws.below(stop - begin)])


class _Way:
    """From the volumes of one domain to their partners in the other.

    anchors: volumes of the one domain that have a partner.
    """

    def __init__(
        self,
        ours: np.ndarray,
        others: np.ndarray,
        rule: np.ndarray,
        patient: np.ndarray,
        patients: int,
        pairing: Pairing,
        balance: Balance,
    ) -> None:
        # A rule is a range of groups to draw from, and a patient a range in it, to be drawn from
        # alone or left out.
        block = rule * patients + patient
        self._others = _Units.of(others, block, balance)
        of_group = self._others.volumes[self._others.bounds[:-1]]
        own = _ranges(block[of_group], block[ours])
        ruled = _ranges(rule[of_group], rule[ours])
        if pairing == "same_patient":
            ruled, own = own, np.stack([own[:, 0], own[:, 0]], axis=1)
        able = np.ptp(ruled, axis=1) > np.ptp(own, axis=1)
        self.anchors = ours[able]
        self._ranges = np.hstack([ruled, own])[able]

    def partner(self, anchor: int, draws: Draws) -> int:
        at = int(np.searchsorted(self.anchors, anchor))
        begin, end, own_begin, own_end = self._ranges[at].tolist()
        group = begin + draws.below(end - begin - (own_end - own_begin))
        if group >= own_begin:
            group += own_end - own_begin
        return self._others.draw(draws, group, group + 1)


def _ranges(ordered: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """[N, 2] where each wanted value begins and ends in an ordered array; equal if it lacks."""
    sides: Sequence[Literal["left", "right"]] = ("left", "right")
    return np.stack([np.searchsorted(ordered, wanted, side) for side in sides], axis=1)
