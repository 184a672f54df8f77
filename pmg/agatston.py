"""The Agatston score of calcium in arteries, as non-contrast CT defines it.

Agatston et al., J Am Coll Cardiol 1990;15:827: slice by slice, every piece of 130 HU or more and
1 mm^2 or more adds its area times a factor of its peak: 1 from 130 HU, 2 from 200, 3 from 300, 4
from 400. Defined on contiguous slices of 3 mm; those of another distance d count d / 3 each.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from pmg.arrays import HU, Labels, Mask, Spacing
from pmg.tissues import BONES

__all__ = ["agatston", "artery_region"]


_CALCIUM_HU = 130
_DENSITY_HU = (130, 200, 300, 400)
_LEAST_MM2 = 1.0
_SLICE_MM = 3.0
_ANY_NEIGHBOUR = np.ones((3, 3), dtype=bool)

# TotalSegmentator's aorta and iliac arteries.
_ARTERIES = (52, 65, 66)
_WALL_MM = 2.0


def agatston(hu: HU, inside: Mask, spacing_mm: Spacing) -> float:
    """The score of the calcium inside a region.

    hu: [Z, Y, X], slices along axis 0, z, y, x spacing in mm. Pixels that touch at a side or a
    corner are one piece.
    """
    pixel_mm2 = spacing_mm[1] * spacing_mm[2]
    score = 0.0
    for z in np.flatnonzero(inside.any(axis=(1, 2))):
        pieces, count = ndimage.label(inside[z] & (hu[z] >= _CALCIUM_HU), _ANY_NEIGHBOUR)
        area_mm2 = np.bincount(pieces.ravel(), minlength=count + 1)[1:] * pixel_mm2
        peaks = ndimage.maximum(hu[z], pieces, np.arange(1, count + 1))
        factor = np.searchsorted(_DENSITY_HU, peaks, side="right")
        score += float((area_mm2 * factor)[area_mm2 >= _LEAST_MM2].sum())
    return score * spacing_mm[0] / _SLICE_MM


def artery_region(organs: Labels, spacing_mm: Spacing) -> Mask:
    """Where the score counts: aorta and iliac arteries and 2 mm round them in plane, no bone.

    organs: [Z, Y, X], TotalSegmentator's labels. The margin is for plaques on the wall.
    """
    region: Mask = np.isin(organs, _ARTERIES)
    rows, columns = (int(_WALL_MM / mm) for mm in spacing_mm[1:])
    y, x = np.mgrid[-rows : rows + 1, -columns : columns + 1]
    disc = (y * spacing_mm[1]) ** 2 + (x * spacing_mm[2]) ** 2 <= _WALL_MM**2
    grown: Mask = ndimage.binary_dilation(region, disc[None])
    return grown & ~np.isin(organs, BONES)
