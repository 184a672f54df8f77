"""`pmg tune`"""

from __future__ import annotations

from pathlib import Path

import click

from pmg.cli import refusals
from pmg.cli.options import OUT_FOLDER

__all__ = ["command"]


@click.group(name="tune")
def command() -> None:
    """Search the mixture's size, the loss weights and any other setting."""


@command.command(name="search")
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    required=True,
    help="a YAML file; docs/tune.yaml is one to start from",
)
@click.option("--out", type=OUT_FOLDER, required=True, help="folder of the search")
@click.option("--resume", is_flag=True, help="go on with the search in that folder")
def search_command(file: Path, out: Path, resume: bool) -> None:
    """Search a space with Ray Tune and Optuna, retrain the best, write best.yaml.

    Every trial is a training with workers of its own. Whatever was killed, --resume goes on:
    finished trials are not run again, the others continue from their checkpoints.
    """
    with refusals():
        from tune.config import load_search

        config = load_search(file)

        from tune.search import search

        search(config, out, resume=resume)
    click.echo(f"next: pmg tune report {out}")


@command.command(name="report")
@click.argument("where", metavar="STUDY")
@click.option("--study", "name", help="its name, where the storage holds several")
@click.option(
    "--out", type=OUT_FOLDER, help="folder to write; the search's own if STUDY is a folder"
)
def report_command(where: str, name: str | None, out: Path | None) -> None:
    """Write one HTML page on a study, and best.yaml.

    STUDY is the folder of a search, its journal, or the URL of its database.
    """
    with refusals():
        from tune.report import write_report

        if out is None:
            if not Path(where).is_dir():
                raise click.UsageError("--out: expected, since STUDY is no folder")
            out = Path(where)
        page, best = write_report(where, out, name)
    click.echo(f"report: {page}")
    if best is not None:
        click.echo(f"next: pmg train --config {best} --run RUN")
