"""What kinds of objects there are, all of them in one restricted namespace."""

from __future__ import annotations

from collections.abc import Iterator

from built import Manifest, objects

from policies.rule import rule

_KINDS = {
    *("Namespace", "LimitRange", "ResourceQuota", "PodDisruptionBudget", "NetworkPolicy"),
    *("ServiceAccount", "Role", "RoleBinding", "ConfigMap", "PersistentVolumeClaim"),
    *("Service", "StatefulSet", "Job", "RayCluster", "RayJob"),
    *("ClusterQueue", "LocalQueue", "ResourceFlavor", "PodMonitor", "PrometheusRule"),
}


@rule
def only_known_kinds_are_made(manifests: list[Manifest]) -> Iterator[str]:
    """No Secret, no Ingress or Route, no ClusterRole, no Pod that the other rules don't look at."""
    for one in manifests:
        if one["kind"] not in _KINDS:
            yield f"{one['kind']} {one['metadata']['name']}"


@rule
def the_namespace_is_restricted(manifests: list[Manifest]) -> Iterator[str]:
    spaces = [one["metadata"] for one in objects(manifests, "Namespace")]
    if [one["name"] for one in spaces] != ["pmg"]:
        yield f"namespaces: {spaces}"
    for metadata in spaces:
        wanted = dict.fromkeys(("enforce", "audit", "warn"), "restricted")
        for mode, level in (wanted | {"enforce-version": "latest"}).items():
            if metadata.get("labels", {}).get(f"pod-security.kubernetes.io/{mode}") != level:
                yield f"{metadata['name']}: {mode}"
    for one in manifests:
        cluster_wide = ("Namespace", "ClusterQueue", "ResourceFlavor")
        if one["kind"] not in cluster_wide and one["metadata"].get("namespace") != "pmg":
            yield f"{one['kind']} {one['metadata']['name']} is not in the namespace"
