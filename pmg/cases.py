"""Cases of an evaluation as they lie on disk: sources, and what is known about them."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pmg.arrays import HU, Labels
from pmg.plaques import Plaque
from storage.grid import canonical, resample_like, same_grid
from storage.nifti import read_nifti
from storage.volume import Volume

__all__ = [
    "Case",
    "CaseError",
    "Region",
    "Truth",
    "find_cases",
    "read_organs",
    "read_plaque_share",
    "read_target",
    "read_truth",
]


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
    """A source to translate, with what is known about it.

    truth: a folder. organs: a label map, which may be known without a truth.
    """

    name: str
    source: Path
    truth: Path | None
    regions: tuple[Region, ...] = ()
    organs: Path | None = None


@dataclass(frozen=True)
class Truth:
    """What a case should become, [Z, Y, X] on the source's grid.

    target: HU of the other phase. plaque_share: share of each voxel that is plaque.
    """

    target: HU
    plaque_share: NDArray[np.floating]
    plaques: tuple[Plaque, ...]


def find_cases(folder: Path) -> list[Case]:
    """Cases below a folder: every sub-folder with source/, and beside it what is known.

    truth/ holds target.nii.gz, organs.nii.gz and, optionally, plaques.nii.gz with plaques.csv
    (x_mm,y_mm,z_mm,diameter_mm), all on the source's grid. Without truth/, organs.nii.gz and
    plaques.nii.gz may lie beside source/. regions.csv has columns name,x_mm,y_mm,z_mm,radius_mm.
    Positions are LPS. Raises CaseError when there is none.
    """
    cases = []
    for place in sorted(source.parent for source in folder.glob("*/source")):
        truth = place / "truth"
        known = truth.is_dir()
        organs = (truth if known else place) / "organs.nii.gz"
        regions = place / "regions.csv"
        cases.append(
            Case(
                place.name,
                place / "source",
                truth if known else None,
                _read_regions(regions) if regions.is_file() else (),
                organs if known or organs.is_file() else None,
            )
        )
    if not cases:
        raise CaseError(f"cases {folder}: no sub-folder holds a source/ with a series to translate")
    return cases


def read_target(case: Case, source: Volume) -> Volume | None:
    """The true other phase on the source's grid, where it is known."""
    if case.truth is None:
        return None
    return _on(source, case.truth / "target.nii.gz")


def read_organs(case: Case, source: Volume) -> Labels | None:
    """The label map on the source's grid, where there is one. Raises as `read_truth` does."""
    return None if case.organs is None else _on(source, case.organs).hu


def read_plaque_share(case: Case, source: Volume) -> NDArray[np.float32]:
    """Of every voxel of the source's grid the share that is plaque, by plaques.nii.gz beside
    organs.nii.gz; 0 without that file. Raises as `read_truth` does.
    """
    path = None if case.organs is None else case.organs.parent / "plaques.nii.gz"
    if path is None or not path.is_file():
        return np.zeros(source.shape, dtype=np.float32)
    return _on(source, path).hu.astype(np.float32)


def read_truth(folder: Path, source: Volume) -> Truth:
    """The truth on the source's grid. Raises CaseError for files missing or of another grid."""
    target = _on(source, folder / "target.nii.gz")
    share = np.zeros(source.shape, dtype=np.float32)
    plaques: tuple[Plaque, ...] = ()
    if (folder / "plaques.nii.gz").is_file():
        share = _on(source, folder / "plaques.nii.gz").hu.astype(np.float32)
        plaques = _read_plaques(folder / "plaques.csv", source)
    return Truth(target.hu, share, plaques)


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
