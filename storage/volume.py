"""The one in-memory form of a CT volume: HU on a regular grid in patient space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

__all__ = ["Volume"]


@dataclass(frozen=True)
class Volume:
    """HU on a regular, possibly oblique grid.

    hu: [Z, Y, X], int16 or float32, in Hounsfield units.
    affine: [4, 4] float64; `affine @ (z, y, x, 1)` is the centre of voxel hu[z, y, x] in LPS mm
    (DICOM's patient coordinates, PS3.3 C.7.6.2.1.1). Its columns follow the array's axes.
    steps: what reading did beyond rescaling, in the words of the provenance.
    """

    hu: np.ndarray
    affine: np.ndarray
    steps: tuple[Mapping[str, Any], ...] = ()

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along z, y, x."""
        z, y, x = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(z), float(y), float(x)

    @property
    def shape(self) -> tuple[int, int, int]:
        z, y, x = self.hu.shape
        return z, y, x

    @cached_property
    def hu_range(self) -> tuple[float, float]:
        """The lowest and the highest HU, NaN if there is one; looked for once."""
        return self.hu.min().item(), self.hu.max().item()
