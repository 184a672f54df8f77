"""What a translation is for: a network trained on contrast CT, applied to non-contrast CT.

The paper's two tasks: segmentation of the pancreas, and detection and segmentation of calcified
plaque in aorta and pelvic arteries. The network has seen contrast alone. What it finds in a
translation beyond what it finds in the source itself is what the translation is worth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pmg.agatston import artery_region
from pmg.arrays import Mask, Spacing
from pmg.bootstrap import difference_interval, interval
from pmg.cases import Case, CaseError, read_organs, read_plaque_share
from pmg.segmentation import CLASSES, Labelled
from storage.grid import canonical, resample
from storage.volume import Volume

__all__ = ["Compared", "Score", "Scores", "compare", "on_spacing", "read_classes", "score"]

_PANCREAS = 7  # TotalSegmentator's
_SHARE = 0.1  # of a voxel that plaque fills from which on the voxel counts as plaque
_NEAR_MM = 3.0
_ANY_NEIGHBOUR = np.ones((3, 3, 3), dtype=bool)

Classes = NDArray[np.uint8]


@dataclass(frozen=True)
class Score:
    """A figure of one subject or over all: `total` / `count`, so that subjects can be pooled."""

    total: float
    count: float

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else float("nan")


Scores = dict[str, Score]  # by name: "pancreas, Dice", "plaque, Dice", "plaque, F1"


def read_classes(case: Case, scan: Volume) -> Classes:
    """Pancreas and plaque of a case on the scan's grid; plaque only in and at the arteries.

    By organs.nii.gz, TotalSegmentator's numbers, and plaques.nii.gz, the share of every voxel that
    plaque fills, or a mask. Raises CaseError where there is no label map.
    """
    ordered = canonical(scan)
    organs = read_organs(case, ordered)
    if organs is None:
        raise CaseError(f"case {case.name}: no organs.nii.gz beside its source/")
    share = read_plaque_share(case, ordered)
    classes = np.zeros(ordered.shape, np.uint8)
    classes[organs == _PANCREAS] = CLASSES["pancreas"]
    plaque = (share >= _SHARE) & artery_region(organs, ordered.spacing_mm)
    classes[plaque] = CLASSES["plaque"]
    return classes


def on_spacing(scan: Volume, classes: Classes, spacing_mm: Spacing) -> Labelled:
    """The scan and its classes on the grid that the network sees.

    A voxel is of the class that fills at least half of it; of plaque a tenth is enough.
    """
    ordered = canonical(scan)
    image = resample(ordered, spacing_mm)
    moved = np.zeros(image.shape, np.uint8)
    for name, number in CLASSES.items():
        share = resample(Volume((classes == number).astype(np.float32), ordered.affine), spacing_mm)
        moved[share.hu >= (_SHARE if name == "plaque" else 0.5)] = number
    return Labelled(image.hu, moved)


def score(found: Classes, true: Classes, spacing_mm: Spacing) -> Scores:
    """Dice of every class that the truth has, and F1 of the detection of plaques.

    Dice is 2 |A and B| / (|A| + |B|) of one subject. A plaque, a connected piece, is detected if a
    voxel of a found one lies within 3 mm; a found one is false if no true one is as near.
    F1 = 2 TP / (2 TP + FP + FN), over the plaques of all subjects where scores are pooled.
    """
    scores: Scores = {}
    for name, number in CLASSES.items():
        a, b = found == number, true == number
        if b.any():
            overlap = 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))
            scores[f"{name}, Dice"] = Score(float(overlap), 1.0)
    a, b = found == CLASSES["plaque"], true == CLASSES["plaque"]
    detected, missed = _near(b, a, spacing_mm)
    _, false = _near(a, b, spacing_mm)
    scores["plaque, F1"] = Score(2.0 * detected, 2.0 * detected + missed + false)
    return scores


@dataclass(frozen=True)
class Compared:
    """One figure of the source itself and of its translation, and their difference.

    intervals: of each 95 % over subjects; None for fewer than two.
    """

    name: str
    untranslated: float
    translated: float
    difference: float
    untranslated_interval: tuple[float, float] | None
    translated_interval: tuple[float, float] | None
    difference_interval: tuple[float, float] | None
    subjects: int


def compare(untranslated: Sequence[Scores], translated: Sequence[Scores]) -> list[Compared]:
    """Every figure over all subjects; both sequences are of the same subjects in the same order.

    The difference is taken subject by subject, so that what makes a subject hard for both does not
    widen its interval: of Dice the mean difference, of F1 that of the pooled figures.
    """
    rows = []
    for name in dict.fromkeys(name for scores in untranslated for name in scores):
        pairs = [
            (one[name], other[name])
            for one, other in zip(untranslated, translated, strict=True)
            if name in one and one[name].count + other[name].count > 0
        ]
        before, after = ([pair[n] for pair in pairs] for n in (0, 1))
        rows.append(_compared(name, before, after))
    return rows


def _compared(name: str, before: Sequence[Score], after: Sequence[Score]) -> Compared:
    low, high = _pooled(before), _pooled(after)
    return Compared(
        name,
        untranslated=low,
        translated=high,
        difference=high - low,
        untranslated_interval=_interval(before),
        translated_interval=_interval(after),
        difference_interval=difference_interval(
            ([s.total for s in before], [s.total for s in after]),
            ([s.count for s in before], [s.count for s in after]),
        ),
        subjects=len(before),
    )


def _pooled(scores: Iterable[Score]) -> float:
    scores = list(scores)
    return Score(sum(s.total for s in scores), sum(s.count for s in scores)).value


def _interval(scores: Sequence[Score]) -> tuple[float, float] | None:
    return interval([s.total for s in scores], [s.count for s in scores])


def _near(pieces: Mask, others: Mask, spacing_mm: Spacing) -> tuple[int, int]:
    """How many connected pieces have a voxel of `others` within 3 mm, and how many have none."""
    labels, count = ndimage.label(pieces, _ANY_NEIGHBOUR)
    if not count:
        return 0, 0
    if not others.any():
        return 0, count
    distance_mm = ndimage.distance_transform_edt(~others, sampling=spacing_mm)
    nearest = ndimage.minimum(distance_mm, labels, np.arange(1, count + 1))
    near = int(np.count_nonzero(nearest <= _NEAR_MM))
    return near, count - near
