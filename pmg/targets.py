"""Real scans of the domain that is translated to, for what is judged without a truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pmg.distribution import (
    Framed,
    common_places,
    features,
    framed,
    kernel_distance,
    patches_at,
    placed,
    sliced_wasserstein,
)
from pmg.histogram import HuHistogram, mean_histogram
from pmg.model import Domain
from pmg.quantity import Amount, Measured, Quantity
from storage.errors import IngestError
from storage.series import find_sources, read_source
from storage.store import Store
from storage.volume import Volume

__all__ = ["MOST_TARGETS", "Targets", "is_store", "read_targets"]

MOST_TARGETS = 8
_PLACES = 500
_FEWEST_PLACES = 50

T = TypeVar("T")

_NOTE = "of patches at the same places in real scans; truth: other real scans"
_WASSERSTEIN = Quantity("sliced Wasserstein", "sd", f"features {_NOTE}", of_truth=True)
_KERNEL = Quantity("KID", "", f"features {_NOTE}", of_truth=True)


@dataclass(frozen=True)
class Targets:
    """Up to 8 real scans on the model's grid, and the histogram of all of them."""

    scans: tuple[Framed, ...]
    histogram: HuHistogram

    @classmethod
    def of(cls, volumes: Sequence[Volume], spacing_mm: tuple[float, float, float]) -> Targets:
        scans = tuple(framed(volume, spacing_mm) for volume in volumes)
        return cls(scans, mean_histogram([HuHistogram.of(s.volume.hu, s.body) for s in scans]))

    def distances(self, source: Framed, candidates: Mapping[str, Volume]) -> dict[str, Measured]:
        """Distances of every candidate of one case, and under "truth" those of other real scans.

        Candidates lie on the source's grid and are cut at the same places. Empty where the source
        shares hardly a place with the scans.
        """
        places = common_places(source, self.scans, _PLACES)
        if 2 * np.count_nonzero(places.other >= 0) >= len(places):
            places = places.where(places.other >= 0)
        if len(places) < _FEWEST_PLACES:
            return {}
        spacing_mm, own = source.volume.spacing_mm, np.zeros(len(places), int)
        real = features(patches_at(self.scans, places.offset, places.scan))
        target = placed(real, places.offset, spacing_mm, real)

        def measured(scans: Sequence[Framed], which: NDArray[np.int_]) -> Measured:
            values = features(patches_at(scans, places.offset, which))
            one = placed(values, places.offset, spacing_mm, real)
            return {
                _WASSERSTEIN: Amount(sliced_wasserstein(one, target)),
                _KERNEL: Amount(kernel_distance(one, target)),
            }

        distances = {
            name: measured([replace(source, volume=volume)], own)
            for name, volume in candidates.items()
        }
        if (places.other >= 0).all():
            distances["truth"] = measured(self.scans, places.other)
        return distances


def is_store(where: str) -> bool:
    """Whether a store is there, as far as one can tell without opening it."""
    return "://" in where or (Path(where) / "zarr.json").is_file()


def read_targets(where: str, domain: Domain, spacing_mm: tuple[float, float, float]) -> Targets:
    """The scans of a domain in a store, or of the series below a folder; at most 8, evenly spread.

    Raises IngestError if there is none.
    """
    volumes: list[Volume]
    if is_store(where):
        store = Store.open(where)
        names = sorted(row.volume_id for row in store.rows if row.domain == domain)
        volumes = [store.read(name) for name in _spread(names)]
    else:
        volumes = [read_source(source)[0] for source in _spread(find_sources(Path(where))[0])]
    if not volumes:
        raise IngestError(
            f"targets {where}: no scan of domain {domain}; expected a store or series"
        )
    return Targets.of(volumes, spacing_mm)


def _spread(items: Sequence[T]) -> list[T]:
    count = min(len(items), MOST_TARGETS)
    return [items[n * len(items) // count] for n in range(count)]
