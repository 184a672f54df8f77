"""Evaluation of a translation and its baselines on one case, with a truth and without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from pmg.agatston import agatston, artery_region
from pmg.arrays import HU, Labels, Mask
from pmg.calcium import CALCIUM_HU, INVENTED, RISE_HU, SPECK, invented, kept
from pmg.cases import Case, CaseError, Region, Truth, read_organs, read_truth
from pmg.fidelity import (
    PSNR_RANGE_HU,
    SSIM_WINDOW_HU,
    body_mae,
    gradient_correlation,
    gradient_error,
    ms_ssim,
    organ_means,
    psnr,
)
from pmg.model import Domain
from pmg.plaques import SIZE_CLASSES, plaque_contrasts
from pmg.quantity import Amount, Measured, Quantity
from pmg.tissues import BONE_NOTE, FAT_NOTE, ORGANS, cortical_bone, fat
from storage.body import body_mask
from storage.grid import canonical
from storage.volume import Volume

__all__ = ["CaseResult", "measure"]

_BODY_MAE = Quantity("body MAE", "HU")
_PSNR = Quantity("PSNR", "dB", f"inside the body, range {PSNR_RANGE_HU:.0f} HU")
_MS_SSIM = Quantity(
    "MS-SSIM",
    "",
    f"mean of axial slices, {SSIM_WINDOW_HU[0]:.0f} to {SSIM_WINDOW_HU[1]:.0f} HU, body's box",
)
_GRADIENT_ERROR = Quantity("gradient magnitude error", "HU/mm", "inside the body")
_CORRELATION = Quantity("gradient correlation with the source", "", "inside the body")
_KEPT_NOTE = "kept: at least half the true contrast"
_LARGE_PLAQUES = Quantity("plaques kept", "%", f"2 mm or more; {_KEPT_NOTE}", "plaque")
_LARGE_CONTRAST = Quantity(
    "plaque contrast / true contrast", "%", "2 mm or more", "plaque", of_truth=True
)
_INVENTED = Quantity("invented plaques", "per volume", INVENTED)
_FAT = Quantity("fat, change", "HU", f"mean absolute; {FAT_NOTE}")
_BONE = Quantity("cortical bone, change", "HU", f"mean absolute; {BONE_NOTE}")
_ARTERIES = "aorta and iliac arteries; 130 HU, 1 mm2, slices to 3 mm"
_SCORE = Quantity("Agatston score", "", _ARTERIES, of_truth=True)
_SCORE_ERROR = Quantity("Agatston score, error", "", "absolute")


@dataclass(frozen=True)
class CaseResult:
    """All figures of one case: for every candidate, and for "truth", its quantities.

    subject: whose scan it is; cases of one subject are no independent evidence.
    """

    name: str
    subject: str
    measured: Mapping[str, Measured]


@dataclass(frozen=True)
class _Scene:
    """What every candidate of one case is measured against, on canonical axes."""

    source: Volume
    body: Mask
    organs: Labels | None
    truth: Truth | None
    contrast: bool  # of the source
    case: Case


def measure(
    case: Case,
    source: Volume,
    candidates: Mapping[str, Volume],
    direction: Domain = 1,
    subject: str | None = None,
    contrast_domain: Domain = 2,
) -> CaseResult:
    """Measure every candidate of one case alike, and the truth where it is known.

    candidates: volumes on the source's grid by name, the source itself as "identity" among them.
    direction: the source's domain. contrast_domain: the one with contrast agent.
    Raises CaseError for a truth whose files are missing or lie elsewhere.
    """
    ordered = canonical(source)
    organs = read_organs(case, ordered)
    truth = None if case.truth is None else read_truth(case.truth, ordered)
    contrast = direction == contrast_domain
    scene = _Scene(ordered, body_mask(ordered), organs, truth, contrast, case)
    if not scene.body.any():
        raise CaseError(f"case {case.name}: no voxel of the source is body")
    measured = {name: _measure(canonical(one).hu, scene) for name, one in candidates.items()}
    if truth is not None:
        every = _measure(truth.target, scene)
        measured["truth"] = {q: amount for q, amount in every.items() if q.of_truth}
    return CaseResult(case.name, subject or case.name, measured)


def _measure(hu: HU, scene: _Scene) -> dict[Quantity, Amount]:
    figures: dict[Quantity, Amount] = {}
    if scene.truth is not None:
        figures |= dict(_against_truth(hu, scene, scene.truth))
    if scene.organs is not None:
        figures |= dict(_organ_figures(hu, scene, scene.organs))
    if scene.truth is not None:
        figures |= dict(_plaque_figures(hu, scene, scene.truth))
    figures |= dict(_against_source(hu, scene))
    for region in scene.case.regions:
        figures |= dict(_in_region(hu, scene, region))
    return figures


def _against_truth(hu: HU, scene: _Scene, truth: Truth) -> Iterator[tuple[Quantity, Amount]]:
    body, target = scene.body, truth.target
    yield _BODY_MAE, Amount(body_mae(hu, target, body))
    yield _PSNR, Amount(psnr(hu, target, body))
    yield _MS_SSIM, Amount(ms_ssim(hu, target, body))
    yield _GRADIENT_ERROR, Amount(gradient_error(hu, target, body, scene.source.spacing_mm))


def _organ_figures(hu: HU, scene: _Scene, organs: Labels) -> Iterator[tuple[Quantity, Amount]]:
    """Every organ's HU and, into non-contrast CT, the calcium score; with a truth their errors."""
    target = None if scene.truth is None else scene.truth.target
    wanted = {} if target is None else organ_means(target, organs, ORGANS)
    for organ, mean in organ_means(hu, organs, ORGANS).items():
        yield Quantity(organ, "HU", of_truth=True), Amount(mean)
        if organ in wanted:
            error = abs(mean - wanted[organ])
            yield Quantity(f"{organ}, error", "HU", "absolute"), Amount(error)
    spacing_mm = scene.source.spacing_mm
    arteries = artery_region(organs, spacing_mm) & scene.body
    if scene.contrast and arteries.any():
        score = agatston(hu, arteries, spacing_mm)
        yield _SCORE, Amount(score)
        if target is not None:
            yield _SCORE_ERROR, Amount(abs(score - agatston(target, arteries, spacing_mm)))


def _plaque_figures(hu: HU, scene: _Scene, truth: Truth) -> Iterator[tuple[Quantity, Amount]]:
    spacing_mm = scene.source.spacing_mm
    contrasts = [
        one
        for one in plaque_contrasts(hu, truth.target, truth.plaque_share, truth.plaques, spacing_mm)
        if one.measurable
    ]
    classes = {"": (2.0, np.inf)} | {f", {name}": span for name, span in SIZE_CLASSES.items()}
    for name, (low, high) in classes.items():
        chosen = [one for one in contrasts if low <= one.diameter_mm < high]
        keep, contrast = (
            replace(quantity, name=f"{quantity.name}{name}", note="" if name else quantity.note)
            for quantity in (_LARGE_PLAQUES, _LARGE_CONTRAST)
        )
        yield keep, Amount(100.0 * sum(one.kept for one in chosen), len(chosen))
        yield contrast, Amount(100.0 * sum(one.retention for one in chosen), len(chosen))
    found = invented(
        hu,
        (scene.source.hu, truth.target),
        scene.body,
        spacing_mm,
        from_hu=CALCIUM_HU[False],
        plaque=truth.plaque_share > 0,
    )
    yield _INVENTED, Amount(found)


def _against_source(hu: HU, scene: _Scene) -> Iterator[tuple[Quantity, Amount]]:
    """What needs no truth."""
    source, body, spacing_mm = scene.source.hu, scene.body, scene.source.spacing_mm
    for quantity, tissue in (
        (_FAT, fat(source, body, scene.organs)),
        (_BONE, cortical_bone(source, body, scene.organs)),
    ):
        if tissue.any():
            yield quantity, Amount(body_mae(hu, source, tissue))
    yield _CORRELATION, Amount(gradient_correlation(hu, source, body, spacing_mm))
    if scene.truth is None:
        before, after = CALCIUM_HU[scene.contrast], CALCIUM_HU[not scene.contrast]
        stay, count = kept(hu, source, body, spacing_mm, from_hu=before)
        if count:
            note = f"{SPECK}, of {before:g} HU or more, {RISE_HU:g} more than round them"
            quantity = Quantity("calcium specks kept", "%", note, "speck")
            yield quantity, Amount(100.0 * stay, count)
        note = f"{SPECK}, of {after:g} HU or more, {RISE_HU:g} or more above the source"
        found = invented(hu, (source,), body, spacing_mm, from_hu=after)
        yield Quantity("calcium specks invented", "per volume", note), Amount(found)


def _in_region(hu: HU, scene: _Scene, region: Region) -> Iterator[tuple[Quantity, Amount]]:
    """Mean HU of one region: of the source's calcium, and of all else."""
    source, name = scene.source, f"{scene.case.name}: {region.name}"
    inside = _sphere(region, source)
    if not inside.any():
        raise CaseError(
            f"region {region.name}: centre {region.centre_mm} mm, radius {region.radius_mm} mm "
            f"holds no voxel of the source"
        )
    from_hu = CALCIUM_HU[scene.contrast]
    calcium = inside & (source.hu >= from_hu)
    if not calcium.all(where=inside):
        quantity = Quantity(f"{name}, mean", "HU", "without its calcium")
        yield quantity, Amount(float(hu[inside & ~calcium].mean()))
    if calcium.any():
        mm3 = float(np.count_nonzero(calcium) * np.prod(source.spacing_mm))
        note = f"{mm3:.0f} mm3 of {from_hu:g} HU or more in the source"
        quantity = Quantity(f"{name}, calcium", "HU", note)
        yield quantity, Amount(float(hu[calcium].mean()))
    if scene.contrast:
        quantity = Quantity(f"{name}, Agatston score", "", "130 HU, 1 mm2, slices to 3 mm")
        yield quantity, Amount(agatston(hu, inside, source.spacing_mm))


def _sphere(region: Region, volume: Volume) -> Mask:
    """Voxels whose centres lie in the region, axis by axis: a Volume's are at right angles."""
    from_first = np.array(region.centre_mm) - volume.affine[:3, 3]
    centre = np.linalg.solve(volume.affine[:3, :3], from_first)
    axes = zip(volume.shape, centre, volume.spacing_mm, strict=True)
    z, y, x = np.ix_(*(((np.arange(n) - c) * mm) ** 2 for n, c, mm in axes))
    inside: Mask = z + y + x <= region.radius_mm**2
    return inside
