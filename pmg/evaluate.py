"""Evaluation of a translator on cases: with truth against it, at regions of interest without."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
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

__all__ = [
    "Case",
    "CaseError",
    "CaseResult",
    "Measures",
    "Region",
    "RegionResult",
    "find_cases",
    "measure",
    "read_target",
]

# Labels as TotalSegmentator numbers them; what is not its is the phantom's.
ORGANS: dict[str, tuple[int, ...]] = {
    "aorta": (52,),
    "liver": (5,),
    "kidney": (2, 3),
    "spleen": (1,),
    "pancreas": (7,),
    "vena cava": (63,),
    "portal vein": (64,),
    "fat": (131,),
    "muscle": (132,),
    "bone": (133,),
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
    """Mean HU of one region before and after: of its calcium and of all else, None without voxels.

    Calcium are the voxels of at least 130 HU in the source (Agatston's threshold, which holds
    without contrast only): the same voxels after, for contrast raises the blood above it.
    """

    region: Region
    calcium_mm3: float
    calcium_hu: tuple[float, float] | None
    other_hu: tuple[float, float] | None


@dataclass(frozen=True)
class CaseResult:
    """All figures of one case. Without truth, `translated`, `identity` and `truth` are None."""

    name: str
    translated: Measures | None = None
    identity: Measures | None = None
    truth_organ_hu: dict[str, float] = field(default_factory=dict)
    regions: tuple[RegionResult, ...] = ()


def find_cases(folder: Path) -> list[Case]:
    """Cases below a folder: every sub-folder with source/, and truth/ and regions.csv if known.

    truth/ holds target.nii.gz, organs.nii.gz and, optionally, plaques.nii.gz with plaques.csv
    (x_mm,y_mm,z_mm,diameter_mm), all on the source's grid. regions.csv has columns
    name,x_mm,y_mm,z_mm,radius_mm. Positions are LPS.
    Raises CaseError when there is none.
    """
    cases = []
    for place in sorted(source.parent for source in folder.glob("*/source")):
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
    return Measures(body_mae(hu, truth), organ_means(hu, truth), tuple(plaque_contrasts(hu, truth)))


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
    for _, (x_mm, y_mm, z_mm, diameter_mm) in _read_rows(
        path, ("x_mm", "y_mm", "z_mm", "diameter_mm")
    ):
        z, y, x = (float(c) for c in (to_index @ (x_mm, y_mm, z_mm, 1.0))[:3])
        plaques.append(Plaque(diameter_mm, (z, y, x)))
    return tuple(plaques)


def _read_regions(path: Path) -> tuple[Region, ...]:
    return tuple(
        Region(row.get("name") or f"region {number}", (x_mm, y_mm, z_mm), radius_mm)
        for number, (row, (x_mm, y_mm, z_mm, radius_mm)) in enumerate(
            _read_rows(path, ("x_mm", "y_mm", "z_mm", "radius_mm")), start=1
        )
    )


def _read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[dict[str, str], list[float]]]:
    """Rows of a CSV file, each with the numbers that stand under the columns."""
    if not path.is_file():
        raise CaseError(f"table {path}: no such file")
    with path.open(newline="") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            try:
                numbers = [float(row[column]) for column in columns]
            except (KeyError, TypeError, ValueError):
                raise CaseError(
                    f"table {path}, line {line}: {row}; expected numbers under {', '.join(columns)}"
                ) from None
            yield row, numbers


def _measure_region(region: Region, source: Volume, translated: Volume) -> RegionResult:
    inside = _sphere(region, source)
    if not inside.any():
        raise CaseError(
            f"region {region.name}: centre {region.centre_mm} mm, radius {region.radius_mm} mm "
            f"holds no voxel of the source"
        )
    calcium = inside & (source.hu >= _CALCIUM_HU)
    voxel_mm3 = abs(float(np.linalg.det(source.affine[:3, :3])))

    def before_and_after(mask: NDArray[np.bool_]) -> tuple[float, float] | None:
        if not mask.any():
            return None
        return float(source.hu[mask].mean()), float(translated.hu[mask].mean())

    return RegionResult(
        region,
        float(calcium.sum()) * voxel_mm3,
        before_and_after(calcium),
        before_and_after(inside & ~calcium),
    )


def _sphere(region: Region, volume: Volume) -> NDArray[np.bool_]:
    """Voxels whose centres lie in the region, axis by axis: a Volume's are at right angles."""
    from_first = np.array(region.centre_mm) - volume.affine[:3, 3]
    centre = np.linalg.solve(volume.affine[:3, :3], from_first)
    axes = zip(volume.shape, centre, volume.spacing_mm, strict=True)
    z, y, x = np.ix_(*(((np.arange(n) - c) * mm) ** 2 for n, c, mm in axes))
    inside: NDArray[np.bool_] = z + y + x <= region.radius_mm**2
    return inside
