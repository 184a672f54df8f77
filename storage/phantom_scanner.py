"""The phantom's scanner: the protocol of a series, its grid, and its noise.

Realistic: partial volume, slice profile and blur (`phantom_render`); noise that is correlated,
stronger in the middle of the body, and independent per series. Not realistic: no reconstruction
from projections, hence no streaks, beam hardening, scatter, metal or motion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .phantom_shapes import Array, Vector

__all__ = ["TO_ILIACS", "Protocol", "grid_affine", "noise_hu"]


@dataclass(frozen=True)
class Protocol:
    """How a series is acquired and reconstructed.

    shape: slices, rows, columns. spacing_mm: between slices, rows, columns. thickness_mm: width of
    the box-shaped slice profile. centre_mm: middle of the grid in LPS mm, where (0, 0, 0) is near
    the second lumbar vertebra, z = 110 near the dome of the liver, z = -60 near the lower poles of
    the kidneys, z = 290 near the aortic arch. blur_px: standard deviation of the in-plane point
    spread. noise_sd_hu: what the noise's standard deviation is drawn from; at 120 kVp 8 to 15 HU at
    5 mm, 12 to 25 at 3 mm, 20 to 35 at 1 mm. table_gap_mm: between back and table; None: no table.
    """

    shape: tuple[int, int, int] = (60, 192, 192)
    spacing_mm: tuple[float, float, float] = (3.0, 2.0, 2.0)
    thickness_mm: float = 3.0
    centre_mm: tuple[float, float, float] = (0.0, -30.0, 20.0)
    blur_px: float = 0.65
    noise_sd_hu: tuple[float, float] = (12.0, 25.0)
    table_gap_mm: float | None = 4.0

    def __post_init__(self) -> None:
        positive = (*self.shape, *self.spacing_mm, self.thickness_mm)
        if min(positive) <= 0:
            raise ValueError(
                f"protocol shape {self.shape}, spacing_mm {self.spacing_mm}, thickness_mm "
                f"{self.thickness_mm}: expected numbers above 0"
            )
        low, high = self.noise_sd_hu
        if self.blur_px < 0 or not 0 <= low <= high:
            raise ValueError(
                f"protocol blur_px {self.blur_px}, noise_sd_hu {self.noise_sd_hu}: expected a "
                "blur of 0 or more, and a range of two numbers of 0 or more, the lower first"
            )


# From the lung bases to the brim of the pelvis; the usual one ends at the aorta's bifurcation.
TO_ILIACS = Protocol(shape=(84, 192, 192), centre_mm=(0.0, -30.0, -16.0))


def grid_affine(protocol: Protocol) -> Vector:
    """[4, 4] from (z, y, x, 1) to LPS mm: axial slices from the feet to the head."""
    dz, dy, dx = protocol.spacing_mm
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = dz, dy, dx, 1.0
    middle = (np.asarray(protocol.shape) - 1) / 2
    affine[:3, 3] = np.asarray(protocol.centre_mm) - affine[:3, :3] @ middle
    return affine


def noise_hu(protocol: Protocol, depth_mm: Array, seed: int) -> Array:
    """[Z, Y, X] noise of one series.

    Its standard deviation, drawn from the protocol's range, holds 40 mm under the surface of the
    muscular wall (depth_mm); it is a quarter more in the middle and less outside. The grain of a
    soft kernel (0.7 px) with blobs of low frequency (2.5 px), and some correlation along z.
    """
    rng = np.random.default_rng([seed, 0x6E6F6973])
    deviation = float(rng.uniform(*protocol.noise_sd_hu))
    white = rng.standard_normal(protocol.shape, dtype=np.float32)
    grain = ndimage.gaussian_filter(white, (0.35, 0.7, 0.7), mode="wrap")
    blobs = ndimage.gaussian_filter(white, (0.5, 2.5, 2.5), mode="wrap")
    mixed = grain / grain.std() + 0.35 * blobs / blobs.std()
    profile = np.clip(0.72 + 0.007 * np.minimum(depth_mm, 80), 0.3, 1.28)
    noise: Array = mixed * (np.float32(deviation) / mixed.std()) * profile
    return noise
