"""Rows of a catalogue without a store behind them, which the tests of sampling share."""

from __future__ import annotations

import numpy as np

from storage.catalogue import Row, body_cells

Index = tuple[int, int, int]
SPACING = (2.0, 1.0, 1.0)
RULES = ("lung base", "middle of the body")


def make_row(number: int, domain: int, patient: str, origin: Index, body: np.ndarray) -> Row:
    hit = np.argwhere(body)
    cell, grid, bits = body_cells(body, SPACING)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = SPACING
    return Row(
        volume_id=f"v{number:06d}",
        patient=patient,
        domain=domain,
        phase="x",
        shape=body.shape,
        spacing_mm=SPACING,
        affine=tuple(affine.ravel()),
        frame_origin=origin,
        frame_rule="middle of the body",
        hu_min=-1000,
        hu_max=1000,
        body_box=(*hit.min(axis=0).tolist(), *(hit.max(axis=0) + 1).tolist()),
        cell_shape=cell,
        cells_grid=grid,
        body_cells=bits,
        mask_cells=b"",
        hu_histogram=(0,) * 82,
        array_path=f"volumes/v{number}",
        stored_bytes=1,
        digest="0" * 64,
        metadata_digest="0" * 64,
        source_digest="0",
        source_stat="",
        ingest_version=1,
        provenance="{}",
    )


def ellipsoid(shape: Index, rng: np.random.Generator) -> np.ndarray:
    centre = np.array(shape) / 2 + rng.uniform(-2, 2, 3)
    radii = np.array(shape) * rng.uniform(0.3, 0.45, 3)
    grid = np.indices(shape).reshape(3, -1).T
    return (((grid - centre) / radii) ** 2).sum(axis=1).reshape(shape) < 1


def cohort(seed: int, count: int = 10, patients: int = 6) -> list[Row]:
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        shape = tuple(rng.integers((10, 20, 20), (30, 60, 60)).tolist())
        origin = tuple(n // 2 + int(rng.integers(-3, 4)) for n in shape)
        domain = 1 + number % 2
        patient = f"p{rng.integers(patients)}" if number > 3 else f"q{number}"
        rows.append(make_row(number, domain, patient, origin, ellipsoid(shape, rng)))
    return rows
