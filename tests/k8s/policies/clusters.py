"""Ray clusters and jobs: whose they are, what heads do, how they scale, break off, and end."""

from __future__ import annotations

from collections.abc import Iterator

from built import Manifest, objects, pods, rays
from network import matches

from policies.rule import rule


@rule
def the_end_of_a_pod_leaves_time_for_a_checkpoint(manifests: list[Manifest]) -> Iterator[str]:
    for pod in pods(manifests):
        if pod.ray is None:
            continue
        hook = pod.containers[0].get("lifecycle", {}).get("preStop", {}).get("exec", {})
        if not str(hook.get("command", ["", ""])[1]).endswith("pre_stop.py"):
            yield f"{pod.name}: nobody tells the driver"
        elif not float(hook["command"][2]) < pod.spec.get("terminationGracePeriodSeconds", 30):
            yield f"{pod.name}: is killed before its checkpoint is written"


@rule
def drains_leave_heads_and_training_alone(manifests: list[Manifest]) -> Iterator[str]:
    budgets = [one["spec"] for one in objects(manifests, "PodDisruptionBudget")]
    for pod in pods(manifests):
        chosen = [one for one in budgets if matches(one["selector"], pod.labels)]
        kept = [one.get("minAvailable", 0) for one in chosen]
        if pod.role in ("head", "gpu") and not max(kept, default=0) >= 1000:
            yield pod.name


_OF_A_JOB = {
    *("entrypoint", "entrypointNumCpus", "activeDeadlineSeconds", "backoffLimit", "rayClusterSpec"),
    *("shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
    *("submitterConfig", "submitterPodTemplate"),
}


@rule
def jobs_end(manifests: list[Manifest]) -> Iterator[str]:
    for one in objects(manifests, "Job", "RayJob"):
        spec, name = one["spec"], one["metadata"]["name"]
        for field in ("ttlSecondsAfterFinished", "activeDeadlineSeconds"):
            if not spec.get(field, 0) > 0:
                yield f"{name}: {field}"
        if "backoffLimit" not in spec:
            yield f"{name}: backoffLimit"
    for one in objects(manifests, "RayJob"):
        if not one["spec"].get("shutdownAfterJobFinishes"):
            yield f"{one['metadata']['name']}: shutdownAfterJobFinishes"


@rule
def jobs_have_clusters_of_their_own(manifests: list[Manifest]) -> Iterator[str]:
    """None runs on another's, or gives it variables that Ray would store and show."""
    for one in objects(manifests, "RayJob"):
        if more := one["spec"].keys() - _OF_A_JOB:
            yield f"{one['metadata']['name']}: {more}"


@rule
def the_head_does_no_work(manifests: list[Manifest]) -> Iterator[str]:
    for name, ray in rays(manifests):
        params = ray["headGroupSpec"]["rayStartParams"]
        if (params.get("num-cpus"), params.get("num-gpus")) != ("0", "0"):
            yield name


@rule
def the_standing_cluster_scales_from_nothing_and_survives_its_head(
    manifests: list[Manifest],
) -> Iterator[str]:
    for one in objects(manifests, "RayCluster"):
        ray, name = one["spec"], one["metadata"]["name"]
        scaler = ray["autoscalerOptions"] if ray.get("enableInTreeAutoscaling") else {}
        if scaler.get("version") != "v2" or not scaler.get("idleTimeoutSeconds"):
            yield f"{name}: does not scale"
        if any(group["minReplicas"] or group["replicas"] for group in ray["workerGroupSpecs"]):
            yield f"{name}: holds idle nodes"
        if not ray.get("gcsFaultToleranceOptions", {}).get("storage"):
            yield f"{name}: forgets its jobs with its head"
