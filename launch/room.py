"""Room on a cluster for work before it starts, asked of the cluster's autoscaler where it is small.

A cluster that scales itself may show a head without a core: what it could have, nobody but its
autoscaler knows. So it is asked for nodes, and says if its groups can never have them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping

import click
import ray
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
from ray.experimental.internal_kv import internal_kv_get_gcs_client

__all__ = ["living_nodes", "make_room", "places"]

_SLACK = 1e-6  # of fractions: ten times 0.1 GPU are one
_POLL_S = 1.0
_PATIENCE_S = 300.0  # a cloud that has no more GPUs says nothing

Resources = Mapping[str, float]


def places(nodes: Iterable[Resources], needs: Resources) -> int:
    """How many times `needs` fit on the nodes, each on one node and a share of a GPU on one GPU.

    needs: positive amounts by Ray's names, such as CPU, GPU and memory (in bytes).
    """
    return sum(min(_fit(node, name, need) for name, need in needs.items()) for node in nodes)


def _fit(node: Resources, name: str, need: float) -> int:
    there = node.get(name, 0)
    if name == "GPU" and need < 1:
        return math.floor(there) * math.floor(1 / need + _SLACK)
    return math.floor(there / need + _SLACK)


def living_nodes() -> list[dict[str, float]]:
    """Each node's resources; Ray must be running."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def make_room(needs: Resources, wanted: int, *, least: int = 1) -> None:
    """Have a cluster that scales itself bring nodes with `wanted` places for `needs`, and wait.

    For fewer, down to `least`, where its groups may not grow so far or no more nodes come for five
    minutes; for none where they can't have that either. Returns at once where there is room, or the
    cluster is of a fixed size. Ray must be running. What was asked for is taken back: idle nodes go
    again after the autoscaler's time.
    """
    room = places(living_nodes(), needs)
    if room >= wanted or not is_autoscaler_v2():
        return
    click.echo(f"waiting for the cluster to grow: {wanted} x {_text(needs)}", err=True)
    grown_s = time.monotonic()
    try:
        while room < wanted and not (room >= least and time.monotonic() - grown_s > _PATIENCE_S):
            # Again each time: the request is one for the whole cluster, and others may replace it.
            request_resources(bundles=[dict(needs)] * wanted)
            time.sleep(_POLL_S)
            if _refused(needs, wanted):
                wanted = wanted // 2 if wanted // 2 >= least else 0
            before, room = room, places(living_nodes(), needs)
            grown_s = time.monotonic() if room > before else grown_s
    finally:
        request_resources(bundles=[])


def _refused(needs: Resources, wanted: int) -> bool:
    """Whether the autoscaler has said that so many can never be had."""
    reply = GetClusterStatusReply.FromString(internal_kv_get_gcs_client().get_cluster_status())
    refused = reply.autoscaling_state.infeasible_cluster_resource_constraints
    asked = [part for constraint in refused for part in constraint.resource_requests]
    return any(
        part.count == wanted and dict(part.request.resources_bundle) == needs for part in asked
    )


def _text(needs: Resources) -> str:
    return ", ".join(f"{need:g} {name}" for name, need in needs.items())
