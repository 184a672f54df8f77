"""The panel image: one held-out slice as the best trials translate it, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from pmg.translate import GridSlice, VolumeTranslator
from storage.volume import Volume

__all__ = ["Shown", "draw_side_by_side", "slice_of"]

_LEVEL_HU, _WIDTH_HU = 60.0, 400.0
_CHANGE_HU = 150.0


@dataclass(frozen=True)
class Shown:
    """What one trial makes of the slice."""

    title: str
    slice: GridSlice


def slice_of(run: Path, volume: Volume, domain: int, z_mm: float) -> GridSlice:
    """The slice at z_mm (LPS) by the model in a trial's folder."""
    return VolumeTranslator.open(run, domain, "cpu").slice(volume, z_mm)


def draw_side_by_side(shown: Sequence[Shown]) -> Figure:
    """Rows of translation, change and tissue; a column for the source and one for each trial."""
    columns = len(shown) + 1
    figure = Figure(figsize=(2.6 * columns, 7.6), layout="constrained")
    axes = figure.subplots(3, columns, squeeze=False)
    low, high = _LEVEL_HU - _WIDTH_HU / 2, _LEVEL_HU + _WIDTH_HU / 2
    for axis in axes.flat:
        axis.set_axis_off()
    axes[0, 0].imshow(shown[0].slice.source, cmap="gray", vmin=low, vmax=high)
    axes[0, 0].set_title("source", fontsize=9)
    for text, axis in zip(("change, HU", "tissue"), axes[1:, 0], strict=True):
        axis.text(0.5, 0.5, text, ha="center", transform=axis.transAxes, fontsize=9)
    for column, one in enumerate(shown, start=1):
        view = one.slice
        axes[0, column].imshow(view.translation, cmap="gray", vmin=low, vmax=high)
        axes[0, column].set_title(one.title, fontsize=9)
        change = view.translation - view.source
        image = axes[1, column].imshow(change, cmap="RdBu_r", vmin=-_CHANGE_HU, vmax=_CHANGE_HU)
        axes[2, column].imshow(view.tissue, cmap="turbo", interpolation="nearest")
    figure.colorbar(image, ax=axes[1, :].tolist(), shrink=0.7)
    return figure
