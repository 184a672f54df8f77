"""How many trials fit a cluster at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from launch.room import make_room, places
from tune.config import ResourcesConfig

__all__ = ["CapacityError", "make_room_for_trials", "trials_at_once"]


class CapacityError(RuntimeError):
    """A cluster that can't run even one trial."""


def trials_at_once(nodes: Iterable[Mapping[str, float]], took: ResourcesConfig) -> int:
    """Trials whose workers all have a place on the nodes, `resources.most_at_once` at most.

    nodes: each one's resources, as Ray names them. A worker lies on one node, and a GPU's share on
    one GPU: what is left over on several of them is no place. Raises CapacityError if there is
    none for one trial.
    """
    nodes = list(nodes)
    trials = places(nodes, _needs(took)) // took.workers
    if trials < 1:
        raise CapacityError(
            f"resources: a trial takes {took.workers} x ({took.cpus_per_worker:g} CPU, "
            f"{took.gpus_per_worker:g} GPU); the cluster's nodes have "
            + ", ".join(f"{n.get('CPU', 0):g} CPU, {n.get('GPU', 0):g} GPU" for n in nodes)
        )
    return min(trials, took.most_at_once or trials)


def make_room_for_trials(took: ResourcesConfig) -> None:
    """Have a cluster that scales itself grow for `resources.most_at_once` trials, or for one."""
    wanted = took.workers * (took.most_at_once or 1)
    make_room(_needs(took), wanted, least=took.workers)


def _needs(took: ResourcesConfig) -> dict[str, float]:
    needs = {"CPU": took.cpus_per_worker, "GPU": took.gpus_per_worker}
    return {name: need for name, need in needs.items() if need}
