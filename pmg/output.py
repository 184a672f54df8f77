"""Volumes out of the program: translations beside their source, and volumes of a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydicom.dataset import Dataset

from storage.deidentify import deidentified, state_deidentified
from storage.dicom_write import derived_headers, write_series
from storage.nifti import write_nifti
from storage.pseudonym import Pseudonyms
from storage.series import Source
from storage.volume import Volume

__all__ = ["Format", "write_stored", "write_translation"]

Format = Literal["dicom", "nifti"]


def write_translation(
    translated: Volume,
    source: Source,
    headers: Sequence[Dataset],
    folder: Path,
    description: str,
    names: Pseudonyms | None,
) -> list[Path]:
    """Write `folder/dicom`, a derived series, where the source is DICOM, and `folder/image.nii.gz`.

    names: the key under which the source's headers are de-identified; None keeps its identity. The
    NIfTI has the source's affine exactly and no words. Raises FileExistsError if the series is
    there, IngestError if it says that its pixels show text and should be de-identified.
    """
    written = []
    if source.kind == "dicom":
        target = folder / "dicom"
        headers = headers if names is None else deidentified(headers, names)
        write_series(translated, target, derived_headers(headers, series_description=description))
        written.append(target)
    nifti = folder / "image.nii.gz"
    folder.mkdir(parents=True, exist_ok=True)
    write_nifti(translated, nifti, source_path=source.files[0] if source.kind == "nifti" else None)
    return [*written, nifti]


def write_stored(volume: Volume, folder: Path, form: Format, patient: str, name: str) -> Path:
    """Write a volume of a store, under its pseudonyms: the folder of a series, or a NIfTI file."""
    if form == "nifti":
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.nii.gz"
        write_nifti(volume, path)
        return path
    header = Dataset()
    header.PatientID = header.PatientName = patient
    state_deidentified(header)
    header.Modality = "CT"
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.SeriesDescription = name
    header.SeriesNumber = 1
    header.Manufacturer = "pmg"
    write_series(volume, folder / name, header)
    return folder / name
