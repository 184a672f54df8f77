"""OME-Zarr out: images on a patient's grid that viewers and arrays' libraries open as they are.

OME-Zarr 0.5 (ngff.openmicroscopy.org) is Zarr v3 with axes, units, a scale and a translation: what
napari, ITK and web viewers read. It knows no rotation, hence the array keeps the patient's affine
beside them, which holds for oblique grids too.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from .grid import canonical, require_orthogonal
from .volume import Volume

__all__ = ["write_ome_zarr"]

_CHUNK = (32, 128, 128)


def write_ome_zarr(
    volume: Volume | Sequence[Volume], path: Path, *, name: str, unit: str = "HU"
) -> None:
    """Write one image of one resolution as an OME-Zarr group: array `0` and its metadata.

    Axes are z, y, x in mm, in the order and direction nearest to the patient's (S, P, L); several
    volumes on one grid get an axis c before them. `scale` and `translation` are LPS mm where the
    grid lies along the patient's axes; on an oblique one the translation is that of the first
    voxel, and `affine` of the array's attributes, index (z, y, x, 1) to LPS (x, y, z, 1) in mm,
    says all. The folder appears under its name when it is complete.

    Raises GeometryError for a sheared affine, FileExistsError if there is something.
    """
    several = not isinstance(volume, Volume)
    given = [volume] if isinstance(volume, Volume) else volume
    volumes = [canonical(one) for one in given]
    affine = volumes[0].affine
    require_orthogonal(affine, path)
    if path.exists():
        raise FileExistsError(f"{path} exists; choose a new one")
    values = np.stack([one.hu for one in volumes]) if several else volumes[0].hu
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        attributes = {"ome": _metadata(volumes[0], name, several=several)}
        group = zarr.create_group(partial, zarr_format=3, attributes=attributes)
        array = group.create_array(
            "0",
            shape=values.shape,
            dtype=values.dtype,
            chunks=_chunks(values.shape),
            dimension_names=("c", "z", "y", "x") if several else ("z", "y", "x"),
            attributes={"affine": affine.tolist(), "coordinates": "LPS mm", "unit": unit},
        )
        array[...] = values
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _metadata(volume: Volume, name: str, *, several: bool) -> dict[str, Any]:
    """`ome` of the group's attributes: version 0.5, one multiscale image of one level."""
    axes: list[dict[str, str]] = [
        {"name": axis, "type": "space", "unit": "millimeter"} for axis in "zyx"
    ]
    scale = list(volume.spacing_mm)
    translation = [float(mm) for mm in volume.affine[[2, 1, 0], 3]]
    if several:
        axes.insert(0, {"name": "c", "type": "channel"})
        scale, translation = [1.0, *scale], [0.0, *translation]
    transformations = [
        {"type": "scale", "scale": scale},
        {"type": "translation", "translation": translation},
    ]
    level = {"path": "0", "coordinateTransformations": transformations}
    return {"version": "0.5", "multiscales": [{"name": name, "axes": axes, "datasets": [level]}]}


def _chunks(shape: tuple[int, ...]) -> tuple[int, ...]:
    chunk = (1,) * (len(shape) - 3) + _CHUNK
    return tuple(min(n, c) for n, c in zip(shape, chunk, strict=True))
