"""What one object names is there: accounts, settings, claims, volumes, ports and queues."""

from __future__ import annotations

from collections.abc import Iterator

from built import Manifest, Pod, every_container, objects, pods
from network import matches

from policies.rule import rule


@rule
def what_a_pod_names_is_there(manifests: list[Manifest]) -> Iterator[str]:
    """Secrets apart, which a script makes."""
    there = {(one["kind"], one["metadata"]["name"]) for one in manifests}
    there.add(("ConfigMap", "kube-root-ca.crt"))
    templates = {
        template["metadata"]["name"]
        for one in objects(manifests, "StatefulSet")
        for template in one["spec"]["volumeClaimTemplates"]
    }
    for pod in pods(manifests):
        yield from (f"{pod.name}: no {kind} {name}" for kind, name in set(_named(pod)) - there)
    for name, container, pod in every_container(manifests):
        volumes = {volume["name"] for volume in pod.spec.get("volumes", ())} | templates
        mounted = {mount["name"] for mount in container.get("volumeMounts", ())}
        if missing := mounted - volumes:
            yield f"{name}: no volume {missing}"


def _named(pod: Pod) -> Iterator[tuple[str, str]]:
    yield "ServiceAccount", pod.spec.get("serviceAccountName", "default")
    for container in pod.containers:
        for source in container.get("envFrom", ()):
            if "configMapRef" in source:
                yield "ConfigMap", source["configMapRef"]["name"]
    for volume in pod.spec.get("volumes", ()):
        for source in (volume, *volume.get("projected", {}).get("sources", ())):
            if "configMap" in source:
                yield "ConfigMap", source["configMap"]["name"]
            if "persistentVolumeClaim" in source:
                yield "PersistentVolumeClaim", source["persistentVolumeClaim"]["claimName"]


@rule
def behind_every_service_somebody_listens(manifests: list[Manifest]) -> Iterator[str]:
    for one in objects(manifests, "Service"):
        selector = {"matchLabels": one["spec"].get("selector", {})}
        containers = [
            container
            for pod in pods(manifests)
            if matches(selector, pod.labels)
            for container in pod.containers
        ]
        listening = {port["name"] for each in containers for port in each.get("ports", ())}
        if not {port["targetPort"] for port in one["spec"].get("ports", ())} <= listening:
            yield f"Service {one['metadata']['name']}"


@rule
def queues_lead_to_one_another(manifests: list[Manifest]) -> Iterator[str]:
    """From a job's label to a flavour: Kueue leaves a job waiting, and says nothing, if not."""
    there = {(one["kind"], one["metadata"]["name"]) for one in manifests}
    led = [("LocalQueue", _queue(one)) for one in objects(manifests, "RayJob") if _queue(one)]
    led += [("ClusterQueue", q["spec"]["clusterQueue"]) for q in objects(manifests, "LocalQueue")]
    for one in objects(manifests, "ClusterQueue"):
        if one["spec"]["namespaceSelector"] != _OUR_NAMESPACE:
            yield f"ClusterQueue {one['metadata']['name']}: {one['spec']['namespaceSelector']}"
        for group in one["spec"]["resourceGroups"]:
            led += [("ResourceFlavor", flavour["name"]) for flavour in group["flavors"]]
    yield from (f"no {kind} {name}" for kind, name in set(led) - there)


_OUR_NAMESPACE = {"matchLabels": {"kubernetes.io/metadata.name": "pmg"}}


def _queue(job: Manifest) -> str:
    name: str = job["metadata"]["labels"].get("kueue.x-k8s.io/queue-name", "")
    return name
