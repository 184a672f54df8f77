"""Calcium without a mask of it: compact bright specks, kept, lost or invented by a candidate.

A speck is a connected piece (by faces, edges or corners) of at least 3 mm^3 that is at most 10 mm
long along every axis: a plaque has that size, while bones and enhanced organs do not. Arrays are HU
[Z, Y, X] on one grid, masks bool of that shape, spacings in mm along z, y, x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from pmg.arrays import HU, Mask, Spacing

__all__ = ["CALCIUM_HU", "INVENTED", "RISE_HU", "SPECK", "Speck", "invented", "kept", "specks"]


# From here on it is calcium without contrast agent (Agatston's threshold), and with it, in the
# portal venous phase, where blood reaches 170 HU. In arterial contrast 800 HU would be right.
CALCIUM_HU = {False: 130.0, True: 300.0}
RISE_HU = 100.0

_LEAST_MM3 = 3.0
_LONGEST_MM = 10.0
_BLOOMING_MM = 3.0
_ANY_NEIGHBOUR = np.ones((3, 3, 3), dtype=bool)

SPECK = f"pieces of {_LEAST_MM3:g} mm3 or more, at most {_LONGEST_MM:g} mm long"
INVENTED = f"{SPECK}, {RISE_HU:g} HU or more above source and truth"


@dataclass(frozen=True)
class Speck:
    """One compact piece: its voxels [n, 3] as indices (z, y, x)."""

    voxels: NDArray[np.int_]

    @property
    def index(self) -> tuple[NDArray[np.int_], ...]:
        return tuple(self.voxels.T)


def specks(mask: Mask, spacing_mm: Spacing) -> list[Speck]:
    """The compact pieces of a mask."""
    labels, count = ndimage.label(mask, _ANY_NEIGHBOUR)
    volume_mm3 = np.bincount(labels.ravel(), minlength=count + 1) * np.prod(spacing_mm)
    found = []
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        longest = max((s.stop - s.start) * mm for s, mm in zip(box, spacing_mm, strict=True))
        if volume_mm3[label] >= _LEAST_MM3 and longest <= _LONGEST_MM:
            found.append(Speck(np.argwhere(labels[box] == label) + [s.start for s in box]))
    return found


def invented(
    candidate: HU,
    known: tuple[HU, ...],
    body: Mask,
    spacing_mm: Spacing,
    *,
    from_hu: float,
    plaque: Mask | None = None,
) -> int:
    """Number of specks that a candidate has and nothing that is known.

    Voxels inside the body of at least `from_hu` that rise RISE_HU or more above each of `known`:
    the source, and the truth where there is one. Specks within 3 mm of a voxel of `plaque`, the
    true ones, are their blooming and do not count.
    """
    rises = body & (candidate >= from_hu)
    for hu in known:
        rises &= candidate.astype(np.float32) - hu.astype(np.float32) >= RISE_HU
    found = specks(rises, spacing_mm)
    if plaque is None or not plaque.any():
        return len(found)
    tree = cKDTree(np.argwhere(plaque) * np.array(spacing_mm))
    return sum(
        bool(tree.query(speck.voxels * np.array(spacing_mm))[0].min() > _BLOOMING_MM)
        for speck in found
    )


def kept(
    candidate: HU, source: HU, body: Mask, spacing_mm: Spacing, *, from_hu: float
) -> tuple[int, int]:
    """Number of the source's specks of `from_hu` or more that a candidate keeps, and of all.

    Those count that stand out: whose mean is RISE_HU or more above that of the shell one and two
    voxels round them in plane. Kept: the mean over its voxels has not fallen by more than half of
    that. In contrast the blood beside calcium rises; calcium itself has no reason to fall.
    """
    stay = count = 0
    for speck in specks(body & (source >= from_hu), spacing_mm):
        before, after = (float(hu[speck.index].mean()) for hu in (source, candidate))
        contrast = before - float(source[_shell(speck, source.shape)].mean())
        if contrast >= RISE_HU:
            count += 1
            stay += after >= before - 0.5 * contrast
    return stay, count


def _shell(speck: Speck, shape: tuple[int, ...]) -> tuple[NDArray[np.int_], ...]:
    """Indices of the voxels one and two voxels round a speck in plane."""
    low = np.maximum(speck.voxels.min(axis=0) - np.array((0, 2, 2)), 0)
    high = np.minimum(speck.voxels.max(axis=0) + np.array((1, 3, 3)), shape)
    own = np.zeros(high - low, dtype=bool)
    own[tuple((speck.voxels - low).T)] = True
    grown = ndimage.binary_dilation(own, np.ones((1, 3, 3), dtype=bool), iterations=2)
    return tuple((np.argwhere(grown & ~own) + low).T)
