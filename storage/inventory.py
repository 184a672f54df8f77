"""What a store holds, counted from the catalogue's columns alone: fast for 100,000 volumes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from storage.catalogue import HU_EDGES, Catalogue

__all__ = ["Group", "Inventory", "inventory"]

_DOMAINS = (1, 2)


@dataclass(frozen=True)
class Group:
    """The volumes of one domain and phase.

    slices: along z. voxel_bytes: of the int16 voxels, uncompressed.
    """

    domain: int
    phase: str
    volumes: int
    patients: int
    slices: int
    hu_min: int
    hu_max: int
    stored_bytes: int
    voxel_bytes: int
    frame_rules: tuple[str, ...]


@dataclass(frozen=True)
class Inventory:
    """groups: by domain and phase. patients: of the whole store.

    spacings_mm: how many volumes have a spacing (z, y, x, to 0.01 mm), the most frequent first.
    hu_counts: [2, bins] voxels of domain 1 and 2 in the bins between HU_EDGES.
    """

    groups: tuple[Group, ...]
    patients: int
    spacings_mm: tuple[tuple[tuple[float, float, float], int], ...]
    hu_counts: np.ndarray

    @property
    def stored_bytes(self) -> int:
        return sum(group.stored_bytes for group in self.groups)

    @property
    def voxel_bytes(self) -> int:
        return sum(group.voxel_bytes for group in self.groups)


def inventory(rows: Catalogue) -> Inventory:
    """Count a catalogue."""
    domain = rows.column("domain")
    phases, phase = np.unique(rows.column("phase").astype(str), return_inverse=True)
    patients, patient = np.unique(rows.column("patient").astype(str), return_inverse=True)
    rules = rows.column("frame_rule").astype(str)
    shape = rows.column("shape").astype(np.int64)
    voxels, stored = shape.prod(axis=1), rows.column("stored_bytes")
    hu_min, hu_max = rows.column("hu_min"), rows.column("hu_max")
    groups = []
    for d, p in sorted(set(zip(domain.tolist(), phase.tolist(), strict=True))):
        here = (domain == d) & (phase == p)
        groups.append(
            Group(
                domain=d,
                phase=str(phases[p]),
                volumes=int(here.sum()),
                patients=len(np.unique(patient[here])),
                slices=int(shape[here, 0].sum()),
                hu_min=int(hu_min[here].min()),
                hu_max=int(hu_max[here].max()),
                stored_bytes=int(stored[here].sum()),
                voxel_bytes=int(2 * voxels[here].sum()),
                frame_rules=tuple(np.unique(rules[here]).tolist()),
            )
        )
    spacings, counts = np.unique(rows.column("spacing_mm").round(2), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    histogram = rows.column("hu_histogram")
    return Inventory(
        groups=tuple(groups),
        patients=len(patients),
        spacings_mm=tuple(
            ((float(z), float(y), float(x)), int(count))
            for (z, y, x), count in zip(spacings[order], counts[order], strict=True)
        ),
        hu_counts=np.stack(
            [
                histogram[domain == d].sum(axis=0, dtype=np.int64).reshape(len(HU_EDGES) - 1)
                for d in _DOMAINS
            ]
        ),
    )
