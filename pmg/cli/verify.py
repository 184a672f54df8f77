"""`pmg verify`"""

from __future__ import annotations

import os

import click

from pmg.cli import refusals
from pmg.cli.options import store_argument


@click.command(name="verify")
@store_argument
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=os.cpu_count() or 1,
    show_default="one per core",
    help="volumes read at a time; each is in memory as a whole",
)
def command(store: str, threads: int) -> None:
    """Read every volume of a store and compare it with its BLAKE3 in the catalogue.

    STORE is a folder or s3://bucket/prefix. Ends with 1, and one line for each, when volumes are
    damaged or missing: ingest their series again.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from storage.store import Store

    with refusals():
        opened = Store.open(store)
        console = Console(stderr=True)
        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("verify", total=len(opened.rows))
            problems = opened.verify(threads, lambda done, _: bar.update(task, completed=done))
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        raise click.ClickException(
            f"{opened.place}: {len(problems)} of {len(opened.rows)} volumes are damaged"
        )
    click.echo(f"{opened.place}: all {len(opened.rows)} volumes have their BLAKE3")
