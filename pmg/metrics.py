"""Figures of one translated case against its truth, in HU; arrays in, plain numbers out.

All arrays are [Z, Y, X] on one grid. `candidate` is the translation, or the source itself for the
identity ("no translation") baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = [
    "Plaque",
    "PlaqueContrast",
    "Truth",
    "body_mae",
    "organ_means",
    "plaque_contrasts",
]

HU = NDArray[np.floating] | NDArray[np.integer]
Mask = NDArray[np.bool_]

# Below this a plaque cannot be told from its surrounding in the truth itself.
_MIN_TRUE_CONTRAST_HU = 20.0


@dataclass(frozen=True)
class Plaque:
    """One plaque of the truth: its largest extent, and its centre as an index (z, y, x)."""

    diameter_mm: float
    centre: tuple[float, float, float]


@dataclass(frozen=True)
class Truth:
    """What a case should become.

    target: HU of the other phase. body: voxels that count. organs: label map, with the names of
    the labels to report. plaque_share: share of each voxel that is plaque.
    """

    target: HU
    body: Mask
    organs: NDArray[np.integer]
    organ_names: Mapping[str, tuple[int, ...]]
    plaque_share: NDArray[np.floating]
    plaques: tuple[Plaque, ...]


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


def body_mae(candidate: HU, truth: Truth) -> float:
    """Mean absolute error inside the body, in HU."""
    error = np.abs(candidate.astype(np.float32) - truth.target.astype(np.float32))
    return float(error[truth.body].mean())


def organ_means(hu: HU, truth: Truth) -> dict[str, float]:
    """Mean HU of every named organ, one voxel inside its border in plane (no partial volume).

    Organs of which nothing is left are absent.
    """
    in_plane = np.ones((1, 3, 3), dtype=bool)
    means = {}
    for name, labels in truth.organ_names.items():
        inside = ndimage.binary_erosion(np.isin(truth.organs, labels), structure=in_plane)
        if inside.any():
            means[name] = float(hu[inside].mean())
    return means


def plaque_contrasts(candidate: HU, truth: Truth) -> list[PlaqueContrast]:
    """Contrast of every plaque that fills some of a voxel.

    Contrast: mean HU over the plaque's voxels, weighted by its share of each, less the mean of the
    ring two and three voxels round it in plane, less what touches another plaque. True and
    candidate contrast are taken on the same voxels, so that partial volume affects both alike.
    """
    share = truth.plaque_share
    if not truth.plaques or not (share > 0).any():
        return []
    voxels = np.argwhere(share > 0)
    centres = np.array([p.centre for p in truth.plaques])
    owner = ((voxels[:, None] - centres[None]) ** 2).sum(axis=2).argmin(axis=1)
    near = _grown(share > 0, 1)
    contrasts = []
    for index, plaque in enumerate(truth.plaques):
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

        contrasts.append(
            PlaqueContrast(plaque.diameter_mm, contrast(truth.target), contrast(candidate))
        )
    return contrasts


def _grown(mask: Mask, voxels: int) -> Mask:
    """Dilated in plane."""
    grown: Mask = ndimage.binary_dilation(
        mask, structure=np.ones((1, 3, 3), dtype=bool), iterations=voxels
    )
    return grown
