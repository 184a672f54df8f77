"""A trained model in a few lines of Python: open it, read a volume, write what it makes of it."""

from __future__ import annotations

from pathlib import Path

from pmg.translate import VolumeTranslator
from storage.errors import IngestError
from storage.nifti import write_nifti
from storage.ome_zarr import write_ome_zarr
from storage.series import find_sources, read_source
from storage.volume import Volume

__all__ = ["load_model", "read_volume", "write_volume"]


def load_model(folder: str | Path, *, source: int = 1, device: str = "auto") -> VolumeTranslator:
    """The trained model of a run's folder, of its model folder, or of an exported one.

    source: the domain that is translated from. device: auto takes a GPU if there is one. Nothing is
    unpickled. Raises ModelError and ConfigError naming the file.
    """
    return VolumeTranslator.open(Path(folder), source, device)


def read_volume(path: str | Path) -> Volume:
    """The one series of a folder, or a NIfTI file, in HU. Raises IngestError if it is not one."""
    sources, refused = find_sources(Path(path))
    if len(sources) != 1:
        reasons = "".join(f"; {one.path}: {one.reason}" for one in refused)
        raise IngestError(f"{path}: {len(sources)} series; expected 1{reasons}")
    volume, _ = read_source(sources[0])
    return volume


def write_volume(volume: Volume, path: str | Path) -> None:
    """Write a .nii, .nii.gz or .ome.zarr. Raises ValueError for another name's ending.

    DICOM is what `pmg translate` writes, which has the source's headers at hand.
    """
    path = Path(path)
    if path.name.endswith(".ome.zarr"):
        write_ome_zarr(volume, path, name=path.name.removesuffix(".ome.zarr"))
    else:
        write_nifti(volume, path)
