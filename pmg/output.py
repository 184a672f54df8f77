"""Volumes out of the program: translations beside their source, and volumes of a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydicom.dataset import Dataset

from pmg.translate import Translation
from storage.deidentify import deidentified, state_deidentified
from storage.dicom_write import derived_headers, write_series
from storage.nifti import write_nifti
from storage.ome_zarr import write_ome_zarr
from storage.pseudonym import Pseudonyms
from storage.series import Source
from storage.volume import Volume

__all__ = ["Format", "TranslationFormat", "write_stored", "write_translation"]

Format = Literal["dicom", "nifti"]
TranslationFormat = Literal["dicom", "nifti", "zarr"]

_NOT_FOR_DIAGNOSIS = "Computed by a generative model, not acquired. Not for diagnosis."


@dataclass(frozen=True)
class _Further:
    """A series beside the translation: its name in files, what it shows, and in what unit."""

    name: str
    description: str
    derivation: str
    images: tuple[Volume, ...]
    unit: str  # as DICOM's Rescale Type
    slope: float
    window: tuple[int, int]


def write_translation(
    translated: Volume | Translation,
    source: Source,
    headers: Sequence[Dataset],
    folder: Path,
    description: str,
    names: Pseudonyms | None,
    formats: Sequence[TranslationFormat] = ("dicom", "nifti"),
) -> list[Path]:
    """Write a translation, and the uncertainty and responsibilities that it has, into the folder.

    dicom: `dicom`, a derived series, where the source is DICOM, and a series of its own for each
    further image, `dicom-uncertainty` and `dicom-responsibility-K`. nifti: `image.nii.gz`,
    `uncertainty.nii.gz` and, with K along the fourth dimension, `responsibilities.nii.gz`. zarr:
    the same as `image.ome.zarr` and so on.

    names: the key under which the source's headers are de-identified; None keeps its identity. The
    NIfTI has the source's affine exactly and no words. Raises FileExistsError if the series is
    there, IngestError if it says that its pixels show text and should be de-identified, ValueError
    if DICOM alone is asked for of a source that has no headers.
    """
    result = Translation(translated) if isinstance(translated, Volume) else translated
    from_dicom = source.kind == "dicom"
    if not from_dicom and set(formats) <= {"dicom"}:
        raise ValueError(
            f"{source.files[0]}: a {source.kind} file has no headers to derive a DICOM series "
            f"from; choose nifti or zarr"
        )
    written: list[Path] = []
    folder.mkdir(parents=True, exist_ok=True)
    if "dicom" in formats and from_dicom:
        headers = headers if names is None else deidentified(headers, names)
        written.append(folder / "dicom")
        derived = derived_headers(headers, series_description=description)
        write_series(result.volume, written[-1], derived)
        written += _further_series(result, headers, folder)
    original = None if from_dicom else source.files[0]
    if "nifti" in formats:
        written.append(folder / "image.nii.gz")
        write_nifti(result.volume, written[-1], source_path=original)
        for one in _further(result):
            written.append(folder / f"{one.name}.nii.gz")
            write_nifti(one.images, written[-1], source_path=original)
    if "zarr" in formats:
        written.append(folder / "image.ome.zarr")
        write_ome_zarr(result.volume, written[-1], name="image")
        for one in _further(result):
            several = one.name == "responsibilities"
            images = one.images if several else one.images[0]
            written.append(folder / f"{one.name}.ome.zarr")
            write_ome_zarr(images, written[-1], name=one.name, unit=one.unit)
    return written


def _further(result: Translation) -> list[_Further]:
    further = []
    if result.uncertainty is not None:
        further.append(
            _Further(
                "uncertainty",
                "pmg uncertainty, HU, not for diagnosis",
                "Standard deviation in HU of translations sampled from the latent's posterior. "
                + _NOT_FOR_DIAGNOSIS,
                (result.uncertainty,),
                unit="HU",
                slope=0.1,
                window=(10, 20),
            )
        )
    if result.responsibilities:
        further.append(
            _Further(
                "responsibilities",
                "pmg responsibility {k} of {n}, %, not for diagnosis",
                "Percentage to which component {k} of the latent's mixture explains each place. "
                + _NOT_FOR_DIAGNOSIS,
                result.responsibilities,
                unit="PCT",
                slope=1.0,
                window=(50, 100),
            )
        )
    return further


def _further_series(result: Translation, headers: Sequence[Dataset], folder: Path) -> list[Path]:
    """A DICOM series for every further image, numbered after the translation's."""
    written: list[Path] = []
    for one in _further(result):
        count = len(one.images)
        for k, image in enumerate(one.images, 1):
            name = one.name if count == 1 else f"responsibility-{k}"
            derived = derived_headers(
                headers,
                series_description=one.description.format(k=k, n=count),
                number_offset=1001 + len(written),
                derivation=one.derivation.format(k=k),
                window=one.window,
            )
            written.append(folder / f"dicom-{name}")
            write_series(image, written[-1], derived, slope=one.slope, unit=one.unit)
    return written


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
