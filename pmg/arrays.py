"""Types of the arrays that evaluation handles, all [Z, Y, X] with slices along axis 0."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["HU", "Labels", "Mask", "Spacing"]

HU = NDArray[np.floating] | NDArray[np.integer]
Labels = NDArray[np.integer]
Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]  # mm along z, y, x
