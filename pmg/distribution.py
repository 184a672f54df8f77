"""Whether translations look like real scans of the other domain: distances between distributions.

Patches of a candidate are compared with patches of real scans at the same places of the
body-centred frame. What is compared are fixed features that need no trained network: quantiles of
a patch's HU and the strength of its Haar wavelets, with the place beside them, so that the right
appearance in the wrong place is no match.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pmg.arrays import Mask
from pmg.fidelity import SSIM_WINDOW_HU
from storage.body import body_mask, frame_origin
from storage.grid import canonical, resample
from storage.volume import Volume

__all__ = [
    "PATCH",
    "Framed",
    "Places",
    "common_places",
    "features",
    "framed",
    "kernel_distance",
    "patches_at",
    "placed",
    "sliced_wasserstein",
]

Array = NDArray[np.float64]

PATCH = 16  # voxels in plane
_LEVELS = 3
_QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
_PLACE_MM = 50.0  # what counts as much as one standard deviation of a feature
_DIRECTIONS = 128
_SEED = 20


@dataclass(frozen=True)
class Framed:
    """A scan on a grid, with the body-centred frame: `origin` is the voxel (z, y, x) at its 0."""

    volume: Volume
    body: Mask
    origin: tuple[int, int, int]
    rule: Literal["lung base", "middle of the body"]


@dataclass(frozen=True)
class Places:
    """Places of patches that a case and scans share.

    offset: [n, 3], voxels (z, y, x) from the frame's origin. scan: [n], which scan each is compared
    with. other: [n], another scan that has the place too, -1 where none does.
    """

    offset: NDArray[np.int_]
    scan: NDArray[np.int_]
    other: NDArray[np.int_]

    def __len__(self) -> int:
        return len(self.offset)

    def where(self, chosen: Mask) -> Places:
        return Places(self.offset[chosen], self.scan[chosen], self.other[chosen])


def framed(volume: Volume, spacing_mm: tuple[float, float, float]) -> Framed:
    """The volume on a grid of that spacing, with its frame."""
    grid = resample(canonical(volume), spacing_mm)
    body = body_mask(grid)
    origin = frame_origin(grid, body)
    return Framed(grid, body, origin.index, origin.rule)


def common_places(case: Framed, scans: Sequence[Framed], count: int, seed: int = _SEED) -> Places:
    """Up to `count` places whose patch is centred in the body in the case and in a scan.

    Drawn uniformly from the case's body, each with a scan drawn from those that have it and whose
    frame has its zero by the same rule as the case's: others have no common z.
    """
    rng = np.random.default_rng(seed)
    voxels = np.argwhere(_centres(case))
    offset = voxels[rng.integers(max(len(voxels), 1), size=10 * count * bool(len(voxels)))]
    offset = offset - case.origin
    lots = np.full((max(len(scans), 2), len(offset)), -1.0)
    for lot, scan in zip(lots, scans, strict=False):
        centres, index = _centres(scan), offset + scan.origin
        within = (index >= 0) & (index < centres.shape)
        inside: Mask = np.logical_and.reduce(within, axis=1)
        inside &= scan.rule == case.rule
        has = inside.copy()
        has[inside] = centres[tuple(index[inside].T)]
        lot[has] = rng.random(np.count_nonzero(has))
    order = np.argsort(-lots, axis=0)
    drawn = np.take_along_axis(lots, order, axis=0) >= 0
    places = Places(offset, order[0], np.where(drawn[1], order[1], -1)).where(drawn[0])
    return places.where(np.arange(len(places)) < count)


def patches_at(
    scans: Sequence[Framed], offset: NDArray[np.int_], scan: NDArray[np.int_]
) -> NDArray[np.float32]:
    """Axial patches [n, PATCH, PATCH] in HU at offsets from the origins of the scans named."""
    half = PATCH // 2
    cut = np.empty((len(offset), PATCH, PATCH), np.float32)
    for n, which in enumerate(scan):
        z, y, x = offset[n] + scans[which].origin
        hu = scans[which].volume.hu
        cut[n] = hu[z, y - half : y + half, x - half : x + half]
    return cut


def features(patches: NDArray[np.floating]) -> Array:
    """[n, PATCH, PATCH] HU -> [n, 15], in HU.

    The 10, 30, 50, 70, 90 and 100 % quantiles, and the root mean square of the Haar wavelets of 2,
    4 and 8 voxels in the three orientations, all inside SSIM_WINDOW_HU.
    """
    hu = np.clip(patches.astype(np.float64), *SSIM_WINDOW_HU)
    columns = list(np.quantile(hu, _QUANTILES, axis=(1, 2)))
    for _ in range(_LEVELS):
        a, b = hu[:, ::2, ::2], hu[:, ::2, 1::2]
        c, d = hu[:, 1::2, ::2], hu[:, 1::2, 1::2]
        details = (a - b + c - d, a + b - c - d, a - b - c + d)
        columns += [np.sqrt(np.square(part / 4).mean(axis=(1, 2))) for part in details]
        hu = (a + b + c + d) / 4
    return np.stack(columns, axis=1)


def placed(
    values: Array, offset: NDArray[np.int_], spacing_mm: Sequence[float], reference: Array
) -> Array:
    """Features [n, F] in the reference's standard deviations, beside their places: [n, F + 3].

    Places are in units of 50 mm: to compare a patch with one 50 mm away costs as much as a standard
    deviation.
    """
    scaled = (values - reference.mean(axis=0)) / (reference.std(axis=0) + 1e-6)
    return np.concatenate([scaled, offset * np.array(spacing_mm) / _PLACE_MM], axis=1)


def sliced_wasserstein(a: Array, b: Array, seed: int = _SEED) -> float:
    """Mean over 128 fixed random directions of the 1-Wasserstein distance of the projections.

    a, b: [n, F]. Bonneel et al., J Math Imaging Vis 2015;51:22.
    """
    directions = np.random.default_rng(seed).standard_normal((_DIRECTIONS, a.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return float(np.mean([stats.wasserstein_distance(a @ way, b @ way) for way in directions]))


def kernel_distance(a: Array, b: Array) -> float:
    """KID: the unbiased squared maximum mean discrepancy under the kernel (x . y / F + 1)^3.

    a, b: [n, F], n >= 2. Binkowski et al., ICLR 2018. About 0, and at times below, for samples of
    one distribution.
    """

    def kernel(x: Array, y: Array) -> Array:
        values: Array = (x @ y.T / x.shape[1] + 1) ** 3
        return values

    def within(x: Array) -> float:
        values = kernel(x, x)
        return float((values.sum() - np.trace(values)) / (len(x) * (len(x) - 1)))

    return within(a) + within(b) - 2 * float(kernel(a, b).mean())


def _centres(scan: Framed) -> Mask:
    """Voxels of the body round which a patch lies inside of the volume."""
    half = PATCH // 2
    centres: Mask = np.zeros(scan.body.shape, dtype=bool)
    rows, columns = (slice(half, n - half + 1) for n in scan.body.shape[1:])
    centres[:, rows, columns] = scan.body[:, rows, columns]
    return centres
