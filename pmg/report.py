"""The report of an evaluation: one self-contained HTML page and one PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from pmg.bootstrap import LEVEL, RESAMPLES
from pmg.config import Config
from pmg.figures import WINDOW, Panel, draw_losses, draw_panels, draw_report
from pmg.summary import Row
from pmg.tables import number, shown, span

__all__ = ["write_report"]


def write_report(
    folder: Path,
    *,
    title: str,
    rows: Sequence[Row],
    panels: Sequence[Panel],
    config: Config,
    history: Sequence[Mapping[str, Any]] = (),
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Write report.html and report.png into the folder; returns the page's path.

    history: the records of a run's metrics, for the loss curves. facts: what a reader wants to know
    of the run, by name.
    """
    components = config.prior.components
    folder.mkdir(parents=True, exist_ok=True)
    template = resources.files("pmg").joinpath("report.html.jinja").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True).from_string(template)
    html = page.render(
        title=title,
        rows=rows,
        candidates=shown(rows),
        intervals=f"{100 * LEVEL:.0f} % intervals from {RESAMPLES} draws of the subjects",
        number=number,
        span=span,
        panels=_png(draw_panels(panels, components)),
        losses=_png(draw_losses(history)) if history else None,
        window=WINDOW,
        facts=facts or {},
        config=config.to_yaml(),
    )
    (folder / "report.png").write_bytes(
        base64.b64decode(_png(draw_report(panels, components, history, rows)))
    )
    path = folder / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()
