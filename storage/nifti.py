"""NIfTI in and out: HU in the patient's LPS coordinates, axes in the order z, y, x."""

from __future__ import annotations

import gzip
import math
import os
import uuid
import zlib
from collections.abc import Sequence
from pathlib import Path
from struct import error as StructError
from struct import unpack, unpack_from
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from .bounds import MAX_FILE_BYTES, reading
from .errors import GeometryError, IngestError
from .grid import reorder_like, require_orthogonal, same_grid
from .volume import Volume

__all__ = ["read_nifti", "write_nifti"]

# NIfTI counts to the right and to the front, DICOM to the left and to the back. Its own inverse.
_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0, 1.0])[:, None]

_MAX_VOXELS = 1 << 29  # 1 GiB as int16
_MOST_INFLATION = 1032  # deflate makes at most that many bytes out of one

# By the size of the header (NIfTI-1, NIfTI-2): where in it vox_offset stands, and its type.
_OFFSET_AT = {348: (108, "f"), 540: (168, "q")}
_NIFTI2_BYTES = 544
_MAX_HEADER = 1 << 24

_UNREADABLE = (
    ImageFileError,
    HeaderDataError,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    StructError,
    zlib.error,
)


def read_nifti(path: Path) -> Volume:
    """The image as HU: int16 if that loses nothing, else float32.

    hu[z, y, x] is the file's voxel (x, y, z) with its scale slope and intercept applied. The
    affine is the sform's, or the qform's where the sform's code is 0.

    Raises GeometryError for more than three dimensions, for an image without sform and qform, and
    for a sheared or non-finite affine; IngestError for a file that is unreadable, or whose voxels
    are not finite real numbers.
    """
    with reading(path):
        image = _open(path)
        affine = _affine(image, path)
        _require_size(image, path)
        try:
            stored = np.asanyarray(image.dataobj.get_unscaled())
        except _UNREADABLE as error:
            raise IngestError(f"{path}: voxels cannot be read: {error}") from error
        stored = stored.reshape(_shape(image)).T
        slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
        if stored.dtype == np.int16 and (slope, intercept) == (1, 0):
            return Volume(np.ascontiguousarray(stored), affine)
        return Volume(_scaled(stored, slope, intercept, path), affine)


def write_nifti(
    volume: Volume | Sequence[Volume], path: Path, *, source_path: Path | None = None
) -> None:
    """Write the volume's values, of any numeric type (bool as uint8), as .nii or .nii.gz.

    Several volumes on one grid make a file of four dimensions, the volumes along the last.

    With `source_path`, the NIfTI file that the volume comes from, the result has its very affine
    and axes in its order, but none of its words: descriptions and extensions may name the patient.
    The file appears under its name when it is complete.

    Raises GeometryError if the volume's voxels are not the source's points (bring it there with
    `resample_like`) or its affine is sheared or not finite, ValueError for another name's ending.
    """
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: expected a name that ends in .nii or .nii.gz")
    volumes = [volume] if isinstance(volume, Volume) else list(volume)
    require_orthogonal(volumes[0].affine, path)
    dtype = np.dtype(np.uint8) if volumes[0].hu.dtype == bool else volumes[0].hu.dtype
    if source_path is None:
        image = nib.Nifti1Image(_voxels(volumes, dtype), _ras(volumes[0].affine), dtype=dtype)
        image.set_sform(image.affine, code="scanner")
        image.set_qform(image.affine, code="scanner")
        image.header.set_xyzt_units("mm")
    else:
        source = _open(source_path)
        grid = Volume(np.empty(source.shape[:3][::-1], np.uint8), _affine(source, source_path))
        moved = [reorder_like(one, grid) for one in volumes]
        if not all(same_grid(one, grid) for one in moved):
            raise GeometryError(
                f"{path}: the volume of shape {volumes[0].shape} does not lie on the grid of "
                f"{source_path}, shape {grid.shape}; bring it there with resample_like first"
            )
        image = nib.Nifti1Image(_voxels(moved, dtype), source.affine, source.header, dtype=dtype)
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


def _voxels(volumes: Sequence[Volume], dtype: np.dtype[Any]) -> NDArray[Any]:
    """[X, Y, Z] of one volume, [X, Y, Z, N] of several."""
    if len(volumes) == 1:
        return volumes[0].hu.astype(dtype, copy=False).T
    return np.stack([one.hu.astype(dtype, copy=False).T for one in volumes], axis=3)


def _open(path: Path) -> nib.Nifti1Image:
    try:
        _require_modest_header(path)
        image = nib.load(path, mmap=False)
    except IngestError:
        raise
    except _UNREADABLE as error:
        raise IngestError(f"{path}: not a readable NIfTI file: {error}") from error
    if not isinstance(image, nib.Nifti1Image):  # Nifti2Image is one as well
        raise IngestError(f"{path}: is {type(image).__name__}; expected a NIfTI file")
    return image


def _require_modest_header(path: Path) -> None:
    """Refuse extensions between header and voxels that nibabel would inflate without a bound."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        start = file.read(_NIFTI2_BYTES)
        order = next((o for o in "<>" if unpack(f"{o}i", start[:4])[0] in _OFFSET_AT), None)
        if order is None:
            return  # nibabel will say what it is
        size = unpack(f"{order}i", start[:4])[0]
        end = unpack_from(f"{order}{_OFFSET_AT[size][1]}", start, _OFFSET_AT[size][0])[0]
        if not 0 <= end <= _MAX_HEADER:
            raise IngestError(f"{path}: vox_offset is {end}; expected at most {_MAX_HEADER}")
        at = size + 4
        extended = start[size : size + 1] not in (b"\0", b"")
        while extended and at + 16 <= end:
            file.seek(at)
            length = unpack(f"{order}i", file.read(8)[:4])[0]
            if not 8 <= length <= end - at:
                raise IngestError(
                    f"{path}: an extension has {length} bytes; expected 8 to {end - at}"
                )
            at += length


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


def _shape(image: nib.Nifti1Image) -> tuple[int, ...]:
    """The shape without trailing dimensions of one."""
    shape = tuple(image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _require_size(image: nib.Nifti1Image, path: Path) -> None:
    """Refuse what is no volume of real numbers, and what the file cannot hold, unread."""
    dtype = image.header.get_data_dtype()
    if len(_shape(image)) != 3:
        raise GeometryError(f"{path}: dim is {image.shape}; expected one volume of 3 dimensions")
    if dtype.kind not in "iuf":
        raise IngestError(f"{path}: datatype is {dtype}; expected real numbers, one a voxel")
    voxels = math.prod(map(int, image.shape))
    if voxels < 1 or voxels > _MAX_VOXELS:
        raise IngestError(
            f"{path}: dim is {image.shape}, {voxels} voxels; expected 1 to {_MAX_VOXELS}"
        )
    size = path.stat().st_size
    most = size if path.suffix == ".nii" else min(size * _MOST_INFLATION, 2 * MAX_FILE_BYTES)
    needed = image.dataobj.offset + voxels * dtype.itemsize
    if needed > most:
        raise IngestError(
            f"{path}: dim {image.shape} and vox_offset ask for {needed} bytes; expected at most "
            f"{most} in a file of {size} bytes"
        )


def _scaled(
    stored: NDArray[np.generic], slope: float, intercept: float, path: Path
) -> NDArray[np.generic]:
    """The values in HU, slice by slice: int16 if every value is one, else float32."""

    def values(index: int) -> NDArray[np.float64]:
        plane: NDArray[np.float64] = stored[index] * np.float64(slope) + intercept
        return plane

    limits = np.iinfo(np.int16)
    exact, lost = True, 0
    for index in range(len(stored)):
        plane = values(index)
        lost += int(np.sum(~np.isfinite(plane)))
        exact = exact and bool(
            limits.min <= plane.min()
            and plane.max() <= limits.max
            and (np.rint(plane) == plane).all()
        )
    if lost:
        raise IngestError(f"{path}: {lost} voxels are not finite; expected HU in every voxel")
    hu = np.empty(stored.shape, np.int16 if exact else np.float32)
    for index in range(len(stored)):
        hu[index] = values(index)
    return hu
