"""Pictures of an evaluation, by matplotlib: panels of slices, loss curves, the whole report."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pmg.summary import Row
from pmg.tables import number, shown
from pmg.translate import GridSlice

__all__ = ["WINDOW", "Panel", "draw_losses", "draw_panels", "draw_report"]

_LEVEL_HU, _WIDTH_HU = 60.0, 400.0  # a soft-tissue window wide enough for contrast
_ERROR_HU = 100.0
_AIR_BELOW_HU = -300.0
_NOTE_LENGTH = 64
_WIDTH_INCH = 12.5
_COLUMN_INCH = 2.25  # of five, beside the error's colour bar
WINDOW = f"level {_LEVEL_HU:.0f}, width {_WIDTH_HU:.0f} HU"
_TERMS = (
    ("reconstruction", ("vae1.reconstruction", "vae2.reconstruction")),
    ("cycle", ("cycle1.reconstruction", "cycle2.reconstruction")),
    ("KL, nats per channel", ("vae1.kl", "vae2.kl")),
    ("adversarial, G", ("gan1.generator", "gan2.generator")),
    ("adversarial, D", ("gan1.discriminator", "gan2.discriminator")),
    ("effective components", ("prior.effective_components",)),
)


@dataclass(frozen=True)
class Panel:
    """One slice of one case."""

    title: str
    slice: GridSlice


def draw_panels(panels: Sequence[Panel], components: int) -> Figure:
    """Rows of source, translation, truth, error and responsibilities."""
    figure = Figure(figsize=(_WIDTH_INCH, sum(_heights(panels))), layout="constrained")
    _fill_panels(figure, panels, components)
    return figure


def draw_losses(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Every kind of loss term over the steps, one axis each."""
    figure = Figure(figsize=(_WIDTH_INCH, 4.2), layout="constrained")
    _fill_losses(figure, history)
    return figure


def draw_report(
    panels: Sequence[Panel],
    components: int,
    history: Sequence[Mapping[str, Any]],
    rows: Sequence[Row],
) -> Figure:
    """Everything on one sheet, for a README: panels, curves and table."""
    heights = [sum(_heights(panels)), 3.6 if history else 0.01, 0.5 + 0.26 * len(rows)]
    figure = Figure(figsize=(_WIDTH_INCH, sum(heights)), layout="constrained")
    parts: Any = figure.subfigures(3, 1, height_ratios=heights)
    top, middle, bottom = parts
    _fill_panels(top, panels, components)
    if history:
        _fill_losses(middle, history)
    _fill_table(bottom.subplots(), rows)
    return figure


def _fill_panels(figure: Any, panels: Sequence[Panel], components: int) -> None:
    error = "translation - source" if panels[0].slice.truth is None else "translation - truth"
    titles = ("source", "translation", "truth", f"{error}, HU", "responsibilities")
    axes = figure.subplots(len(panels), len(titles), squeeze=False, height_ratios=_heights(panels))
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    for row, panel in zip(axes, panels, strict=True):
        view = panel.slice
        for axis in row:
            axis.set_axis_off()
        part = _body_box(view.source)
        row[0].text(
            -0.03,
            0.5,
            panel.title,
            transform=row[0].transAxes,
            rotation=90,
            va="center",
            ha="right",
            fontsize=8,
        )
        _show(row[0], view.source[part])
        _show(row[1], view.translation[part])
        if view.truth is None:
            row[2].text(0.5, 0.5, "not known", ha="center", transform=row[2].transAxes)
            change = view.translation - view.source
        else:
            _show(row[2], view.truth[part])
            change = view.translation - view.truth
        image = row[3].imshow(change[part], cmap="RdBu_r", vmin=-_ERROR_HU, vmax=_ERROR_HU)
        figure.colorbar(image, ax=row[3], shrink=0.7)
        row[4].imshow(
            view.tissue[part],
            cmap=mpl.colormaps["turbo"].resampled(components),
            vmin=-0.5,
            vmax=components - 0.5,
            interpolation="nearest",
        )


def _heights(panels: Sequence[Panel]) -> list[float]:
    """Inches that each row needs, which is as high as the body is in a column of the figure."""
    boxes = (panel.slice.source[_body_box(panel.slice.source)].shape for panel in panels)
    return [_COLUMN_INCH * rows / columns + 0.25 for rows, columns in boxes]


def _body_box(hu: NDArray[np.floating], margin: int = 4) -> tuple[slice, slice]:
    """Rows and columns that hold more than air, with a margin."""
    box = []
    for axis in (0, 1):
        inside = np.flatnonzero((hu > _AIR_BELOW_HU).any(axis=1 - axis))
        low, high = (inside[0], inside[-1]) if len(inside) else (0, hu.shape[axis])
        box.append(slice(max(int(low) - margin, 0), int(high) + margin + 1))
    return box[0], box[1]


def _show(axis: Axes, hu: NDArray[np.floating]) -> None:
    axis.imshow(hu, cmap="gray", vmin=_LEVEL_HU - _WIDTH_HU / 2, vmax=_LEVEL_HU + _WIDTH_HU / 2)


def _fill_losses(figure: Any, history: Sequence[Mapping[str, Any]]) -> None:
    steps = [record["step"] for record in history]
    for axis, (title, names) in zip(figure.subplots(2, 3).flat, _TERMS, strict=True):
        for name in names:
            if name not in history[0]:  # CycleGAN has no VAE's terms
                continue
            axis.plot(steps, [record[name] for record in history], label=name, linewidth=1)
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend(fontsize=6)


def _fill_table(axis: Axes, rows: Sequence[Row]) -> None:
    axis.set_axis_off()
    if not rows:
        return
    candidates = shown(rows)
    cells = [
        [
            row.name,
            row.unit,
            *(number(getattr(row, name)) for name in (*candidates, "truth")),
            textwrap.shorten(row.note, _NOTE_LENGTH, placeholder=" ..."),
        ]
        for row in rows
    ]
    table = axis.table(
        cells,
        colLabels=["", "unit", *candidates.values(), "truth", ""],
        colWidths=[0.22, 0.07, *(0.09 for _ in candidates), 0.06, 0.65 - 0.09 * len(candidates)],
        cellLoc="left",
        loc="center",
        edges="horizontal",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8)
