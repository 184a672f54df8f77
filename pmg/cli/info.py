"""`pmg info`"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import click

from pmg.cli import refusals
from pmg.cli.options import FOLDER


@click.command(name="info")
@click.argument("store", metavar="STORE|RUN", type=FOLDER)
@click.option("--verify", is_flag=True, help="read every volume and compare its digest")
def command(store: Path, verify: bool) -> None:
    """Tell what a store holds: volumes, patients, sizes and HU by domain and phase.

    Of a run's folder, or its model's: the model's size and what it costs.
    """
    if (store / "config.yaml").is_file():
        _tell_model(store)
        return

    from rich.console import Console
    from rich.table import Table

    from storage.store import Store

    with refusals():
        opened = Store.open(store)
        groups = defaultdict(list)
        for row in opened.rows:
            groups[row.domain, row.phase].append(row)
        spacing = opened.spacing_mm
        grid = f"{spacing} mm (z, y, x)" if spacing else "each volume's own"
        click.echo(f"store {store}: {len(opened.rows)} volumes, grid: {grid}")
        table = Table("domain", "phase", "volumes", "patients", "slices", "HU", "frame origin by")
        for (domain, phase), rows in sorted(groups.items()):
            table.add_row(
                str(domain),
                phase,
                str(len(rows)),
                str(len({row.patient for row in rows})),
                str(sum(row.shape[0] for row in rows)),
                f"{min(row.hu_min for row in rows)} to {max(row.hu_max for row in rows)}",
                ", ".join(sorted({row.frame_rule for row in rows})),
            )
        Console().print(table)
        if verify:
            problems = opened.verify()
            for problem in problems:
                click.echo(problem, err=True)
            if problems:
                raise click.ClickException(f"{len(problems)} of the store's volumes are damaged")
            click.echo("every volume has its digest")


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
