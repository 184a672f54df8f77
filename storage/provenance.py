"""What was done to a volume, step by step, in numbers and our own words only: text of a header may
name the patient."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from storage.body import TISSUE_HU, FrameOrigin
from storage.grid import AIR_HU, antialiasing_mm, same_grid
from storage.series import Source
from storage.volume import Volume

__all__ = ["provenance"]

Step = dict[str, Any]

_LETTERS = (("R", "L"), ("A", "P"), ("I", "S"))  # to which LPS axes lead, against and along them
_LIBRARIES = """
    pmg numpy pydicom imagecodecs nibabel scipy simpleitk zarr numcodecs
"""


def provenance(
    source: Source,
    headers: Sequence[Dataset],
    read: Volume,
    own: Volume,
    volume: Volume,
    body: np.ndarray,
    origin: FrameOrigin,
) -> dict[str, Any]:
    """source: kind, files, shape and spacing as they were read, and how they were acquired. steps:
    in their order, each with its parameters. versions: of the libraries that did them.

    read: the volume as `read_source` gave it; own: the same in canonical order; volume: as it is
    stored, with its body mask [Z, Y, X] and the origin of its frame.
    """
    steps = [
        *(_rescaled(headers) if source.kind == "dicom" else [_scaled()]),
        *map(dict, read.steps),
        {"step": "reorder axes", "from": _axes(read), "to": _axes(own)},
        *_resampled(own, volume),
        {"step": "round", "to": "int16", "hu": [int(end) for end in volume.hu_range]},
        {
            "step": "mark the body",
            "above_hu": TISSUE_HU,
            "left_out": "all but the largest piece: table, blankets, detached arms",
            "share_of_voxels": round(np.count_nonzero(body) / body.size, 4),
        },
        {"step": "place the frame", "rule": origin.rule, "voxel": list(origin.index)},
    ]
    return {
        "source": {
            "kind": source.kind,
            "files": len(source.files),
            "shape": list(read.shape),
            "spacing_mm": list(read.spacing_mm),
            "acquisition": _numbers(headers, "KVP", "SliceThickness"),
        },
        "steps": steps,
        "versions": _versions(),
    }


def _rescaled(headers: Sequence[Dataset]) -> list[Step]:
    rescale = _numbers(headers, "RescaleSlope", "RescaleIntercept")
    steps: list[Step] = [
        {
            "step": "rescale to HU",
            "rule": "each slice by its own slope and intercept",
            "first_slice": {
                "slope": rescale.get("RescaleSlope"),
                "intercept": rescale.get("RescaleIntercept"),
            },
        }
    ]
    padding = _numbers(headers, "PixelPaddingValue", "PixelPaddingRangeLimit")
    if padding:
        steps.append({"step": "replace padding", "stored": list(padding.values()), "hu": AIR_HU})
    return steps


def _scaled() -> Step:
    return {"step": "rescale to HU", "rule": "scl_slope and scl_inter of the file"}


def _resampled(own: Volume, volume: Volume) -> list[Step]:
    if same_grid(own, volume):
        return []
    return [
        {
            "step": "resample",
            "from_mm": list(own.spacing_mm),
            "to_mm": list(volume.spacing_mm),
            "interpolation": "linear",
            "antialiasing": "Gaussian along each axis of the source",
            "antialiasing_sigma_mm": antialiasing_mm(own, volume.spacing_mm).tolist(),
            "outside_hu": AIR_HU,
        }
    ]


def _axes(volume: Volume) -> str:
    """Where the axes of the array lead, by the nearest of the patient's: "SPL" when canonical."""
    letters = ""
    for axis in volume.affine[:3, :3].T:
        nearest = int(np.argmax(np.abs(axis)))
        letters += _LETTERS[nearest][int(axis[nearest] > 0)]
    return letters


def _numbers(headers: Sequence[Dataset], *keywords: str) -> dict[str, float]:
    """Those of the elements that the first header has as one number."""
    found = {}
    for keyword in keywords if len(headers) else ():
        try:
            found[keyword] = float(headers[0][keyword].value)
        except (KeyError, TypeError, ValueError):
            continue
    return found


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in _LIBRARIES.split()}
