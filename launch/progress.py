"""The driver's view of a run: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from launch.run_folder import RunFolder

__all__ = ["follow"]


def follow(
    folder: RunFolder,
    steps: int,
    running: Callable[[], bool],
    console: Console,
    poll_s: float = 0.5,
) -> None:
    """Show the run's metrics as they are written, until `running()` is false."""
    columns = (
        TextColumn("[bold]train"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    shown = -1
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("train", total=steps, note="starting workers")
        while True:
            alive = running()
            for record in folder.read_metrics():
                if record["step"] > shown:
                    shown = record["step"]
                    bar.update(task, completed=shown, note=_note(record))
                    if not console.is_terminal:
                        left = (steps - shown) / record["steps_per_s"]
                        console.print(
                            f"step {shown}/{steps}  {_note(record)}  {left / 60:.1f} min left",
                            soft_wrap=True,
                        )
            if not alive:
                return
            time.sleep(poll_s)


def _note(record: dict[str, Any]) -> str:
    def both(term: str) -> str:
        group, name = term.split(".")
        return f"{(record[f'{group}1.{name}'] + record[f'{group}2.{name}']) / 2:.3f}"

    return (
        f"{record['steps_per_s']:.2f} steps/s  data wait {record['data_wait']:.0%}  "
        f"rec {both('vae.reconstruction')}  cycle {both('cycle.reconstruction')}  "
        f"kl {both('vae.kl')}  G {both('gan.generator')}  D {both('gan.discriminator')}  "
        f"K_eff {record['prior.effective_components']:.1f}"
    )
