"""What a pod may do to its node: user, kernel, file systems, images, and fields at all."""

from __future__ import annotations

import re
from collections.abc import Iterator

from built import Manifest, every_container, pods

from policies.connections import ROLES
from policies.rule import rule


@rule
def nothing_runs_as_root(manifests: list[Manifest]) -> Iterator[str]:
    for pod in pods(manifests):
        context = pod.spec.get("securityContext", {})
        ids = ["runAsUser", "runAsGroup", *(["fsGroup"] if "fsGroup" in context else [])]
        if not context.get("runAsNonRoot") or not all(context.get(one, 0) > 10000 for one in ids):
            yield pod.name
    for name, container, _ in every_container(manifests):
        own = container.get("securityContext", {}).keys()
        yield from (f"{name}: {key}" for key in own & {"runAsNonRoot", "runAsUser", "privileged"})


@rule
def root_file_systems_are_read_only(manifests: list[Manifest]) -> Iterator[str]:
    for name, container, _ in every_container(manifests):
        if not container.get("securityContext", {}).get("readOnlyRootFilesystem"):
            yield name


@rule
def capabilities_are_dropped(manifests: list[Manifest]) -> Iterator[str]:
    for name, container, _ in every_container(manifests):
        context = container.get("securityContext", {})
        if context.get("allowPrivilegeEscalation") is not False:
            yield f"{name}: may gain privileges"
        if context.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{name}: keeps capabilities"


@rule
def seccomp_is_the_runtimes_default(manifests: list[Manifest]) -> Iterator[str]:
    for name, container, pod in every_container(manifests):
        profile = pod.spec.get("securityContext", {}).get("seccompProfile")
        profile = container.get("securityContext", {}).get("seccompProfile", profile)
        if profile != {"type": "RuntimeDefault"}:
            yield name


_OF_A_POD = {
    *("containers", "initContainers", "volumes", "restartPolicy", "terminationGracePeriodSeconds"),
    *("serviceAccountName", "automountServiceAccountToken", "enableServiceLinks"),
    *("securityContext", "affinity", "nodeSelector", "tolerations", "topologySpreadConstraints"),
}
_OF_A_CONTAINER = {
    *("name", "image", "imagePullPolicy", "command", "ports", "env", "envFrom", "resources"),
    *("securityContext", "lifecycle", "readinessProbe", "livenessProbe", "volumeMounts"),
}
_OF_THE_KERNEL = {
    "pod": {
        *("runAsNonRoot", "runAsUser", "runAsGroup", "fsGroup", "fsGroupChangePolicy"),
        "seccompProfile",
    },
    "container": {"allowPrivilegeEscalation", "readOnlyRootFilesystem", "capabilities"},
}


@rule
def pods_ask_for_nothing_else(manifests: list[Manifest]) -> Iterator[str]:
    """Not for the host's namespaces, a node or runtime by name, or what PodSecurity forbids."""
    for pod in pods(manifests):
        more = (pod.spec.keys() - _OF_A_POD) | (pod.template["metadata"].keys() - {"labels"})
        more |= pod.spec.get("securityContext", {}).keys() - _OF_THE_KERNEL["pod"]
        if more or pod.role not in ROLES:
            yield f"{pod.name}: {pod.role} {more}"
        if pod.spec.get("enableServiceLinks") is not False:
            yield f"{pod.name}: is told of all services"
    for name, container, _ in every_container(manifests):
        more = container.keys() - _OF_A_CONTAINER
        more |= container.get("securityContext", {}).keys() - _OF_THE_KERNEL["container"]
        more |= container.get("lifecycle", {}).keys() - {"preStop"}
        for probe in ("readinessProbe", "livenessProbe"):
            more |= container.get(probe, {}).get("httpGet", {}).keys() - {"path", "port"}
        if more:
            yield f"{name}: {more}"


# On the laptop: our own, which are given to the one node, and one of the servers'.
_BY_VERSION = {"pmg-cpu", "pmg-gpu", "postgres"}


@rule
def images_are_pinned(manifests: list[Manifest]) -> Iterator[str]:
    for name, container, _ in every_container(manifests):
        image, _, digest = container["image"].partition("@")
        path, _, tag = image.rpartition(":")
        if not re.search(r"\d", tag) or "/" in tag:
            yield f"{name}: {container['image']} has no version"
        if path not in _BY_VERSION and not re.fullmatch("sha256:[0-9a-f]{64}", digest):
            yield f"{name}: {container['image']} has no digest"


@rule
def volumes_are_of_restricted_kinds(manifests: list[Manifest]) -> Iterator[str]:
    kinds = {"emptyDir", "persistentVolumeClaim", "configMap", "secret", "projected"}
    for pod in pods(manifests):
        for volume in pod.spec.get("volumes", ()):
            if volume.keys() - {"name"} - kinds:
                yield f"{pod.name}: {volume['name']}"
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"{pod.name}: {volume['name']} has no limit"
