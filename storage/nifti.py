"""NIfTI in and out: HU in the patient's LPS coordinates, axes in the order z, y, x."""

from __future__ import annotations

import os
import uuid
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from .errors import GeometryError, IngestError
from .grid import reorder_like, require_orthogonal, same_grid
from .volume import Volume

__all__ = ["read_nifti", "write_nifti"]

# NIfTI counts to the right and to the front, DICOM to the left and to the back. Its own inverse.
_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0, 1.0])[:, None]

_UNREADABLE = (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error)


def read_nifti(path: Path) -> Volume:
    """The image as HU: int16 if that loses nothing, else float32.

    hu[z, y, x] is the file's voxel (x, y, z) with its scale slope and intercept applied. The
    affine is the sform's, or the qform's where the sform's code is 0.

    Raises GeometryError for more than three dimensions, for an image without sform and qform, and
    for a sheared or non-finite affine; IngestError for a file that is unreadable, or whose voxels
    are not finite real numbers.
    """
    image = _open(path)
    affine = _affine(image, path)
    try:
        data = np.asanyarray(nib.squeeze_image(image).dataobj)
    except _UNREADABLE as error:
        raise IngestError(f"{path}: voxels cannot be read: {error}") from error
    if data.ndim != 3:
        raise GeometryError(f"{path}: dim is {image.shape}; expected one volume of 3 dimensions")
    if data.dtype.kind not in "iuf":
        raise IngestError(f"{path}: datatype is {data.dtype}; expected real numbers, one a voxel")
    if not np.isfinite(data).all():
        count = int(np.sum(~np.isfinite(data)))
        raise IngestError(f"{path}: {count} voxels are not finite; expected HU in every voxel")
    return Volume(np.ascontiguousarray(_narrowed(data).T), affine)


def write_nifti(volume: Volume, path: Path, *, source_path: Path | None = None) -> None:
    """Write the volume's values, of any numeric type (bool as uint8), as .nii or .nii.gz.

    With `source_path`, the NIfTI file that the volume comes from, the result has its very affine
    and axes in its order, but none of its words: descriptions and extensions may name the patient.
    The file appears under its name when it is complete.

    Raises GeometryError if the volume's voxels are not the source's points (bring it there with
    `resample_like`) or its affine is sheared or not finite, ValueError for another name's ending.
    """
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: expected a name that ends in .nii or .nii.gz")
    require_orthogonal(volume.affine, path)
    values = volume.hu.astype(np.uint8) if volume.hu.dtype == bool else volume.hu
    if source_path is None:
        image = nib.Nifti1Image(values.T, _ras(volume.affine), dtype=values.dtype)
        image.set_sform(image.affine, code="scanner")
        image.set_qform(image.affine, code="scanner")
        image.header.set_xyzt_units("mm")
    else:
        source = _open(source_path)
        grid = Volume(np.empty(source.shape[:3][::-1], np.uint8), _affine(source, source_path))
        moved = reorder_like(Volume(values, volume.affine), grid)
        if not same_grid(moved, grid):
            raise GeometryError(
                f"{path}: the volume of shape {volume.shape} does not lie on the grid of "
                f"{source_path}, shape {grid.shape}; bring it there with resample_like first"
            )
        image = nib.Nifti1Image(moved.hu.T, source.affine, source.header, dtype=values.dtype)
        image.header["cal_min"] = image.header["cal_max"] = 0  # the source's window
        image.header.extensions.clear()
        for name in ("data_type", "db_name", "descrip", "aux_file", "intent_name"):
            image.header[name] = b""
    partial = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    try:
        nib.save(image, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _open(path: Path) -> nib.Nifti1Image:
    try:
        image = nib.load(path)
    except _UNREADABLE as error:
        raise IngestError(f"{path}: not a readable NIfTI file: {error}") from error
    if not isinstance(image, nib.Nifti1Image):  # Nifti2Image is one as well
        raise IngestError(f"{path}: is {type(image).__name__}; expected a NIfTI file")
    return image


def _affine(image: nib.Nifti1Image, path: Path) -> NDArray[np.float64]:
    """[4, 4] from voxel (z, y, x) to LPS mm."""
    if not (image.header["sform_code"] or image.header["qform_code"]):
        raise GeometryError(
            f"{path}: sform_code and qform_code are 0, so that nobody knows where left is; "
            "expected one of them to be positive"
        )
    unit = image.header.get_xyzt_units()[0]
    if unit not in ("mm", "unknown"):
        raise GeometryError(f"{path}: xyzt_units say {unit}; expected mm")
    affine: NDArray[np.float64] = _RAS_TO_LPS * image.affine[:, [2, 1, 0, 3]]
    require_orthogonal(affine, path)
    return affine


def _ras(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine of NIfTI, from voxel (x, y, z) to RAS mm."""
    return _RAS_TO_LPS * affine[:, [2, 1, 0, 3]]


def _narrowed(data: NDArray[np.generic]) -> NDArray[np.generic]:
    """int16 if every value is one, else float32."""
    limits = np.iinfo(np.int16)
    if data.dtype == np.int16:
        return data
    if limits.min <= data.min() and data.max() <= limits.max and (np.rint(data) == data).all():
        return data.astype(np.int16)
    return data.astype(np.float32)
