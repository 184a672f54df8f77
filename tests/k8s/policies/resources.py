"""What containers get of a node: cores, memory, disk, shared memory and GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from built import Manifest, amount, every_container, pods

from policies.rule import rule


@rule
def every_container_has_requests_and_limits(manifests: list[Manifest]) -> Iterator[str]:
    for name, container, _ in every_container(manifests):
        resources = container.get("resources", {})
        least, most = resources.get("requests", {}), resources.get("limits", {})
        for side in (least, most):
            if missing := {"cpu", "memory", "ephemeral-storage"} - side.keys():
                yield f"{name}: no request or limit of {', '.join(sorted(missing))}"
        for key in least.keys() & most.keys():
            if not 0 < amount(key, least[key]) <= amount(key, most[key]):
                yield f"{name}: {key} of {least[key]} within {most[key]}"


@rule
def shared_memory_fits(manifests: list[Manifest]) -> Iterator[str]:
    for pod in pods(manifests):
        if pod.ray is None:
            continue
        groups = {group["groupName"]: group for group in pod.ray["workerGroupSpecs"]}
        group = pod.ray["headGroupSpec"] if pod.role == "head" else groups[pod.role]
        store = int(group["rayStartParams"]["object-store-memory"]) / 2**30
        shm = pod.volume("shm")["emptyDir"]
        if shm.get("medium") != "Memory":
            yield f"{pod.name}: /dev/shm is not memory"
        if not any(m["mountPath"] == "/dev/shm" for m in pod.containers[0]["volumeMounts"]):
            yield f"{pod.name}: /dev/shm is not mounted"
        # NCCL takes some 10 MiB for each pair of GPUs and channel of a node
        spare = 1.0 if pod.role == "gpu" else 0.25
        size = amount("memory", shm["sizeLimit"])
        if size < store + spare:
            yield f"{pod.name}: {size} GiB of shared memory for a store of {store:.1f} GiB"
        memory = amount("memory", pod.containers[0]["resources"]["limits"]["memory"])
        if size > memory / 2:
            yield f"{pod.name}: shared memory takes over half of {memory} GiB"


@rule
def nodes_with_gpus_are_for_pods_that_use_them(manifests: list[Manifest]) -> Iterator[str]:
    taint = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    for pod in pods(manifests):
        uses = any(
            "nvidia.com/gpu" in container.get("resources", {}).get("limits", {})
            for container in pod.containers
        )
        if pod.spec.get("tolerations", []) != (taint if uses else []):
            yield f"{pod.name}: {pod.spec.get('tolerations')}"
