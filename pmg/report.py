"""The report of an evaluation: one self-contained HTML page, one PNG, and the figures as JSON."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from pmg.config import Config
from pmg.figures import WINDOW, Panel, draw_losses, draw_panels, draw_report
from pmg.summary import Row

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
    """Write report.html, report.png and metrics.json into the folder; returns the page's path.

    history: the records of a run's metrics, for the loss curves. facts: what a reader wants to know
    of the run, by name.
    """
    components = config.prior.components
    folder.mkdir(parents=True, exist_ok=True)
    template = resources.files("pmg").joinpath("report.html.jinja").read_text()
    page = jinja2.Environment(autoescape=True).from_string(template)
    html = page.render(
        title=title,
        rows=rows,
        panels=_png(draw_panels(panels, components)),
        losses=_png(draw_losses(history)) if history else None,
        window=WINDOW,
        facts=facts or {},
        config=config.to_yaml(),
    )
    (folder / "report.png").write_bytes(
        base64.b64decode(_png(draw_report(panels, components, history, rows)))
    )
    (folder / "metrics.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    path = folder / "report.html"
    path.write_text(html)
    return path


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()
