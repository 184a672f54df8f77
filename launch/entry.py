"""Where Ray enters a worker's process; imports nothing that training there does not need.

Ray sends its function by the name of its module, which every worker then imports: the driver's
own, with its reports, would cost each start and each recovery a second of every worker.
"""

from __future__ import annotations

import os
from typing import Any

from launch.laps import Laps

__all__ = ["enter"]


def enter(arguments: dict[str, Any]) -> None:
    """`launch.worker.train_worker`, after what DeepSpeed reads when it is imported was set."""
    if not arguments["config"]["launch"]["gpus_per_worker"]:
        os.environ["DS_ACCELERATOR"] = "cpu"
    laps = Laps(arguments["asked_unix_s"])
    with laps.of("imports"):
        from launch.worker import train_worker  # noqa: PLC0415  DeepSpeed is for workers alone

    train_worker(arguments, laps)
