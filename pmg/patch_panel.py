"""A picture of a few training patches: source, translation, cycle, and what tissue it is taken for.

What a run shows of itself while it trains; whole volumes are `pmg.figures`'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pmg.model import Domain, Translator, other
from pmg.prior import responsibilities
from pmg.step import Pair
from pmg.window import Window

__all__ = ["PatchView", "look", "tissue_colours", "write_panel"]

_LEVEL_HU, _WIDTH_HU = 60.0, 400.0
_DOMAINS: tuple[Domain, Domain] = (1, 2)


@dataclass(frozen=True)
class PatchView:
    """The middle slice of one patch.

    source, translation, cycle: [h, w] HU; shares: [K, h', w'] responsibilities, at the latent's
    resolution.
    """

    domain: Domain
    source: NDArray[np.float32]
    translation: NDArray[np.float32]
    cycle: NDArray[np.float32]
    shares: NDArray[np.float32]


@torch.no_grad()
def look(model: Translator, pair: Pair, window: Window, count: int = 2) -> list[PatchView]:
    """The first patches of both domains through the model and back, without noise."""
    views = []
    for i in _DOMAINS:
        where = pair.where[i]
        translated, q = model.translate(i, pair.x[i], where)
        cycled, _ = model.translate(other(i), translated, where)
        shares = responsibilities(q.mean, q.log_var, model.prior.mixture())
        for n in range(min(count, len(pair.x[i]))):
            source, translation, cycle = (
                _middle(window.to_hu(x[n])) for x in (pair.x[i], translated, cycled)
            )
            tissue = shares[n] if shares.dim() == 4 else shares[n, :, shares.shape[2] // 2]
            views.append(PatchView(i, source, translation, cycle, tissue.float().cpu().numpy()))
    return views


def tissue_colours(shares: NDArray[np.floating]) -> NDArray[np.float64]:
    """[K, h, w] responsibilities as a picture [h, w, 3]: every component's colour by its share."""
    components = len(shares)
    palette = mpl.colormaps["turbo"](np.linspace(0.05, 0.95, components))[:, :3]
    picture: NDArray[np.float64] = np.einsum("khw,kc->hwc", shares, palette)
    return picture.clip(0, 1)


def write_panel(views: Sequence[PatchView], path: Path, title: str) -> None:
    """A PNG with one row a patch; complete or absent."""
    columns = ("source", "translation", "cycle", "responsibilities")
    figure = Figure(figsize=(8.4, 2.1 * len(views) + 0.5), layout="constrained")
    figure.suptitle(f"{title}; level {_LEVEL_HU:g}, width {_WIDTH_HU:g} HU", fontsize=9)
    axes = figure.subplots(len(views), len(columns), squeeze=False)
    for axis, name in zip(axes[0], columns, strict=True):
        axis.set_title(name, fontsize=9)
    low, high = _LEVEL_HU - _WIDTH_HU / 2, _LEVEL_HU + _WIDTH_HU / 2
    for row, view in zip(axes, views, strict=True):
        for axis, hu in zip(row, (view.source, view.translation, view.cycle), strict=False):
            axis.imshow(hu, cmap="gray", vmin=low, vmax=high)
        row[3].imshow(tissue_colours(view.shares), interpolation="nearest")
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(f"domain {view.domain}", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    figure.savefig(partial, format="png", dpi=90)
    partial.rename(path)


def _middle(patch: Tensor) -> NDArray[np.float32]:
    """[1, d, h, w] of 3D, [N, h, w] of 2D and 2.5D: the slice in the middle."""
    slices = patch.flatten(0, -3)
    middle: NDArray[np.float32] = slices[len(slices) // 2].float().cpu().numpy()
    return middle
