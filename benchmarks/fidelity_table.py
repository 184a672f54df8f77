"""The table and the figure of `benchmarks.fidelity`, from the runs that are finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.fidelity_run import CROPS, read_result

__all__ = ["Column", "read_columns", "table", "verdict", "write_figure"]

# Of the rows of `pmg evaluate`, in this order; +: more is better, -: less.
_ROWS = {
    "body MAE": "-",
    "PSNR": "+",
    "MS-SSIM": "+",
    "gradient magnitude error": "-",
    "plaques kept": "+",
    "plaques kept, 1-2 mm": "+",
    "plaques kept, 2-4 mm": "+",
    "plaques kept, > 4 mm": "+",
    "plaque contrast / true contrast": "",
    "plaque contrast / true contrast, 1-2 mm": "",
    "plaque contrast / true contrast, 2-4 mm": "",
    "plaque contrast / true contrast, > 4 mm": "",
    "invented plaques": "-",
    "fat, change": "-",
    "cortical bone, change": "-",
    "aorta, error": "-",
    "liver, error": "-",
    "kidney, error": "-",
    "spleen, error": "-",
    "pancreas, error": "-",
    "vena cava, error": "-",
    "portal vein, error": "-",
    "muscle, error": "-",
    "bone, error": "-",
}
_FAMILY = "pmg-k"
_FACTS = {
    "steps": "steps",
    "voxels": "voxels of either domain",
    "train_s": "training, s",
    "train_cpu_s": "training, CPU s",
}


@dataclass(frozen=True)
class Column:
    """A contender's finished runs, one a seed."""

    title: str
    runs: tuple[Mapping[str, Mapping[str, object]], ...]

    def values(self, row: str) -> list[float]:
        figures = [run["figures"] for run in self.runs]
        return [float(f[row]["value"]) for f in figures if row in f]  # type: ignore[index]

    def facts(self, name: str) -> list[float]:
        return [float(run["facts"][name]) for run in self.runs if name in run["facts"]]  # type: ignore[arg-type]


def read_columns(contenders: Mapping[str, tuple[str, Sequence[Path]]]) -> dict[str, Column]:
    """Of every contender, by name its title and its runs' folders, what is finished."""
    columns = {}
    for name, (title, folders) in contenders.items():
        runs = tuple(r for r in map(read_result, folders) if r is not None)
        if runs:
            columns[name] = Column(title, runs)
    return columns


def table(columns: Sequence[Column]) -> str:
    """Markdown: mean and, in brackets, the spread over seeds as lowest to highest."""
    lines = [
        "| | | " + " | ".join(column.title for column in columns) + " |",
        "|---" * (2 + len(columns)) + "|",
    ]
    units = {
        name: str(figure["unit"])
        for column in columns
        for run in column.runs
        for name, figure in run["figures"].items()  # type: ignore[union-attr]
    }
    for row, better in _ROWS.items():
        if row in units:
            sign = {"-": "less is better", "+": "more is better", "": "100 is right"}[better]
            cells = " | ".join(_cell(column.values(row)) for column in columns)
            lines.append(f"| {row} | {units[row]}, {sign} | {cells} |".replace("| , ", "| "))
    for name, title in _FACTS.items():
        lines.append(f"| {title} | | " + " | ".join(_cell(c.facts(name)) for c in columns) + " |")
    lines.append("| seeds | | " + " | ".join(str(len(c.runs)) for c in columns) + " |")
    return "\n".join(lines) + "\n"


def verdict(columns: Mapping[str, Column], ours: str) -> str:
    """What is asked of `ours`, line by line, and whether it holds; of what is finished.

    "apart": no run of one lies among the runs of the other.
    """
    lines = []
    mine = columns.get(ours)
    if mine is None:
        return ""
    mae = float(np.mean(mine.values("body MAE")))
    if "identity" in columns:
        (before,) = columns["identity"].values("body MAE")
        lines.append(_line("body MAE below identity's", 100 * (1 - mae / before), 40, "%"))
    if "unit" in columns:
        unit = columns["unit"]
        recall, other = (float(np.mean(c.values("plaques kept"))) for c in (mine, unit))
        least = min(15.0, max(0.0, 95 - other))
        lines.append(_line("plaques kept, above UNIT's", recall - other, least, "points"))
        less = 100 * (1 - mae / float(np.mean(unit.values("body MAE"))))
        lines.append(_line("body MAE below UNIT's", less, 15, "%"))
        fewer = _fewer(unit, mine, "invented plaques")
        lines.append(_line("invented plaques fewer than UNIT's", fewer, 0, "per volume"))
    for name in [n for n in columns if n in ("cyclegan", "whole-slice") or n == f"{_FAMILY}1"]:
        worse, better = [], []
        for row, sign in _ROWS.items():
            a, b = mine.values(row), columns[name].values(row)
            if not (sign and a and b):
                continue
            a, b = ([-v for v in values] if sign == "-" else values for values in (a, b))
            if np.mean(a) < np.mean(b):
                worse.append(f"{row}{' (apart)' if max(a) < min(b) else ''}")
            elif np.mean(a) > np.mean(b):
                better.append(row)
        lines.append(
            f"- against {columns[name].title}: better in {len(better)} rows, "
            f"worse in {', '.join(worse) or 'none'}"
        )
    return f"{mine.title}:\n\n" + "\n".join(lines) + "\n"


def _line(what: str, value: float, least: float, unit: str) -> str:
    holds = "holds" if value >= least else "missed"
    return f"- {what}: {value:.1f} {unit}, asked {least:.1f}: {holds}"


def _fewer(other: Column, mine: Column, row: str) -> float:
    return float(np.mean(other.values(row)) - np.mean(mine.values(row)))


def write_figure(path: Path, rows: Sequence[tuple[str, Path]]) -> None:
    """One row a plaque, one column a folder with crops: what becomes of it."""
    crops = [(title, dict(np.load(folder / CROPS))) for title, folder in rows]
    names = list(crops[0][1])
    figure = Figure(figsize=(1.5 * len(crops), 1.65 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), len(crops), squeeze=False)
    for axis, (title, _) in zip(axes[0], crops, strict=True):
        axis.set_title(title, fontsize=8)
    for row, name in zip(axes, names, strict=True):
        for axis, (_, images) in zip(row, crops, strict=True):
            axis.imshow(images[name], cmap="gray", vmin=-140, vmax=360, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(name, fontsize=7)
    figure.savefig(path, dpi=110)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = _digits(float(np.mean(values)))
    if len(values) == 1 or min(values) == max(values):
        return mean
    return f"{mean} ({_digits(min(values))} to {_digits(max(values))})"


def _digits(value: float) -> str:
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
