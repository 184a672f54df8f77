"""The driver's view of a run: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

__all__ = ["follow"]


def follow(
    new: Callable[[], list[dict[str, Any]]],
    steps: int,
    running: Callable[[], bool],
    console: Console,
    poll_s: float = 0.5,
) -> None:
    """Show what `new()` gives, the metrics since the last call, until `running()` is false."""
    with ExitStack() as stack:
        bar: Live | None = None
        if console.is_terminal:
            start = _bar(0, steps, "starting workers", "")
            bar = stack.enter_context(Live(start, console=console, auto_refresh=False))
        shown = 0
        while True:
            alive = running()
            for record in new():
                step, pace, losses = record["step"], _pace(record, steps), _losses(record)
                if step <= shown:
                    console.print(f"workers restarted: went on from a checkpoint before {step}")
                shown = step
                if bar is not None:
                    bar.update(_bar(step, steps, pace, losses), refresh=True)
                else:
                    console.print(f"step {step}/{steps}  {pace}  {losses}", soft_wrap=True)
            if not alive:
                return
            time.sleep(poll_s)


def _bar(step: int, steps: int, pace: str, losses: str) -> Group:
    """Three lines, which 80 columns hold."""
    first = Table.grid(padding=(0, 1))
    first.add_row("[bold]train", ProgressBar(steps, step, width=40), f"{step}/{steps}")
    return Group(first, Text(pace), Text(losses, style="dim"))


def _pace(record: dict[str, Any], steps: int) -> str:
    rate = record["steps_per_s"]
    left = _clock((steps - record["step"]) / rate)
    memory = record["memory_bytes"] / 2**30
    skipped = f"  {record['skipped']} skipped" if record.get("skipped") else ""
    return (
        f"{left} left  {rate:.2f} steps/s  {record['images_per_s']:.1f} images/s  "
        f"wait {record['data_wait']:.0%}  {memory:.1f} GiB{skipped}"
    )


def _losses(record: dict[str, Any]) -> str:
    """The terms, each averaged over the two domains; CycleGAN has no VAE's."""

    def both(term: str) -> float | None:
        group, name = term.split(".")
        if f"{group}1.{name}" not in record:
            return None
        return float(record[f"{group}1.{name}"] + record[f"{group}2.{name}"]) / 2

    shown = {
        "rec": both("vae.reconstruction"),
        "cycle": both("cycle.reconstruction"),
        "kl": both("vae.kl"),
        "G": both("gan.generator"),
        "D": both("gan.discriminator"),
    }
    losses = [f"{name} {value:.3f}" for name, value in shown.items() if value is not None]
    return "  ".join([*losses, f"K_eff {record['prior.effective_components']:.1f}"])


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
