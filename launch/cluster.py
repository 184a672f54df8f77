"""Which Ray cluster a run uses: one given, the one that a Ray job runs in, or one of its own."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from launch.access import refuse_shared_token
from pmg.config import LaunchConfig

__all__ = ["cluster"]

# The workers exchange tensors by gloo or NCCL, not through Ray's object store.
_OBJECT_STORE_BYTES = 200 * 1024**2


@contextmanager
def cluster(launch: LaunchConfig) -> Iterator[None]:
    """Ray, initialised: the cluster at launch.address or RAY_ADDRESS, else one on this machine.

    A Ray job finds RAY_ADDRESS set to its own cluster. What is started here ends with the context;
    an initialised Ray is used as it is, and left so. Raises AccessError if others can read the
    cluster's token.
    """
    if ray.is_initialized():
        yield
        return
    address = launch.address or os.environ.get("RAY_ADDRESS")
    refuse_shared_token()
    ray.init(
        log_to_driver=False,
        logging_level="error",
        **({"address": address} if address else _own(launch)),
    )
    try:
        yield
    finally:
        ray.shutdown()


def _own(launch: LaunchConfig) -> dict[str, Any]:
    """Settings of a cluster on this machine, for this run alone."""
    # ray.init turns token authentication on where RAY_AUTH_MODE is not set; setting it here would
    # tell its children and not this process, which looked when Ray was imported.
    # Ray would write a token that everybody on the machine can read into the home directory.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Nobody takes this machine away: one process less.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    return {
        "address": "local",  # None would join whatever cluster was started here last
        # As many as asked for, on however few cores: a laptop can run what a cluster will.
        "num_cpus": max(os.cpu_count() or 1, int(launch.workers * launch.cpus_per_worker)),
        "object_store_memory": _OBJECT_STORE_BYTES,
        "dashboard_host": "127.0.0.1",
        "include_dashboard": True,  # without it Ray Train 2.60 warns every second
    }
