"""Which tissues evaluation tells apart: organs by label, and what contrast must not change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from pmg.arrays import HU, Labels, Mask

__all__ = ["BONES", "BONE_NOTE", "FAT_NOTE", "ORGANS", "cortical_bone", "fat"]


# TotalSegmentator's vertebrae with the sacrum, hips, ribs, sternum and cartilages; 133 and 134 are
# the phantom's bone and cartilage.
BONES = (*range(25, 51), 77, 78, *range(92, 118), 133, 134)

# Labels as TotalSegmentator numbers them; what is not its is the phantom's.
ORGANS: dict[str, tuple[int, ...]] = {
    "aorta": (52,),
    "liver": (5,),
    "kidney": (2, 3),
    "spleen": (1,),
    "pancreas": (7,),
    "vena cava": (63,),
    "portal vein": (64,),
    "fat": (131,),
    "muscle": (132,),
    "bone": BONES,
}

_FAT_HU = (-140.0, -60.0)
_FAT_LABELS = (131,)
_CORTICAL_HU = 500.0  # above any enhanced vessel; cortical bone has 700 and more, less where thin
_IN_PLANE = np.ones((1, 3, 3), dtype=bool)

FAT_NOTE = f"source {_FAT_HU[0]:g} to {_FAT_HU[1]:g} HU, one voxel inside its border"
BONE_NOTE = f"source {_CORTICAL_HU:g} HU or more"


def fat(source: HU, body: Mask, organs: Labels | None = None) -> Mask:
    """Fat by its HU in the source, and by label where the map knows fat, inside its border."""
    smooth = ndimage.uniform_filter(source.astype(np.float32), (1, 3, 3))  # of noise
    mask = body & (smooth >= _FAT_HU[0]) & (smooth <= _FAT_HU[1])
    inner: Mask = ndimage.binary_erosion(_labelled(mask, organs, _FAT_LABELS), _IN_PLANE)
    return inner


def cortical_bone(source: HU, body: Mask, organs: Labels | None = None) -> Mask:
    """Dense bone by its HU in the source, and by label where the map knows bones."""
    return _labelled(body & (source >= _CORTICAL_HU), organs, BONES)


def _labelled(mask: Mask, organs: Labels | None, labels: Sequence[int]) -> Mask:
    if organs is None:
        return mask
    there: Mask = np.isin(organs, labels)
    return mask & there if there.any() else mask
