"""Who reaches whom under the built network policies: a model of what a network plugin enforces."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from built import Manifest, objects, pods

__all__ = ["OUTSIDE", "Where", "lets_in", "lets_through", "reaches"]

Where = tuple[str, dict[str, str]]  # namespace and labels
OUTSIDE: Where = ("", {})  # no pod of the cluster
_FEW_ADDRESSES = 28


def reaches(manifests: list[Manifest], source: Where, target: Where, port: int) -> bool:
    """Whether a pod may open a connection: both ends must allow it, as Kubernetes defines it.

    Pods outside the namespace have no policies here and may send and receive what they like.
    """
    return lets_through(manifests, "egress", source, target, port) and lets_in(
        manifests, source, target, port
    )


def lets_in(manifests: list[Manifest], source: Where, target: Where, port: int) -> bool:
    """Whether the target would accept it, whatever keeps the source from asking."""
    return lets_through(manifests, "ingress", target, source, port)


def lets_through(manifests: list[Manifest], side: str, own: Where, other: Where, port: int) -> bool:
    """Whether the own side of a connection allows it. side: ingress or egress."""
    specs = [one["spec"] for one in objects(manifests, "NetworkPolicy")]
    chosen = [spec for spec in specs if _selects(spec, own, side.capitalize())]
    peers = {"egress": "to", "ingress": "from"}[side]
    names = {
        port["name"]: port["containerPort"]
        for pod in pods(manifests)
        for container in pod.containers
        for port in container.get("ports", ())
    }
    return not chosen or any(_allows(spec, side, peers, other, port, names) for spec in chosen)


def _selects(spec: Manifest, pod: Where, direction: str) -> bool:
    namespace, labels = pod
    return (
        namespace == "pmg"
        and direction in spec["policyTypes"]
        and _matches(spec["podSelector"], labels)
    )


def _allows(
    spec: Manifest, direction: str, peers: str, other: Where, port: int, names: Mapping[str, int]
) -> bool:
    return any(
        (not allowed.get("ports") or any(_is_port(one, port, names) for one in allowed["ports"]))
        and (not allowed.get(peers) or any(_is_peer(peer, other) for peer in allowed[peers]))
        for allowed in spec.get(direction, ())
    )


def _is_port(allowed: Manifest, port: int, names: Mapping[str, int]) -> bool:
    """Whether the policy's port, none, one by name or number, or a range, is this one."""
    first = allowed.get("port", 0)
    first = names.get(first, -1) if isinstance(first, str) else first
    last = allowed.get("endPort", first or 65535)
    return bool(first <= port <= last)


def _is_peer(peer: Manifest, other: Where) -> bool:
    if "ipBlock" in peer:  # a network, of which any address may be meant, or one service's own
        return ipaddress.ip_network(peer["ipBlock"]["cidr"]).prefixlen < _FEW_ADDRESSES
    namespace, labels = other
    if other == OUTSIDE:
        return False
    if "namespaceSelector" in peer:
        names = {"kubernetes.io/metadata.name": namespace}
        inside = _matches(peer["namespaceSelector"], names)
    else:
        inside = namespace == "pmg"
    return inside and _matches(peer.get("podSelector", {}), labels)


def _matches(selector: Manifest, labels: dict[str, str]) -> bool:
    wanted = selector.get("matchLabels", {}).items()
    among = selector.get("matchExpressions", ())
    assert all(one["operator"] == "In" for one in among)
    return all(labels.get(key) == value for key, value in wanted) and all(
        labels.get(one["key"]) in one["values"] for one in among
    )
