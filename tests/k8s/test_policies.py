"""Each rule of `policies` holds for every overlay with its jobs, and notices what is planted."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from built import NO_KUBECTL, OVERLAYS, Manifest, build, objects, pods
from policies import RULES

pytestmark = NO_KUBECTL

Plant = Callable[["Stack"], object]


class Stack:
    """An overlay and its jobs, with the places where violations are planted."""

    def __init__(self, overlay: str = "gpu-cluster") -> None:
        self.manifests = [*build(f"overlays/{overlay}"), *build(f"overlays/{overlay}/jobs")]

    def get(self, kind: str, name: str = "pmg") -> Manifest:
        return next(one for one in objects(self.manifests, kind) if one["metadata"]["name"] == name)

    def drop(self, kind: str, name: str) -> None:
        self.manifests.remove(self.get(kind, name))

    def add(self, kind: str, name: str, **fields: Any) -> None:
        metadata = {"name": name, "namespace": "pmg", "labels": {}}
        self.manifests.append({"kind": kind, "apiVersion": "v1", "metadata": metadata, **fields})

    @property
    def ray(self) -> Manifest:
        return self.get("RayCluster")["spec"]

    @property
    def job(self) -> Manifest:
        return self.get("RayJob", "pmg-train")["spec"]

    @property
    def head(self) -> Manifest:
        return self.ray["headGroupSpec"]["template"]["spec"]

    @property
    def gpu(self) -> Manifest:
        return self.job["rayClusterSpec"]["workerGroupSpecs"][1]["template"]["spec"]

    @property
    def submitter(self) -> Manifest:
        return self.job["submitterPodTemplate"]["spec"]

    @property
    def postgres(self) -> Manifest:
        return self.get("StatefulSet", "pmg-postgres")["spec"]["template"]["spec"]

    def container(self, pod: str = "gpu") -> Manifest:
        return getattr(self, pod)["containers"][0]

    def ingress(self, policy: str) -> list[Manifest]:
        return self.get("NetworkPolicy", policy)["spec"]["ingress"]

    def egress(self, policy: str) -> list[Manifest]:
        return self.get("NetworkPolicy", policy)["spec"]["egress"]


def set_to(value: Any, *path: Any) -> Callable[[Manifest], None]:
    def change(node: Manifest) -> None:
        for step in path[:-1]:
            node = node[step]
        node[path[-1]] = value

    return change


def without(*path: Any) -> Callable[[Manifest], None]:
    def change(node: Manifest) -> None:
        for step in path[:-1]:
            node = node[step]
        del node[path[-1]]

    return change


SECURITY = "securityContext"
EVERYBODY = {"namespaceSelector": {}}
PLANTS: dict[str, list[Plant]] = {
    "ray_asks_for_a_token": [
        lambda s: without("authOptions")(s.ray),
        lambda s: set_to("disabled", "rayClusterSpec", "authOptions", "mode")(s.job),
    ],
    "only_own_pods_and_named_clients_reach_ray": [
        lambda s: s.ingress("job-server")[0]["from"].append(EVERYBODY),
        lambda s: s.ingress("job-server").append({"ports": [{"port": 8265}]}),
        lambda s: s.ingress("job-server")[0]["ports"].append({"port": 10001}),
        lambda s: s.ingress("job-server")[0]["ports"].append({"port": 6000, "endPort": 7000}),
        lambda s: s.ingress("job-server")[0]["ports"].append({"port": "gcs-server"}),
        lambda s: s.ingress("job-server")[0]["ports"].append({"protocol": "TCP"}),
        lambda s: s.ingress("job-server")[0]["from"].append({"ipBlock": {"cidr": "10.0.0.0/8"}}),
        lambda s: s.ingress("metrics")[0].pop("ports"),
        lambda s: s.ingress("ray-nodes")[0].pop("from"),
        lambda s: s.ingress("ray-nodes")[0]["from"][0].pop("podSelector"),
    ],
    "what_has_to_talk_can": [
        lambda s: s.drop("NetworkPolicy", "job-server"),
        lambda s: s.drop("NetworkPolicy", "names"),
        lambda s: s.drop("NetworkPolicy", "postgres"),
        lambda s: s.drop("NetworkPolicy", "metrics"),
        lambda s: s.get("NetworkPolicy", "ray-nodes")["spec"]["egress"].pop(),
    ],
    "all_pods_are_closed_both_ways_by_default": [
        lambda s: s.drop("NetworkPolicy", "deny-all"),
        lambda s: set_to(["Ingress"], "spec", "policyTypes")(s.get("NetworkPolicy", "deny-all")),
    ],
    "nothing_reaches_the_outside": [
        lambda s: s.egress("clients").append({"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}),
        lambda s: s.egress("ray-nodes").append({"to": [{"ipBlock": {"cidr": "198.51.0.0/16"}}]}),
        lambda s: s.egress("names")[0].pop("to"),
        lambda s: s.egress("ray-nodes").append({"to": [EVERYBODY]}),
        lambda s: s.egress("autoscaler").append({}),
    ],
    "data_stores_answer_ray_alone": [
        lambda s: s.ingress("postgres")[0]["from"].append(EVERYBODY),
        lambda s: s.ingress("object-store")[0]["from"].append({"podSelector": {}}),
    ],
    "nothing_is_exposed_outside_the_cluster": [
        lambda s: set_to("NodePort", "spec", "type")(s.get("Service", "pmg-postgres")),
        lambda s: set_to("LoadBalancer", "headGroupSpec", "serviceType")(s.ray),
        lambda s: set_to(True, "rayClusterSpec", "headGroupSpec", "enableIngress")(s.job),
        lambda s: s.add("Ingress", "ray", spec={}),
        lambda s: s.add("TLSRoute", "ray", spec={}),
        lambda s: set_to(True, "hostNetwork")(s.gpu),
        lambda s: set_to(30000, "ports", 0, "hostPort")(s.container()),
    ],
    "nothing_runs_as_root": [
        lambda s: without(SECURITY, "runAsNonRoot")(s.head),
        lambda s: set_to(0, SECURITY, "runAsUser")(s.postgres),
        lambda s: set_to(0, SECURITY, "runAsUser")(s.container()),
        lambda s: set_to(True, SECURITY, "privileged")(s.container("submitter")),
    ],
    "root_file_systems_are_read_only": [
        lambda s: without(SECURITY, "readOnlyRootFilesystem")(s.container()),
        lambda s: without(SECURITY)(s.ray["autoscalerOptions"]),
    ],
    "capabilities_are_dropped": [
        lambda s: set_to(["SYS_PTRACE"], SECURITY, "capabilities", "add")(s.container()),
        lambda s: without(SECURITY, "capabilities")(s.container("submitter")),
        lambda s: without(SECURITY, "allowPrivilegeEscalation")(s.ray["autoscalerOptions"]),
    ],
    "seccomp_is_the_runtimes_default": [
        lambda s: without(SECURITY, "seccompProfile")(s.gpu),
        lambda s: set_to({"type": "Unconfined"}, SECURITY, "seccompProfile")(s.container()),
    ],
    "nothing_else_is_asked_of_the_kernel": [
        lambda s: set_to([{"name": "kernel.msgmax", "value": "1"}], SECURITY, "sysctls")(s.head),
        lambda s: set_to("Unmasked", SECURITY, "procMount")(s.container()),
        lambda s: set_to(True, "shareProcessNamespace")(s.submitter),
    ],
    "every_container_has_requests_and_limits": [
        lambda s: without("resources", "limits", "memory")(s.container()),
        lambda s: without("resources")(s.container("submitter")),
        lambda s: without("resources", "requests")(s.ray["autoscalerOptions"]),
    ],
    "service_account_tokens_are_mounted_where_used": [
        lambda s: without("automountServiceAccountToken")(s.gpu),
        lambda s: without("serviceAccountName")(s.submitter),
        lambda s: without("automountServiceAccountToken")(s.get("ServiceAccount", "pmg-node")),
        lambda s: s.container("head")["volumeMounts"].append({"name": "api-access"}),
        lambda s: s.ray["autoscalerOptions"]["volumeMounts"].pop(),
    ],
    "accounts_have_no_rights_that_they_do_not_use": [
        lambda s: s.get("Role", "pmg-autoscaler")["rules"][0]["verbs"].append("delete"),
        lambda s: s.get("Role", "pmg-autoscaler")["rules"][0]["resources"].append("secrets"),
        lambda s: set_to("pmg-node", "subjects", 0, "name")(s.get("RoleBinding", "pmg-autoscaler")),
        lambda s: set_to("pmg-head", "serviceAccountName")(s.gpu),
        lambda s: set_to({"kind": "ClusterRole", "name": "cluster-admin"}, "roleRef")(
            s.get("RoleBinding", "pmg-autoscaler")
        ),
    ],
    "secrets_are_references": [
        lambda s: s.add("Secret", "keys", data={}),
        lambda s: s.container()["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}),
        lambda s: s.container()["envFrom"].append({"secretRef": {"name": "all"}}),
        lambda s: set_to("x", "data", "PGPASSWORD")(s.get("ConfigMap", "pmg-environment")),
    ],
    "no_secret_stands_in_a_text": [
        lambda s: set_to("postgresql://pmg:word@host/db", "data", "URL")(
            s.get("ConfigMap", "pmg-settings")
        ),
        lambda s: set_to("python -m tune.search postgresql://:word@host/db", "entrypoint")(s.job),
        lambda s: set_to("env_vars: {MLFLOW_TRACKING_TOKEN: x}", "runtimeEnvYAML")(s.job),
    ],
    "images_are_pinned": [
        lambda s: set_to("pmg-gpu", "image")(s.container()),
        lambda s: set_to("pmg-gpu:latest", "image")(s.container("submitter")),
        lambda s: set_to("registry.example.org/pmg-gpu:0.1.0", "image")(s.container("postgres")),
    ],
    "the_namespace_is_restricted": [
        lambda s: set_to("baseline", "metadata", "labels", "pod-security.kubernetes.io/enforce")(
            s.get("Namespace")
        ),
        lambda s: set_to("default", "metadata", "namespace")(s.get("RayCluster")),
    ],
    "volumes_are_of_restricted_kinds": [
        lambda s: s.gpu["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
        lambda s: without("emptyDir", "sizeLimit")(s.gpu["volumes"][0]),
    ],
    "identified_data_and_the_key_are_where_they_are_needed": [
        lambda s: s.gpu["volumes"].append(
            {"name": "input", "persistentVolumeClaim": {"claimName": "pmg-input"}}
        ),
        lambda s: s.head["volumes"].append(
            {"name": "key", "secret": {"secretName": "pmg-pseudonym"}}
        ),
        lambda s: s.gpu["volumes"].append(
            {"name": "output", "persistentVolumeClaim": {"claimName": "pmg-output"}}
        ),
        lambda s: [
            mount.pop("readOnly", None)
            for mount in s.get("RayJob", "pmg-ingest")["spec"]["rayClusterSpec"][
                "workerGroupSpecs"
            ][0]["template"]["spec"]["containers"][0]["volumeMounts"]
        ],
    ],
    "the_databases_password_is_where_searches_run": [
        lambda s: s.container()["env"].append(
            {
                "name": "PGPASSWORD",
                "valueFrom": {"secretKeyRef": {"name": "pmg-postgres", "key": "password"}},
            }
        ),
    ],
    "shared_memory_fits": [
        lambda s: without("emptyDir", "medium")(s.gpu["volumes"][1]),
        lambda s: set_to("8Gi", "emptyDir", "sizeLimit")(s.gpu["volumes"][1]),
        lambda s: set_to("60Gi", "emptyDir", "sizeLimit")(s.gpu["volumes"][1]),
        lambda s: s.container()["volumeMounts"].pop(1),
    ],
    "the_end_of_a_pod_leaves_time_for_a_checkpoint": [
        lambda s: without("terminationGracePeriodSeconds")(s.gpu),
        lambda s: without("lifecycle")(s.container("head")),
    ],
    "jobs_end": [
        lambda s: without("ttlSecondsAfterFinished")(s.job),
        lambda s: without("activeDeadlineSeconds")(s.job),
        lambda s: without("backoffLimit")(s.job),
        lambda s: set_to(False, "shutdownAfterJobFinishes")(s.job),
    ],
    "the_head_does_no_work": [
        lambda s: without("headGroupSpec", "rayStartParams", "num-cpus")(s.ray),
        lambda s: set_to(1, "workerGroupSpecs", 1, "minReplicas")(s.ray),
    ],
}
RULE = {check.__name__: check for check in RULES}


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("name", RULE)
def test_the_overlay_and_its_jobs_keep_the_rule(name: str, overlay: str) -> None:
    assert list(RULE[name](Stack(overlay).manifests)) == []


@pytest.mark.parametrize(
    ("name", "number"), [(name, n) for name, plants in PLANTS.items() for n in range(len(plants))]
)
def test_a_planted_violation_is_noticed(name: str, number: int) -> None:
    stack = Stack()
    PLANTS[name][number](stack)
    assert list(RULE[name](stack.manifests)) != []


def test_every_rule_is_shown_to_notice_something() -> None:
    assert RULE.keys() == PLANTS.keys()


@pytest.mark.parametrize("overlay", ["gpu-node", "gpu-cluster"])
def test_every_image_of_a_shared_cluster_is_named_by_registry_and_digest(overlay: str) -> None:
    images = [
        container["image"] for pod in pods(Stack(overlay).manifests) for container in pod.containers
    ]
    assert len(images) > 10
    for image in images:
        assert re.fullmatch(r"[a-z0-9.]+\.[a-z]+/[^@]+:[^@]+@sha256:[0-9a-f]{64}", image)
