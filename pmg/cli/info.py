"""`pmg info`"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pmg.cli import refusals

if TYPE_CHECKING:
    from rich.table import Table

    from storage.inventory import Group, Inventory

_MOST_SPACINGS = 6
_BAR = 24  # characters
# HU that the histogram's lines begin with: fine where contrast agent shows.
_LINES = (-974, -774, -574, -374, *range(-174, 326, 50), 326, 726, 1326)


@click.command(name="info")
@click.argument("store", metavar="STORE|RUN")
def command(store: str) -> None:
    """Tell what a store holds: volumes, patients, spacing, HU and size by domain and phase.

    STORE is a folder or s3://bucket/prefix. Reads the catalogue only; `pmg verify` reads all.
    Of a RUN's folder, or its model's: the model's size and what it costs.
    """
    if (Path(store) / "config.yaml").is_file():
        _tell_model(Path(store))
        return
    from rich.console import Console

    from storage.inventory import inventory
    from storage.store import Store

    with refusals():
        opened = Store.open(store)
        found = inventory(opened.rows)
        spacing = opened.spacing_mm
        grid = f"{_spacing(spacing)} mm (z, y, x)" if spacing else "each volume's own"
        line = f"store {opened.place}: {len(opened.rows)} volumes of {found.patients} patients"
        if found.groups:
            line += f", {_size(found.stored_bytes)}, compressed {_ratio(found)} : 1"
        click.echo(line)
        click.echo(f"grid: {grid}")
        console = Console()
        console.print(_groups(found))
        if not spacing and found.groups:
            console.print(_spacings(found))
        if found.groups:
            console.print(_histogram(found))


def _groups(found: Inventory) -> Table:
    from rich.table import Table

    table = Table(
        "domain", "phase", "volumes", "patients", "slices", "HU", "size", "ratio", "origin by"
    )
    for group in found.groups:
        table.add_row(
            str(group.domain),
            group.phase,
            str(group.volumes),
            str(group.patients),
            str(group.slices),
            f"{group.hu_min} to {group.hu_max}",
            _size(group.stored_bytes),
            _ratio(group),
            ", ".join(group.frame_rules),
        )
    return table


def _spacings(found: Inventory) -> Table:
    from rich.table import Table

    table = Table("spacing, mm (z, y, x)", "volumes")
    for spacing, count in found.spacings_mm[:_MOST_SPACINGS]:
        table.add_row(_spacing(spacing), str(count))
    others = found.spacings_mm[_MOST_SPACINGS:]
    if others:
        table.add_row(f"{len(others)} others", str(sum(count for _, count in others)))
    return table


def _histogram(found: Inventory) -> Table:
    """Shares of the voxels; the bars are logarithmic, from 0.01 % on, since most of a CT is air."""
    import numpy as np
    from rich.table import Table

    from storage.catalogue import HU_EDGES

    starts = [0, *np.searchsorted(HU_EDGES, _LINES).tolist()]
    lines = np.add.reduceat(found.hu_counts, starts, axis=1)
    shares = lines / np.maximum(lines.sum(axis=1, keepdims=True), 1)
    table = Table("HU", "domain 1", "", "domain 2", "")
    between = (f"{low} to {high}" for low, high in itertools.pairwise(_LINES))
    names = [f"below {_LINES[0]}", *between, f"{_LINES[-1]} and more"]
    for name, (one, two) in zip(names, shares.T.tolist(), strict=True):
        table.add_row(name, f"{one:.2%}", _bar(one), f"{two:.2%}", _bar(two))
    return table


def _bar(share: float) -> str:
    return "█" * round(_BAR * max(0.0, 1 + math.log10(share) / 4)) if share > 0 else ""


def _spacing(values: tuple[float, float, float]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def _ratio(counted: Group | Inventory) -> str:
    return f"{counted.voxel_bytes / counted.stored_bytes:.2f}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _tell_model(folder: Path) -> None:
    with refusals():
        from pmg.config import load_config
        from pmg.cost import cost_of

        config = load_config(folder / "config.yaml")
        patch = " x ".join(map(str, config.data.patch))
        stack = f" of {config.data.slices} slices" if config.data.slices > 1 else ""
        click.echo(
            f"model {folder}: architecture {config.model.architecture}, patches {patch}{stack}, "
            f"K = {config.prior.components}, C = {config.model.latent_channels}"
        )
        click.echo(str(cost_of(config)))
