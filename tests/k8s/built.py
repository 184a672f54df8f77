"""What `kubectl kustomize` makes of the overlays, and views of it that rules look through."""

from __future__ import annotations

import copy
import functools
import pickle
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

__all__ = [
    "BUILDS",
    "K8S",
    "NO_KUBECTL",
    "OVERLAYS",
    "Manifest",
    "Pod",
    "amount",
    "build",
    "every_container",
    "kustomize",
    "objects",
    "pods",
    "rays",
]

Manifest = dict[str, Any]

K8S = Path(__file__).parents[2] / "k8s"
OVERLAYS = ("laptop", "gpu-node", "gpu-cluster")
BUILDS = tuple(f"overlays/{name}{part}" for name in OVERLAYS for part in ("", "/jobs"))

NO_KUBECTL = pytest.mark.skipif(
    shutil.which("kubectl") is None,
    reason="NO MANIFEST WAS CHECKED: kubectl is not on PATH, and nothing else builds the overlays",
)


@functools.cache
def _built(folder: Path) -> bytes:
    if shutil.which("kubectl") is None:
        pytest.skip("NO MANIFEST WAS CHECKED: kubectl is not on PATH")
    built = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return pickle.dumps(list(yaml.load_all(built.stdout, yaml.CSafeLoader)))


def kustomize(folder: Path) -> list[Manifest]:
    """The objects that the folder builds, fresh ones at each call."""
    manifests: list[Manifest] = pickle.loads(_built(folder))
    return manifests


def build(name: str) -> list[Manifest]:
    """The objects of one of BUILDS."""
    return kustomize(K8S / name)


def objects(manifests: list[Manifest], *kinds: str) -> Iterator[Manifest]:
    yield from (one for one in manifests if one["kind"] in kinds)


@dataclass(frozen=True)
class Pod:
    """A pod that comes of an object. template: its metadata and spec, the object's own."""

    name: str
    template: Manifest
    ray: Manifest | None = None

    @property
    def spec(self) -> Manifest:
        return self.template["spec"]

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.template["metadata"].get("labels", {})
        return labels

    @property
    def role(self) -> str:
        return self.labels.get("pmg/role", "")

    @property
    def containers(self) -> list[Manifest]:
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]

    def volume(self, name: str) -> Manifest:
        return next(volume for volume in self.spec["volumes"] if volume["name"] == name)

    def as_object(self, namespace: str = "pmg") -> Manifest:
        """A Pod of it, for tools that know nothing of Ray."""
        metadata = {**self.template.get("metadata", {}), "name": self.name, "namespace": namespace}
        spec = copy.deepcopy(self.spec)
        if self.ray is not None and self.ray.get("enableInTreeAutoscaling") and self.role == "head":
            spec["containers"].append(_autoscaler(self.ray["autoscalerOptions"], spec))
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _autoscaler(options: Manifest, spec: Manifest) -> Manifest:
    """The container that the operator adds to the head's pod, by default of the head's image."""
    not_its = ("version", "upscalingMode", "idleTimeoutSeconds")
    container = {name: copy.deepcopy(options[name]) for name in options.keys() - set(not_its)}
    probe = {"exec": {"command": ["true"]}}
    return (
        {"image": spec["containers"][0]["image"]}
        | container
        | {
            "name": "autoscaler",
            # KubeRay gives it none and restarts the head's pod by the head's own probes.
            "readinessProbe": probe,
            "livenessProbe": probe,
        }
    )


def rays(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Name and specification of every Ray cluster, those of jobs too."""
    for one in manifests:
        name = f"{one['kind']}/{one['metadata']['name']}"
        if one["kind"] == "RayCluster":
            yield name, one["spec"]
        if one["kind"] == "RayJob":
            yield name, one["spec"]["rayClusterSpec"]


def pods(manifests: list[Manifest]) -> Iterator[Pod]:
    """Every pod template of the kinds that the policies know.

    The autoscaler's container is in `as_object` only.
    """
    for one in manifests:
        name, kind = one["metadata"]["name"], one["kind"]
        if kind in ("StatefulSet", "Job"):
            yield Pod(name, one["spec"]["template"])
        if kind == "RayJob" and "submitterPodTemplate" in one["spec"]:
            yield Pod(f"{name}-submitter", one["spec"]["submitterPodTemplate"])
        for _, ray in rays([one]):
            yield Pod(f"{name}-head", ray["headGroupSpec"]["template"], ray)
            for group in ray["workerGroupSpecs"]:
                yield Pod(f"{name}-{group['groupName']}", group["template"], ray)


def every_container(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest, Pod]]:
    """Name, container and pod of each, those that the operator adds too."""
    for pod in pods(manifests):
        whole = Pod(pod.name, pod.as_object(), pod.ray)
        for container in whole.containers:
            yield f"{pod.name}/{container['name']}", container, whole


_UNITS = {"": 0, "Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40}


def amount(resource: str, quantity: str | int) -> float:
    """Of memory and storage in GiB, of anything else in pieces."""
    text = str(quantity)
    if text.endswith("m"):
        return int(text[:-1]) / 1000
    number, unit = re.fullmatch(r"([0-9.]+)([KMGT]i)?", text).groups("")  # type: ignore[union-attr]
    stored = "memory" in resource or "storage" in resource
    return float(Decimal(number) * 2 ** _UNITS[unit] / (2**30 if stored else 1))
