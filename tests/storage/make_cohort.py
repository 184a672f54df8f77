"""Small volumes, series and stores that the storage tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from storage.body import FrameOrigin
from storage.catalogue import Row
from storage.place import Place
from storage.store import Store, Writer
from storage.volume import Volume

Index = tuple[int, int, int]

_SPACING_MM = (2.0, 1.0, 1.0)
SHAPE = (40, 70, 90)  # larger than a chunk along every axis


def body_hu(shape: Index, seed: int) -> np.ndarray:
    """int16 HU: an elliptic cylinder of noisy soft tissue, 3/4 as wide as the array, in air."""
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[-1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j]
    inside = (y**2 + x**2 < 0.75**2)[None]
    tissue = rng.normal(40, 10, shape)
    return np.where(inside, tissue, rng.normal(-1000, 5, shape)).round().astype(np.int16)


def lps(spacing_mm: tuple[float, float, float], origin_mm: Index = (0, 0, 0)) -> np.ndarray:
    """Affine of a grid along S, P, L."""
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = spacing_mm
    affine[:, 3] = (*origin_mm, 1)
    return affine


def coordinates_hu(shape: Index, origin: Index) -> np.ndarray:
    """int16 that says where a voxel lies in the body-centred frame: 5 bits for each axis + 16."""
    z, y, x = (np.arange(n) - o + 16 for n, o in zip(shape, origin, strict=True))
    return (z[:, None, None] * 1024 + y[:, None] * 32 + x).astype(np.int16)


def write_volume(
    store: Store,
    volume_id: str,
    *,
    domain: int,
    patient: str,
    hu: np.ndarray,
    origin: Index,
    body: np.ndarray | None = None,
    spacing_mm: tuple[float, float, float] = _SPACING_MM,
) -> Row:
    with store.writer() as writer:
        row = writer.stage(
            Volume(hu, lps(spacing_mm)),
            np.ones(hu.shape, bool) if body is None else body,
            FrameOrigin(origin, "middle of the body"),
            volume_id=volume_id,
            patient=patient,
            domain=domain,
            phase="arterial",
            source_digest="00",
            ingest_version=1,
            provenance={"steps": ["made up"]},
        )
        writer.commit([row])
    return row


def two_volumes(place: Place) -> Store:
    """A store of v1 of domain 1 and v2 of domain 2, of patients p1 and p2."""
    store = Store.create(place, _SPACING_MM)
    for number in (1, 2):
        hu = body_hu(SHAPE, number)
        write_volume(
            store, f"v{number}", domain=number, patient=f"p{number}", hu=hu, origin=(20, 35, 45)
        )
    return Store.open(place)


def stage(writer: Writer, hu: np.ndarray, volume_id: str = "new", **changes: Any) -> Row:
    """Stage a volume of which only the HU matter; `body`, `origin` and labels may be others."""
    body = np.ones(hu.shape, bool)
    body[...] = changes.pop("body", True)
    labels: dict[str, Any] = {
        "volume_id": volume_id,
        "patient": "p",
        "domain": 1,
        "phase": "arterial",
        "source_digest": "00",
        "ingest_version": 1,
        "provenance": {},
    }
    volume = Volume(hu, lps(_SPACING_MM))
    origin = changes.pop("origin", FrameOrigin((1, 1, 1), "middle of the body"))
    return writer.stage(volume, body, origin, **(labels | changes))


def coordinate_store(path: Path, count: int = 3) -> Store:
    """`count` volumes per domain, each of a patient of its own, of various shapes and origins."""
    rng = np.random.default_rng(7)
    store = Store.create(path, _SPACING_MM)
    for domain in (1, 2):
        for number in range(count):
            shape = tuple(rng.integers((8, 18, 18), (15, 30, 30)).tolist())
            origin = tuple(n // 2 + int(rng.integers(-2, 3)) for n in shape)
            write_volume(
                store,
                f"volume-{domain}-{number}",
                domain=domain,
                patient=f"patient-{domain}-{number}",
                hu=coordinates_hu(shape, origin),
                origin=origin,
            )
    return Store.open(path)


def write_dicom(
    folder: Path,
    hu: np.ndarray,
    *,
    spacing_mm: tuple[float, float, float] = (3.0, 1.5, 1.25),
    patient: str = "P1",
    **elements: Any,
) -> None:
    """An axial CT series, one file a slice, from the head down; `elements` go into every file."""
    folder.mkdir(parents=True, exist_ok=True)
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    for index, plane in enumerate(hu):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds = Dataset()
        ds.file_meta = meta
        ds.SOPClassUID = CTImageStorage
        ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID = series, study, frame
        ds.Modality, ds.PatientID, ds.KVP = "CT", patient, "120"
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.InstanceNumber = index + 1
        ds.ImagePositionPatient = [-30.5, -40.25, 100.0 - spacing_mm[0] * index]
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing = list(spacing_mm[1:])
        ds.Rows, ds.Columns = plane.shape
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = "1", "-24", "HU"
        ds.PixelData = (plane + 24).astype("<i2").tobytes()
        for keyword, value in elements.items():
            setattr(ds, keyword, value)
        pydicom.dcmwrite(folder / f"slice_{index:03d}.dcm", ds, enforce_file_format=True)
