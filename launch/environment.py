"""Where a run ran: versions, hardware, code; without the names of machines, users or folders."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

__all__ = ["describe"]

_PACKAGES = ("pmg", "torch", "deepspeed", "ray", "numpy", "zarr", "obstore", "safetensors")


def describe(step: int) -> dict[str, Any]:
    """This start of the run; all ranks must call, and get the same.

    step: the one that it goes on from. Workers alike are counted, not listed.
    """
    ranks: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(ranks, _hardware())
    return {
        "started_unix_s": time.time(),
        "from_step": step,
        "backend": dist.get_backend(),
        "workers": {one: ranks.count(one) for one in dict.fromkeys(ranks)},
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cuda": torch.version.cuda,
        "code": _commit(),
    }


def _hardware() -> str:
    gib = psutil.virtual_memory().total / 2**30
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {gib:.0f} GiB"
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(torch.cuda.current_device())
        return f"{card.name}, {card.total_memory / 2**30:.0f} GiB; {machine}"
    return machine


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that this file is part of; None where it was installed."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+changes"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
