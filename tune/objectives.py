"""What a search can make small or large: figures of translated scans, by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pmg.arrays import HU, Mask
from pmg.calcium import CALCIUM_HU, invented, kept
from pmg.cases import Truth
from pmg.distribution import Framed
from pmg.fidelity import body_mae, gradient_correlation
from pmg.model import Domain
from pmg.plaques import plaque_contrasts
from pmg.quantity import Amount
from pmg.targets import Targets
from storage.volume import Volume

__all__ = ["OBJECTIVES", "Objective", "Scene", "nearest_objective"]


@dataclass(frozen=True)
class Scene:
    """A scan to translate, on canonical axes, with what its translation is compared with.

    framed: the same on the model's grid. targets: held-out scans of the other domain.
    """

    name: str
    source: Volume
    body: Mask
    framed: Framed
    truth: Truth | None
    domain: Domain
    targets: Targets

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        return self.source.spacing_mm


@dataclass(frozen=True)
class Objective:
    """A figure of one translated scan; None where the scan has nothing to count.

    measure: of the scene and the translation's HU, on the source's grid and on the model's. Over
    scans, totals and counts are summed, so that every plaque counts once. of_truth: it is of the
    cases with truth; otherwise of the store's held-out scans.
    """

    direction: Literal["minimize", "maximize"]
    unit: str
    what: str
    measure: Callable[[Scene, HU, Volume], Amount | None]
    of_truth: bool = False


def _truth(scene: Scene) -> Truth:
    assert scene.truth is not None
    return scene.truth


def _distance(name: str) -> Callable[[Scene, HU, Volume], Amount | None]:
    def measure(scene: Scene, hu: HU, grid: Volume) -> Amount | None:
        found: Mapping[str, Amount] = {
            quantity.name: amount
            for quantity, amount in scene.targets.distances(scene.framed, {"": grid})
            .get("", {})
            .items()
        }
        return found.get(name)

    return measure


def _calcium_kept(scene: Scene, hu: HU, grid: Volume) -> Amount | None:
    from_hu = CALCIUM_HU[scene.domain == 2]
    stay, count = kept(hu, scene.source.hu, scene.body, scene.spacing_mm, from_hu=from_hu)
    return Amount(100.0 * stay, count) if count else None


def _calcium_invented(scene: Scene, hu: HU, grid: Volume) -> Amount | None:
    from_hu = CALCIUM_HU[scene.domain == 1]
    known = (scene.source.hu,)
    return Amount(invented(hu, known, scene.body, scene.spacing_mm, from_hu=from_hu))


def _gradient_correlation(scene: Scene, hu: HU, grid: Volume) -> Amount | None:
    return Amount(gradient_correlation(hu, scene.source.hu, scene.body, scene.spacing_mm))


def _body_mae(scene: Scene, hu: HU, grid: Volume) -> Amount | None:
    return Amount(body_mae(hu, _truth(scene).target, scene.body))


def _plaque_recall(scene: Scene, hu: HU, grid: Volume) -> Amount | None:
    truth = _truth(scene)
    found = plaque_contrasts(hu, truth.target, truth.plaque_share, truth.plaques, scene.spacing_mm)
    measurable = [one for one in found if one.measurable]
    if not measurable:
        return None
    return Amount(100.0 * sum(one.kept for one in measurable), len(measurable))


def _plaque_loss(scene: Scene, hu: HU, grid: Volume) -> Amount | None:
    truth = _truth(scene)
    found = plaque_contrasts(hu, truth.target, truth.plaque_share, truth.plaques, scene.spacing_mm)
    off = [abs(one.retention - 1) for one in found if one.measurable]
    return Amount(100.0 * float(np.sum(off)), len(off)) if off else None


OBJECTIVES: Mapping[str, Objective] = {
    "sliced_wasserstein": Objective(
        "minimize",
        "sd",
        "distance of translated patches to those of real scans at the same places",
        _distance("sliced Wasserstein"),
    ),
    "kid": Objective(
        "minimize", "", "kernel distance of the same features (KID)", _distance("KID")
    ),
    "calcium_kept": Objective(
        "maximize", "%", "specks of calcium whose HU do not fall by half", _calcium_kept
    ),
    "calcium_invented": Objective(
        "minimize", "per volume", "specks that the source does not have", _calcium_invented
    ),
    "gradient_correlation": Objective(
        "maximize", "", "of translation and source: structure that stays", _gradient_correlation
    ),
    "body_mae": Objective(
        "minimize", "HU", "mean absolute error inside the body", _body_mae, of_truth=True
    ),
    "plaque_recall": Objective(
        "maximize", "%", "plaques with at least half their contrast", _plaque_recall, of_truth=True
    ),
    "plaque_contrast_error": Objective(
        "minimize", "%", "of the plaques' true contrast, absolute", _plaque_loss, of_truth=True
    ),
}


def nearest_objective(name: str) -> str:
    """Such as "did you mean body_mae?"."""
    close = difflib.get_close_matches(name, OBJECTIVES, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(OBJECTIVES)}"
