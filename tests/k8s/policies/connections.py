"""Who may talk to whom: network policies, and what is open to the outside."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from built import Manifest, every_container, objects, rays
from network import OUTSIDE, Network, Where

from policies.rule import rule

__all__ = ["ROLES"]

_NODES = ("head", "a job's head", "cpu", "gpu")
ROLES = ("head", "cpu", "gpu", "client", "postgres", "object-store", "phantom", "fetch")
_PEERS: dict[str, Where] = {
    **{role: ("pmg", {"pmg/role": role}) for role in ROLES},
    "head": ("pmg", {"pmg/role": "head", "ray.io/cluster": "pmg"}),
    "a job's head": ("pmg", {"pmg/role": "head", "ray.io/cluster": "pmg-train-x7k2p"}),
    "a pod without role": ("pmg", {"app": "anything"}),
    "operator": ("kuberay-system", {"app.kubernetes.io/name": "kuberay-operator"}),
    "prometheus": ("monitoring", {"app.kubernetes.io/name": "prometheus"}),
    "dns": ("kube-system", {"k8s-app": "kube-dns"}),
    "grafana": ("monitoring", {"app.kubernetes.io/name": "grafana"}),
    "kube-system": ("kube-system", {"k8s-app": "metrics-server"}),
    # a name counts in this namespace only
    "another's client": ("default", {"pmg/role": "client"}),
    "another's head": ("default", {"pmg/role": "head"}),
    "outside": OUTSIDE,
}
_ALL_PORTS = range(1, 65536)
_TALK: dict[tuple[str, str], Iterable[int]] = {
    **dict.fromkeys(itertools.product(_NODES, _NODES), _ALL_PORTS),
    **{(node, "postgres"): (5432,) for node in _NODES},
    **{(node, "object-store"): (9000,) for node in _NODES},
    **{("prometheus", node): (8080,) for node in _NODES},
    **{(own, "dns"): (53,) for own in (*ROLES, "a job's head", "a pod without role")},
    **{(who, head): (8265,) for who in ("client", "operator") for head in _NODES[:2]},
}


@rule
def nothing_talks_but_what_must(manifests: list[Manifest]) -> Iterator[str]:
    network = Network(manifests)
    for asks, answers in itertools.product(_PEERS, _PEERS):
        source, target = _PEERS[asks], _PEERS[answers]
        for port in network.ports() - set(_TALK.get((asks, answers), ())):
            if source[0] == "pmg" and network.lets_out(source, target, port):
                yield f"{asks} may ask port {port} of {answers}"
            if target[0] == "pmg" and network.lets_in(source, target, port):
                yield f"{answers} answers {asks} on port {port}"


@rule
def no_address_is_open_but_the_api_servers(manifests: list[Manifest]) -> Iterator[str]:
    """Of an address nobody knows whose it is, nor does the model of the network."""
    for one in objects(manifests, "NetworkPolicy"):
        ways = [*one["spec"].get("ingress", ()), *one["spec"].get("egress", ())]
        peers = [peer for way in ways for side in ("from", "to") for peer in way.get(side, ())]
        name = one["metadata"]["name"]
        if any("ipBlock" in peer for peer in peers) and name != "autoscaler":
            yield name


@rule
def what_has_to_talk_can(manifests: list[Manifest]) -> Iterator[str]:
    network = Network(manifests)
    for (asks, answers), ports in _TALK.items():
        for port in (6379, 20000) if ports is _ALL_PORTS else ports:
            if not network.reaches(_PEERS[asks], _PEERS[answers], port):
                yield f"{asks} does not reach port {port} of {answers}"


@rule
def all_pods_are_closed_both_ways_by_default(manifests: list[Manifest]) -> Iterator[str]:
    closed = [
        one["spec"]
        for one in objects(manifests, "NetworkPolicy")
        if one["spec"]["podSelector"] == {} and not {"ingress", "egress"} & one["spec"].keys()
    ]
    if not any({"Ingress", "Egress"} <= set(spec["policyTypes"]) for spec in closed):
        yield "no policy closes all pods of the namespace both ways"


@rule
def nothing_is_exposed_outside_the_cluster(manifests: list[Manifest]) -> Iterator[str]:
    """What else could do it is no known kind, or no field that a pod may have."""
    for one in objects(manifests, "Service"):
        more = one["spec"].keys() - {"type", "selector", "ports"}
        if one["spec"].get("type") != "ClusterIP" or more:
            yield f"Service {one['metadata']['name']}: {one['spec'].get('type')} {more}"
    for name, ray in rays(manifests):
        head = ray["headGroupSpec"]
        more = head.keys() - {"serviceType", "rayStartParams", "template"}
        if head["serviceType"] != "ClusterIP" or more:
            yield f"{name}: its head's service is {head['serviceType']} {more}"
    for name, container, _ in every_container(manifests):
        if any(port.keys() - {"name", "containerPort"} for port in container.get("ports", ())):
            yield f"{name}: a port of the host"
