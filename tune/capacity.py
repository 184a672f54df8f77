"""How many trials fit a cluster at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from tune.config import ResourcesConfig

__all__ = ["CapacityError", "trials_at_once"]

_SLACK = 1e-6  # of fractions: ten times 0.1 GPU are one


class CapacityError(RuntimeError):
    """A cluster that can't run even one trial."""


def trials_at_once(nodes: Iterable[Mapping[str, float]], took: ResourcesConfig) -> int:
    """Trials whose workers all have a place on the nodes, `resources.most_at_once` at most.

    nodes: each one's resources, as Ray names them. A worker lies on one node, and a GPU's share on
    one GPU: what is left over on several of them is no place. Raises CapacityError if there is
    none for one trial.
    """
    nodes = list(nodes)
    places = sum(_places(node, took) for node in nodes)
    trials = places // took.workers
    if trials < 1:
        raise CapacityError(
            f"resources: a trial takes {took.workers} x ({took.cpus_per_worker:g} CPU, "
            f"{took.gpus_per_worker:g} GPU); the cluster's nodes have "
            + ", ".join(f"{n.get('CPU', 0):g} CPU, {n.get('GPU', 0):g} GPU" for n in nodes)
        )
    return min(trials, took.most_at_once or trials)


def _places(node: Mapping[str, float], took: ResourcesConfig) -> int:
    cpus = math.floor(node.get("CPU", 0) / took.cpus_per_worker + _SLACK)
    if not took.gpus_per_worker:
        return cpus
    gpus = node.get("GPU", 0)
    share = took.gpus_per_worker
    if share < 1:
        return min(cpus, math.floor(gpus) * math.floor(1 / share + _SLACK))
    return min(cpus, math.floor(gpus / share + _SLACK))
