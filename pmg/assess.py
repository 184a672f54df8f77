"""One case of an evaluation from its files to its figures: translate, measure, keep the pictures.

Every case is worked on alone, so that a cohort's can be spread over processes and machines.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from pmg.cases import Case, read_target
from pmg.distribution import framed
from pmg.evaluate import CaseResult, measure
from pmg.fidelity import body_mae
from pmg.figures import Panel
from pmg.histogram import match_histogram
from pmg.model import Domain, other
from pmg.output import write_translation
from pmg.quantity import Amount, Quantity
from pmg.targets import Targets, is_store, read_targets
from pmg.translate import GridSlice, VolumeTranslator
from storage.body import body_mask
from storage.errors import IngestError, StoreError
from storage.grid import canonical
from storage.pseudonym import Pseudonyms
from storage.series import find_sources, read_source
from storage.volume import Volume

__all__ = ["Assessed", "Assessor", "read_assessed", "write_assessed"]

# Heights of the slices that are shown of a case, as fractions of its extent.
_SHOWN = (0.3, 0.6)
_CYCLE = Quantity("cycle error", "HU", "mean absolute, source to the other domain and back, body")
_RESULT, _PANELS = "result.json", "panels.npz"


@dataclass(frozen=True)
class Assessed:
    """What one case gave: its figures, and some of its slices."""

    result: CaseResult
    panels: tuple[Panel, ...]


class Assessor:
    """A model in one direction, with the real scans that its translations are compared with.

    compared: what a report says of those scans.
    """

    def __init__(
        self, translator: VolumeTranslator, domain: Domain, real: Targets | None, compared: str
    ) -> None:
        self.translator, self.compared = translator, compared
        self._domain, self._real = domain, real

    @classmethod
    def open(
        cls, model: Path, domain: Domain = 1, device: str = "auto", targets: str | None = None
    ) -> Assessor:
        """The model of a run's folder. targets: a store or a folder with real scans of the other
        domain; without it the store that the model was trained on, if it is there.
        """
        translator = VolumeTranslator.open(model, domain, device)
        return cls(translator, domain, *_targets(targets, translator, domain))

    def case(self, case: Case, names: Pseudonyms | None, out: Path, *, show: bool) -> Assessed:
        """Read a case's source, write its translation to `out`, and measure it.

        names: the key for the pseudonyms of written DICOM, and of the patient in the tables; None
        keeps the source's identity. show: with slices. Raises IngestError for a source that is not
        one series that can be read, CaseError for a truth that does not fit.
        """
        sources, refused = find_sources(case.source)
        if len(sources) != 1:
            reasons = "; ".join(f"{r.path}: {r.reason}" for r in refused)
            raise IngestError(f"case {case.source}: {len(sources)} series; expected 1. {reasons}")
        volume, headers = read_source(sources[0])
        translated = self.translator.translate(volume)
        text = f"pmg synthetic, domain {other(self._domain)}, not for diagnosis"
        write_translation(translated, sources[0], headers, out, text, names)
        result = self._measured(case, volume, translated, _subject(headers, names))
        return Assessed(result, self._panels(case, volume) if show else ())

    def volume(self, name: str, volume: Volume, subject: str, *, show: bool) -> Assessed:
        """Measure a volume of a store, of which nothing else is known. Writes no translation."""
        case = Case(name, Path(), None)
        result = self._measured(case, volume, self.translator.translate(volume), subject)
        return Assessed(result, self._panels(case, volume) if show else ())

    def _measured(
        self, case: Case, source: Volume, translated: Volume, subject: str | None
    ) -> CaseResult:
        """All figures; the source's axes are put in order once, for all of them."""
        source, translated = canonical(source), canonical(translated)
        body = body_mask(source)
        candidates = {"identity": source}
        if self._real is not None:
            matched = match_histogram(source.hu, body, self._real.histogram)
            candidates["matched"] = replace(source, hu=matched)
        candidates["translated"] = translated
        contrast = self.translator.config.data.contrast_domain
        result = measure(case, source, candidates, self._domain, subject, contrast)
        measured = {name: dict(figures) for name, figures in result.measured.items()}
        cycled = self.translator.reversed().translate(translated)
        measured["identity"][_CYCLE] = Amount(0.0)
        measured["translated"][_CYCLE] = Amount(body_mae(cycled.hu, source.hu, body))
        if self._real is not None:
            grid = framed(source, self.translator.spacing_mm)
            on_grid = {name: self.translator.on_grid(one) for name, one in candidates.items()}
            for name, distances in self._real.distances(grid, on_grid).items():
                measured.setdefault(name, {}).update(distances)
        return replace(result, measured=measured)

    def _panels(self, case: Case, volume: Volume) -> tuple[Panel, ...]:
        truth = read_target(case, volume)
        return tuple(
            Panel(name, self.translator.slice(volume, z_mm, truth))
            for name, z_mm in _heights(case, volume)
        )


def write_assessed(folder: Path, one: Assessed) -> None:
    """Keep a case's figures and slices, for `read_assessed` to find."""
    result = one.result
    figures = [
        (name, asdict(quantity), asdict(amount))
        for name, measured in result.measured.items()
        for quantity, amount in measured.items()
    ]
    record = {"name": result.name, "subject": result.subject, "figures": figures}
    (folder / _RESULT).write_text(json.dumps(record), encoding="utf-8")
    arrays: dict[str, Any] = {"titles": np.array([panel.title for panel in one.panels], dtype=str)}
    for number, panel in enumerate(one.panels):
        for part in ("source", "translation", "truth", "tissue"):
            if (values := getattr(panel.slice, part)) is not None:
                arrays[f"{part}{number}"] = values
    np.savez_compressed(folder / _PANELS, **arrays)


def read_assessed(folder: Path) -> Assessed:
    """What `write_assessed` kept. Nothing is unpickled."""
    record = json.loads((folder / _RESULT).read_text(encoding="utf-8"))
    measured: dict[str, dict[Quantity, Amount]] = {}
    for name, quantity, amount in record["figures"]:
        measured.setdefault(name, {})[Quantity(**quantity)] = Amount(**amount)
    with np.load(folder / _PANELS, allow_pickle=False) as arrays:
        panels = tuple(
            Panel(
                str(title),
                GridSlice(
                    arrays[f"source{number}"],
                    arrays[f"translation{number}"],
                    arrays.get(f"truth{number}"),
                    arrays[f"tissue{number}"],
                ),
            )
            for number, title in enumerate(arrays["titles"])
        )
    return Assessed(CaseResult(record["name"], record["subject"], measured), panels)


def _targets(
    where: str | None, translator: VolumeTranslator, domain: Domain
) -> tuple[Targets | None, str]:
    """The real scans to compare with, and what the report says of them.

    The store of the training is taken where it can be: without it the evaluation is still of use.
    """
    store = translator.config.data.store
    if where is None and (store is None or not is_store(str(store))):
        return None, "none; --targets names some"
    try:
        real = read_targets(where or str(store), other(domain), translator.spacing_mm)
    except StoreError as error:
        if where is not None:
            raise
        return None, f"none; the store that the model was trained on: {error}"
    return real, f"{len(real.scans)} of {where or store}"


def _subject(headers: Sequence[Dataset], names: Pseudonyms | None) -> str | None:
    """Whose scan it is, by its pseudonym unless identities are kept; None where nothing says."""
    patient = str(headers[0].get("PatientID", "")).strip() if headers else ""
    if not patient:
        return None
    return patient if names is None else names.of("patient", patient)


def _heights(case: Case, volume: Volume) -> list[tuple[str, float]]:
    """Titles and z (LPS mm) of the slices to show: through the regions, or spread over the case."""
    if case.regions:
        return [(f"{case.name}: {region.name}", region.centre_mm[2]) for region in case.regions]
    ordered = canonical(volume)
    low, extent = ordered.affine[2, 3], (ordered.shape[0] - 1) * ordered.spacing_mm[0]
    return [(case.name, low + fraction * extent) for fraction in _SHOWN]
