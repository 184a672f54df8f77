"""Calcified plaques whose place is known: how much of each a candidate keeps.

Arrays are HU [Z, Y, X] on one grid, spacings in mm along z, y, x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pmg.arrays import HU, Mask, Spacing

__all__ = ["SIZE_CLASSES", "Plaque", "PlaqueContrast", "plaque_contrasts"]


# Largest diameter in mm: from, and below.
SIZE_CLASSES = {"1-2 mm": (1.0, 2.0), "2-4 mm": (2.0, 4.0), "> 4 mm": (4.0, math.inf)}

# Below this a plaque cannot be told from its surrounding in the truth itself.
_MIN_TRUE_CONTRAST_HU = 20.0


@dataclass(frozen=True)
class Plaque:
    """One plaque of the truth: its largest extent, and its centre as an index (z, y, x)."""

    diameter_mm: float
    centre: tuple[float, float, float]


@dataclass(frozen=True)
class PlaqueContrast:
    """HU of one plaque above its surrounding, in the truth and in the candidate."""

    diameter_mm: float
    true_hu: float
    candidate_hu: float

    @property
    def measurable(self) -> bool:
        return self.true_hu >= _MIN_TRUE_CONTRAST_HU

    @property
    def kept(self) -> bool:
        """At least half of the true contrast is there."""
        return self.candidate_hu >= 0.5 * self.true_hu

    @property
    def retention(self) -> float:
        """Share of the true contrast that is there; more than 1 if there is more."""
        return self.candidate_hu / self.true_hu


def plaque_contrasts(
    candidate: HU,
    target: HU,
    share: NDArray[np.floating],
    plaques: Sequence[Plaque],
    spacing_mm: Spacing,
) -> list[PlaqueContrast]:
    """Contrast of every plaque that fills some of a voxel.

    share: of each voxel that is plaque; a voxel belongs to the plaque whose centre is nearest, in
    mm. Contrast: mean HU over the plaque's voxels, weighted by its share of each, less the mean of
    the ring two and three voxels round it in plane, less what touches another plaque. True and
    candidate contrast are taken on the same voxels, so that partial volume affects both alike.
    """
    if not plaques or not (share > 0).any():
        return []
    voxels = np.argwhere(share > 0)
    centres = np.array([p.centre for p in plaques])
    apart_mm = (voxels[:, None] - centres[None]) * np.array(spacing_mm)
    owner = np.square(apart_mm).sum(axis=2).argmin(axis=1)
    near = _grown(share > 0, 1)
    contrasts = []
    for index, plaque in enumerate(plaques):
        own = voxels[owner == index]
        if len(own) == 0:
            continue
        low = np.maximum(own.min(axis=0) - 4, 0)
        box = tuple(slice(a, b) for a, b in zip(low, own.max(axis=0) + 5, strict=True))
        mine = np.zeros(share.shape, dtype=bool)[box]
        mine[tuple((own - low).T)] = True
        ring = _grown(mine, 3) & ~near[box]
        if not ring.any():
            continue
        weight = share[box] * mine

        def contrast(
            hu: HU, box: tuple[slice, ...] = box, weight: HU = weight, ring: Mask = ring
        ) -> float:
            return float((hu[box] * weight).sum() / weight.sum() - hu[box][ring].mean())

        contrasts.append(PlaqueContrast(plaque.diameter_mm, contrast(target), contrast(candidate)))
    return contrasts


def _grown(mask: Mask, voxels: int) -> Mask:
    """Dilated in plane."""
    grown: Mask = ndimage.binary_dilation(
        mask, structure=np.ones((1, 3, 3), dtype=bool), iterations=voxels
    )
    return grown
