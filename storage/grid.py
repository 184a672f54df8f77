"""Grids in patient space: reordering axes without loss, and resampling between grids."""

from __future__ import annotations

import itertools

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from .errors import GeometryError
from .separable import axis_between, resampled
from .volume import Volume

__all__ = [
    "AIR_HU",
    "MAX_SHEAR",
    "antialiasing_mm",
    "canonical",
    "nearest_like",
    "reorder_like",
    "require_orthogonal",
    "resample",
    "resample_like",
    "same_grid",
]

AIR_HU = -1024.0

# Direction of the axes z, y, x of a canonical volume in LPS, as columns: superior, posterior, left.
_CANONICAL = np.eye(3)[:, ::-1]

# How far two grids' corners may lie apart to be called one grid: a tenth of what a round trip may
# move a voxel, and far above what 16 characters of a decimal string round away.
_SAME_GRID_MM = 1e-3

# How far a voxel may come to lie beside its place when axes that are all but parallel are taken to
# be parallel.
_STRAIGHT_VOXELS = 0.01

# Cosine between two axes of a grid above which it counts as sheared: half a degree of gantry tilt
# gives 9e-3, orientations rounded to four digits 2e-4.
MAX_SHEAR = 1e-3


def require_orthogonal(affine: NDArray[np.float64], name: object) -> None:
    """Refuse an affine that no Volume may have.

    Raises GeometryError, beginning with `name`, if the affine is not finite, if an axis has no
    length, or if two axes are not at right angles.
    """
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise GeometryError(f"{name}: affine is {affine.tolist()}; expected 4x4 finite numbers")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if (lengths <= 0).any():
        raise GeometryError(
            f"{name}: spacing along the axes is {lengths.tolist()} mm; expected positive numbers"
        )
    directions = _directions(affine)
    shear = np.abs(directions.T @ directions - np.eye(3)).max()
    if shear > MAX_SHEAR:
        raise GeometryError(
            f"{name}: the grid is sheared (cosine {shear:.4f} between two axes); expected axes at "
            f"right angles (cosine at most {MAX_SHEAR:g})"
        )


def same_grid(a: Volume, b: Volume, *, within_mm: float = _SAME_GRID_MM) -> bool:
    """Whether a[z, y, x] and b[z, y, x] are the same point of the patient for every voxel.

    The corners may lie `within_mm` apart, so every voxel does at most.
    """
    if a.shape != b.shape:
        return False
    corners = _corners(a.shape, margin=0.0)
    apart = np.linalg.norm((a.affine @ corners - b.affine @ corners)[:3], axis=0)
    return bool(apart.max() <= within_mm)


def canonical(volume: Volume) -> Volume:
    """The same voxels with axes permuted and flipped to lie nearest to S, P, L.

    Axis 0 of the result leads to the head, axis 1 to the back, axis 2 to the patient's left.
    Nothing is interpolated: an oblique volume stays oblique.
    """
    return _reordered(volume, _CANONICAL)


def reorder_like(volume: Volume, reference: Volume) -> Volume:
    """The same voxels with axes permuted and flipped to lie nearest to the reference's axes."""
    return _reordered(volume, _directions(reference.affine))


def resample(volume: Volume, spacing_mm: tuple[float, float, float]) -> Volume:
    """The volume on a grid along the patient's axes with the given spacing (z, y, x) in mm.

    The grid covers the bounding box of the volume's voxels and has its centre; what an oblique
    volume does not reach there is air. Interpolation is linear: a B-spline keeps 6 to 10 % more of
    a small plaque's peak where slices become thinner, but leaves a ring of -130 HU around it, and
    invents calcium and air. Along axes that become coarser the volume is smoothed first (Cardoso
    et al., MICCAI 2015: the Gaussian whose full width at half maximum turns one voxel's width into
    the other's). int16 stays int16, rounded; float32 otherwise.

    A volume that lies along the patient's axes with that spacing already (within 0.001) is returned
    as `canonical` gives it, voxel for voxel. Raises GeometryError for a spacing that is not
    positive.
    """
    target = np.array(spacing_mm, dtype=np.float64)
    if target.shape != (3,) or not np.isfinite(target).all() or (target <= 0).any():
        raise GeometryError(f"resample: spacing is {spacing_mm} mm; expected 3 positive numbers")
    source = canonical(volume)
    aligned = bool(np.abs(_directions(source.affine) - _CANONICAL).max() <= 1e-3)
    if aligned and np.abs(np.array(source.spacing_mm) - target).max() <= 1e-3:
        return source

    box = (source.affine @ _corners(source.shape, margin=0.5))[:3]
    low, high = box.min(axis=1), box.max(axis=1)
    extent_zyx = (high - low)[::-1]
    shape = np.maximum(np.ceil(extent_zyx / target - 1e-6), 1).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = _CANONICAL * target
    affine[:3, 3] = (low + high) / 2 - affine[:3, :3] @ ((shape - 1) / 2)

    sigma_mm = antialiasing_mm(source, spacing_mm)
    to_source = np.linalg.inv(source.affine) @ affine  # voxel to voxel
    turned = np.abs(to_source[:3, :3] - np.diag(np.diag(to_source))[:3, :3]) @ shape
    if turned.max() <= _STRAIGHT_VOXELS:
        axes = [
            axis_between(
                source.shape[axis],
                to_source[axis, axis] * np.arange(shape[axis]) + to_source[axis, 3],
                sigma_mm[axis] / source.spacing_mm[axis],
            )
            for axis in range(3)
        ]
        return Volume(resampled(source.hu, axes, AIR_HU), affine)

    smooth = _smoothed(source, sigma_mm)
    if not aligned:  # so that the outermost voxels keep their HU up to their faces
        seen = _seen_mm(source, target)
        smooth = _edge_padded(smooth, np.ceil(seen / source.spacing_mm).astype(int))
    result = _interpolated(smooth, Volume(np.empty(shape, np.int8), affine), AIR_HU)
    if source.hu.dtype == np.int16:  # a weighted mean of int16 cannot leave its range
        return Volume(np.rint(result.hu).astype(np.int16), affine)
    return result


def resample_like(volume: Volume, reference: Volume, *, fill: float = AIR_HU) -> Volume:
    """The volume's values on the reference's grid, `fill` (HU) outside of the volume.

    If both grids have the same points, in whatever order and direction of axes, the values are
    moved and not interpolated: bit-equal, of the same type. Otherwise linear, float32.
    """
    moved = reorder_like(volume, reference)
    if same_grid(moved, reference):
        return Volume(moved.hu, reference.affine.copy())
    return _interpolated(volume, reference, fill)


def nearest_like(labels: Volume, reference: Volume) -> NDArray[np.generic]:
    """The labels at the reference's points, each from the nearest voxel; 0 outside of them."""
    moved = reorder_like(labels, reference)
    if same_grid(moved, reference):
        return moved.hu
    resampler = _resampler(reference, fill=0)
    resampler.SetInterpolator(sitk.sitkNearestNeighbor)
    nearest: NDArray[np.generic] = sitk.GetArrayFromImage(resampler.Execute(_to_sitk(labels)))
    return nearest


def antialiasing_mm(source: Volume, spacing_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    """Standard deviation of the Gaussian that `resample` smooths with, along the source's axes; 0
    where voxels do not become wider."""
    own = np.array(source.spacing_mm)
    widening = np.sqrt(np.maximum(_seen_mm(source, np.array(spacing_mm)) ** 2 - own**2, 0))
    sigma: NDArray[np.float64] = widening / (2 * np.sqrt(2 * np.log(2)))
    return sigma


def _directions(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unit vectors of the array's axes, as columns."""
    axes = affine[:3, :3]
    unit: NDArray[np.float64] = axes / np.linalg.norm(axes, axis=0)
    return unit


def _corners(shape: tuple[int, int, int], margin: float) -> NDArray[np.float64]:
    """[4, 8]: homogeneous indices of the corner voxels' centres, moved outwards by `margin`."""
    ends = [(-margin, n - 1 + margin) for n in shape]
    return np.array([(*corner, 1.0) for corner in itertools.product(*ends)]).T


def _reordered(volume: Volume, directions: NDArray[np.float64]) -> Volume:
    """Permute and flip the axes so that they lie nearest to the three given unit vectors."""
    cosines = directions.T @ _directions(volume.affine)  # [wanted axis, present axis]
    order = max(
        itertools.permutations(range(3)),
        key=lambda axes: sum(abs(cosines[wanted, axis]) for wanted, axis in enumerate(axes)),
    )
    hu = volume.hu.transpose(order)
    affine = volume.affine[:, [*order, 3]]
    for wanted, axis in enumerate(order):
        if cosines[wanted, axis] < 0:
            hu = np.flip(hu, wanted)
            affine[:, 3] += affine[:, wanted] * (hu.shape[wanted] - 1)
            affine[:, wanted] *= -1
    return Volume(np.ascontiguousarray(hu), affine)


def _seen_mm(source: Volume, target_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """The width of a target voxel as seen along each axis of the source."""
    seen: NDArray[np.float64] = np.abs(_directions(source.affine).T @ _CANONICAL) @ target_mm
    return seen


def _smoothed(volume: Volume, sigma_mm: NDArray[np.float64]) -> Volume:
    """float32, smoothed along its axes."""
    hu = ndimage.gaussian_filter(
        volume.hu,
        sigma_mm / volume.spacing_mm,
        output=np.dtype(np.float32),
        mode="nearest",
        truncate=3.0,
    )
    return Volume(hu, volume.affine)


def _edge_padded(volume: Volume, width: NDArray[np.int_]) -> Volume:
    """The volume grown by `width` voxels on both sides of each axis, repeating its border."""
    affine = volume.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ width
    return Volume(np.pad(volume.hu, [(n, n) for n in width.tolist()], mode="edge"), affine)


def _interpolated(volume: Volume, grid: Volume, fill: float) -> Volume:
    """Linear interpolation of the volume at the points of the grid, float32."""
    resampler = _resampler(grid, fill)
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.SetOutputPixelType(sitk.sitkFloat32)
    hu = sitk.GetArrayFromImage(resampler.Execute(_to_sitk(volume)))
    return Volume(hu, grid.affine.copy())


def _resampler(grid: Volume, fill: float) -> sitk.ResampleImageFilter:
    resampler = sitk.ResampleImageFilter()
    resampler.SetDefaultPixelValue(fill)
    resampler.SetSize(grid.shape[::-1])
    resampler.SetOutputSpacing(grid.spacing_mm[::-1])
    resampler.SetOutputDirection(_directions(grid.affine)[:, ::-1].ravel().tolist())
    resampler.SetOutputOrigin(grid.affine[:3, 3].tolist())
    return resampler


def _to_sitk(volume: Volume) -> sitk.Image:
    """SimpleITK's view of the volume: axes in the order x, y, z, the same LPS points."""
    image = sitk.GetImageFromArray(volume.hu)
    image.SetSpacing(list(volume.spacing_mm[::-1]))
    image.SetDirection(_directions(volume.affine)[:, ::-1].ravel().tolist())
    image.SetOrigin(volume.affine[:3, 3].tolist())
    return image
