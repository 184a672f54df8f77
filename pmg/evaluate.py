"""Evaluation of a translator on cases: with truth against it, at regions of interest without."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pmg.metrics import (
    HU,
    Plaque,
    PlaqueContrast,
    Truth,
    body_mae,
    organ_means,
    plaque_contrasts,
)
from storage.body import body_mask
from storage.grid import canonical, resample_like, same_grid
from storage.nifti import read_nifti
from storage.volume import Volume

__all__ = ["Case", "CaseResult", "Measures", "Region", "RegionResult", "find_cases", "measure"]

# Labels as TotalSegmentator numbers them; what is not its is the phantom's.
ORGANS: dict[str, tuple[int, ...]] = {
    "aorta": (52,),
    "liver": (5,),
    "kidney": (2, 3),
    "spleen": (1,),
    "pancreas": (7,),
    "vena cava": (63,),
    "portal vein": (64,),
    "fat": (130,),
    "muscle": (131,),
    "bone": (132,),
}


_CALCIUM_HU = 130


class CaseError(ValueError):
    """A case whose files are missing or do not lie on one another."""


@dataclass(frozen=True)
class Region:
    """A sphere in patient space whose HU are to be shown before and after."""

    name: str
    centre_mm: tuple[float, float, float]  # LPS x, y, z
    radius_mm: float


@dataclass(frozen=True)
class Case:
    """A source to translate, with what is known about it."""

    name: str
    source: Path
    truth: Path | None
    regions: tuple[Region, ...] = ()


@dataclass(frozen=True)
class Measures:
    """Figures of one candidate against the truth."""

    body_mae_hu: float
    organ_hu: dict[str, float]
    plaques: tuple[PlaqueContrast, ...]


@dataclass(frozen=True)
class RegionResult:
    """Mean HU of one region before and after: of its calcium, and of all else in it.

    Calcium are the voxels of at least 130 HU in the source (Agatston's threshold, which holds
    without contrast only): the same voxels after, for contrast raises the blood above it.
    """

    region: Region
    calcium_mm3: float
    calcium_hu: tuple[float, float] | None
    other_hu: tuple[float, float]


@dataclass(frozen=True)
class CaseResult:
    """All figures of one case. Without truth, `translated`, `identity` and `truth` are None."""

    name: str
    translated: Measures | None = None
    identity: Measures | None = None
    truth_organ_hu: dict[str, float] = field(default_factory=dict)
    regions: tuple[RegionResult, ...] = ()


def find_cases(folder: Path) -> list[Case]:
    """Cases below a folder: every sub-folder with `source/`, and `truth/` and `regions.csv` if known.

    truth/ holds target.nii.gz, organs.nii.gz and, optionally, plaques.nii.gz with plaques.csv, all
    on the source's grid. regions.csv has columns name,x_mm,y_mm,z_mm,radius_mm (LPS).
    Raises CaseError when there is none.
    """
    cases = []
    for place in sorted(p for p in folder.iterdir() if (p / "source").exists()):
        truth = place / "truth"
        regions = place / "regions.csv"
        cases.append(
            Case(
                place.name,
                place / "source",
                truth if truth.is_dir() else None,
                _read_regions(regions) if regions.is_file() else (),
            )
        )
    if not cases:
        raise CaseError(f"cases {folder}: no sub-folder holds a source/ with a series to translate")
    return cases


def measure(case: Case, source: Volume, translated: Volume) -> CaseResult:
    """Measure a translation, and the source itself as the baseline beside it."""
    regions = tuple(_measure_region(r, source, translated) for r in case.regions)
    if case.truth is None:
        return CaseResult(case.name, regions=regions)
    truth = _read_truth(case.truth, source)
    return CaseResult(
        case.name,
        _against(truth, translated.hu),
        _against(truth, source.hu),
        organ_means(truth.target, truth),
        regions,
    )


def read_target(case: Case, source: Volume) -> Volume | None:
    """The true other phase on the source's grid, where it is known."""
    if case.truth is None:
        return None
    return _on(source, case.truth / "target.nii.gz")


def _against(truth: Truth, hu: HU) -> Measures:
    return Measures(
        body_mae(hu, truth), organ_means(hu, truth), tuple(plaque_contrasts(hu, truth))
    )


def _read_truth(folder: Path, source: Volume) -> Truth:
    target = _on(source, folder / "target.nii.gz")
    organs = _on(source, folder / "organs.nii.gz")
    share = np.zeros(source.shape, dtype=np.float32)
    plaques: tuple[Plaque, ...] = ()
    if (folder / "plaques.nii.gz").is_file():
        share = _on(source, folder / "plaques.nii.gz").hu.astype(np.float32)
        plaques = _read_plaques(folder / "plaques.csv", source)
    ordered = canonical(source)
    mask = Volume(body_mask(ordered).astype(np.int16), ordered.affine)
    body = resample_like(mask, source, fill=0.0)
    return Truth(target.hu, body.hu > 0, organs.hu, ORGANS, share, plaques)


def _on(source: Volume, path: Path) -> Volume:
    """A NIfTI that must lie on the source's grid, up to the order of its axes."""
    if not path.is_file():
        raise CaseError(f"truth {path}: no such file")
    volume = read_nifti(path)
    if not same_grid(canonical(volume), canonical(source)):
        raise CaseError(
            f"truth {path}: its grid is not the source's (shape {volume.shape}, "
            f"spacing {volume.spacing_mm} mm against {source.shape}, {source.spacing_mm} mm)"
        )
    return resample_like(volume, source)


def _read_plaques(path: Path, source: Volume) -> tuple[Plaque, ...]:
    to_index = np.linalg.inv(source.affine)
    plaques = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            centre = to_index @ (float(row["x_mm"]), float(row["y_mm"]), float(row["z_mm"]), 1.0)
            z, y, x = (float(c) for c in centre[:3])
            plaques.append(Plaque(float(row["diameter_mm"]), (z, y, x)))
    return tuple(plaques)


def _read_regions(path: Path) -> tuple[Region, ...]:
    regions = []
    with path.open(newline="") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            try:
                centre = (float(row["x_mm"]), float(row["y_mm"]), float(row["z_mm"]))
                regions.append(Region(row["name"], centre, float(row["radius_mm"])))
            except (KeyError, TypeError, ValueError):
                raise CaseError(
                    f"regions {path}, line {line}: {dict(row)}; expected numbers under "
                    f"name,x_mm,y_mm,z_mm,radius_mm"
                ) from None
    return tuple(regions)


def _measure_region(region: Region, source: Volume, translated: Volume) -> RegionResult:
    inside = _sphere(region, source)
    if not inside.any():
        raise CaseError(
            f"region {region.name}: centre {region.centre_mm} mm, radius {region.radius_mm} mm "
            f"holds no voxel of the source"
        )
    calcium = inside & (source.hu >= _CALCIUM_HU)
    voxel_mm3 = abs(float(np.linalg.det(source.affine[:3, :3])))

    def before_and_after(mask: NDArray[np.bool_]) -> tuple[float, float]:
        return float(source.hu[mask].mean()), float(translated.hu[mask].mean())

    return RegionResult(
        region,
        float(calcium.sum()) * voxel_mm3,
        before_and_after(calcium) if calcium.any() else None,
        before_and_after(inside & ~calcium),
    )


def _sphere(region: Region, volume: Volume) -> NDArray[np.bool_]:
    index = np.indices(volume.shape).reshape(3, -1)
    points = volume.affine[:3, :3] @ index + volume.affine[:3, 3:]
    distance = np.linalg.norm(points - np.array(region.centre_mm)[:, None], axis=0)
    inside: NDArray[np.bool_] = (distance <= region.radius_mm).reshape(volume.shape)
    return inside

