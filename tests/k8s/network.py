"""Who reaches whom under the built network policies: a model of what a network plugin enforces."""

from __future__ import annotations

import ipaddress

from built import Manifest, objects, pods

__all__ = ["OUTSIDE", "Network", "Where", "matches"]

Where = tuple[str, dict[str, str]]  # namespace and labels
OUTSIDE: Where = ("", {})  # no pod of the cluster
_FEW_ADDRESSES = 28
_NAMED_BY_NOBODY = 31337


class Network:
    """The policies of the namespace `pmg`.

    Pods outside of it have none here, and may send and receive what they like.
    """

    def __init__(self, manifests: list[Manifest]) -> None:
        self._specs = [one["spec"] for one in objects(manifests, "NetworkPolicy")]
        self._names = {
            port["name"]: port["containerPort"]
            for pod in pods(manifests)
            for container in pod.containers
            for port in container.get("ports", ())
        }

    def ports(self) -> set[int]:
        """All that a policy or a container names, and one that none does."""
        named = [
            port.get(end)
            for spec in self._specs
            for side in ("ingress", "egress")
            for way in spec.get(side, ())
            for port in way.get("ports", ())
            for end in ("port", "endPort")
        ]
        numbers = {port for port in named if isinstance(port, int)}
        return numbers | set(self._names.values()) | {_NAMED_BY_NOBODY}

    def reaches(self, source: Where, target: Where, port: int) -> bool:
        """Whether a pod may open a connection: both ends must allow it."""
        return self.lets_out(source, target, port) and self.lets_in(source, target, port)

    def lets_in(self, source: Where, target: Where, port: int) -> bool:
        """Whether the target would accept it, whatever keeps the source from asking."""
        return self._lets_through("Ingress", "from", target, source, port)

    def lets_out(self, source: Where, target: Where, port: int) -> bool:
        """Whether the source may ask for it, whatever the target answers."""
        return self._lets_through("Egress", "to", source, target, port)

    def _lets_through(self, side: str, peers: str, own: Where, other: Where, port: int) -> bool:
        chosen = [spec for spec in self._specs if _selects(spec, own, side)]
        return not chosen or any(
            self._is_port(way, port) and _is_peer(way.get(peers), other)
            for spec in chosen
            for way in spec.get(side.lower()) or ()
        )

    def _is_port(self, way: Manifest, port: int) -> bool:
        """Of the way's ports, which are by name or number, or a range, or all."""
        for allowed in way.get("ports") or [{}]:
            first = allowed.get("port", 1)
            first = self._names.get(first, -1) if isinstance(first, str) else first
            if first <= port <= allowed.get("endPort", first if "port" in allowed else 65535):
                return True
        return False


def _selects(spec: Manifest, pod: Where, side: str) -> bool:
    namespace, labels = pod
    default = ["Ingress", *(["Egress"] if "egress" in spec else [])]
    return (
        namespace == "pmg"
        and side in spec.get("policyTypes", default)
        and matches(spec["podSelector"], labels)
    )


def _is_peer(peers: list[Manifest] | None, other: Where) -> bool:
    return not peers or any(_is_one(peer, other) for peer in peers)


def _is_one(peer: Manifest, other: Where) -> bool:
    if "ipBlock" in peer:  # a network, of which any address may be meant, or one service's own
        return ipaddress.ip_network(peer["ipBlock"]["cidr"]).prefixlen < _FEW_ADDRESSES
    if other == OUTSIDE:
        return False
    namespace, labels = other
    if "namespaceSelector" in peer:
        names = {"kubernetes.io/metadata.name": namespace}
        inside = matches(peer["namespaceSelector"], names)
    else:
        inside = namespace == "pmg"
    return inside and matches(peer.get("podSelector", {}), labels)


def matches(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a label selector chooses an object that has these labels."""
    wanted = selector.get("matchLabels", {}).items()
    return wanted <= labels.items() and all(
        _holds(one, labels) for one in selector.get("matchExpressions", ())
    )


def _holds(expression: Manifest, labels: dict[str, str]) -> bool:
    value, operator = labels.get(expression["key"]), expression["operator"]
    if operator in ("Exists", "DoesNotExist"):
        return (value is not None) == (operator == "Exists")
    return (value in expression["values"]) == (operator == "In")
