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

    def open(self, spec: Manifest) -> None:
        self.add("NetworkPolicy", "open", spec=spec)

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

    @property
    def input(self) -> Manifest:
        """The volume of identified series, of the ingest's nodes."""
        ray = self.get("RayJob", "pmg-ingest")["spec"]["rayClusterSpec"]
        volumes = ray["workerGroupSpecs"][0]["template"]["spec"]["volumes"]
        return next(volume for volume in volumes if volume["name"] == "input")

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


def more(node: Manifest, key: str, *values: Any) -> None:
    node.setdefault(key, []).extend(values)


def secret(name: str, key: str, variable: str = "X") -> Manifest:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": name, "key": key}}}


SECURITY = "securityContext"
EVERYBODY = {"namespaceSelector": {}}
ANYWHERE = {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}
PLANTS: dict[str, list[Plant]] = {
    "only_known_kinds_are_made": [
        lambda s: s.add("Secret", "keys", data={}),
        lambda s: s.add("Ingress", "ray", spec={}),
        lambda s: s.add("TLSRoute", "ray", spec={}),
        lambda s: s.add("ClusterRoleBinding", "ray"),
        lambda s: s.add("Deployment", "ray", spec={}),
        lambda s: s.add("RayService", "ray", spec={}),
        lambda s: s.add("PersistentVolume", "host", spec={"hostPath": {"path": "/"}}),
    ],
    "ray_asks_for_a_token": [
        lambda s: without("authOptions")(s.ray),
        lambda s: set_to("disabled", "rayClusterSpec", "authOptions", "mode")(s.job),
        lambda s: more(s.container(), "env", {"name": "RAY_AUTH_MODE", "value": "disabled"}),
        lambda s: set_to("disabled", "data", "RAY_AUTH_MODE")(
            s.get("ConfigMap", "pmg-environment")
        ),
    ],
    "nothing_talks_but_what_must": [
        lambda s: more(s.ingress("job-server")[0], "from", EVERYBODY),
        lambda s: s.ingress("job-server").append({"ports": [{"port": 8265}]}),
        lambda s: set_to([], "from")(s.ingress("job-server")[0]),
        lambda s: more(s.ingress("job-server")[0], "ports", {"port": 10001}),
        lambda s: more(s.ingress("job-server")[0], "ports", {"port": 6000, "endPort": 7000}),
        lambda s: more(s.ingress("job-server")[0], "ports", {"port": "gcs-server"}),
        lambda s: more(s.ingress("job-server")[0], "ports", {"protocol": "TCP"}),
        lambda s: more(s.ingress("metrics")[0], "from", {"podSelector": {}}),
        lambda s: s.ingress("metrics")[0].pop("ports"),
        lambda s: s.ingress("ray-nodes")[0].pop("from"),
        lambda s: s.ingress("ray-nodes")[0]["from"][0].pop("podSelector"),
        lambda s: more(s.ingress("postgres")[0], "from", EVERYBODY),
        lambda s: more(s.ingress("object-store")[0], "from", {"podSelector": {}}),
        lambda s: s.egress("clients").append(ANYWHERE),
        lambda s: s.egress("clients").append(ANYWHERE | {"ports": [{"port": 8443}]}),
        lambda s: s.egress("names")[0].pop("to"),
        lambda s: s.egress("names")[0]["to"][0].pop("podSelector"),
        lambda s: s.egress("ray-nodes").append({"to": [EVERYBODY]}),
        lambda s: s.egress("autoscaler").append({}),
        lambda s: s.open(
            {"podSelector": {"matchLabels": {"pmg/role": "phantom"}}, "ingress": [{}]}
        ),
        lambda s: s.open({"podSelector": {}, "egress": [{}]}),
        lambda s: s.open({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{}]}),
        lambda s: s.open(
            {
                "podSelector": {
                    "matchExpressions": [{"key": "pmg/role", "operator": "NotIn", "values": ["x"]}]
                },
                "ingress": [{}],
            }
        ),
    ],
    "no_address_is_open_but_the_api_servers": [
        lambda s: more(s.ingress("job-server")[0], "from", {"ipBlock": {"cidr": "10.0.0.7/32"}}),
        lambda s: s.egress("names").append({"to": [{"ipBlock": {"cidr": "10.0.0.0/28"}}]}),
    ],
    "what_has_to_talk_can": [
        lambda s: s.drop("NetworkPolicy", "job-server"),
        lambda s: s.drop("NetworkPolicy", "names"),
        lambda s: s.drop("NetworkPolicy", "postgres"),
        lambda s: s.drop("NetworkPolicy", "metrics"),
        lambda s: s.egress("ray-nodes").pop(),
    ],
    "all_pods_are_closed_both_ways_by_default": [
        lambda s: s.drop("NetworkPolicy", "deny-all"),
        lambda s: set_to(["Ingress"], "spec", "policyTypes")(s.get("NetworkPolicy", "deny-all")),
    ],
    "nothing_is_exposed_outside_the_cluster": [
        lambda s: set_to("NodePort", "spec", "type")(s.get("Service", "pmg-postgres")),
        lambda s: set_to(["192.0.2.1"], "spec", "externalIPs")(s.get("Service", "pmg-postgres")),
        lambda s: s.add("Service", "away", spec={"type": "ExternalName", "externalName": "a.b"}),
        lambda s: set_to("LoadBalancer", "headGroupSpec", "serviceType")(s.ray),
        lambda s: set_to(True, "rayClusterSpec", "headGroupSpec", "enableIngress")(s.job),
        lambda s: set_to({"spec": {"externalIPs": []}}, "headGroupSpec", "headService")(s.ray),
        lambda s: set_to(30000, "ports", 0, "hostPort")(s.container()),
    ],
    "nothing_runs_as_root": [
        lambda s: without(SECURITY, "runAsNonRoot")(s.head),
        lambda s: set_to(0, SECURITY, "runAsUser")(s.postgres),
        lambda s: set_to(0, SECURITY, "runAsGroup")(s.postgres),
        lambda s: set_to(0, SECURITY, "fsGroup")(s.postgres),
        lambda s: set_to(1000, SECURITY, "runAsUser")(s.container()),
        lambda s: set_to(True, SECURITY, "privileged")(s.container("submitter")),
    ],
    "root_file_systems_are_read_only": [
        lambda s: without(SECURITY, "readOnlyRootFilesystem")(s.container()),
        lambda s: without(SECURITY)(s.ray["autoscalerOptions"]),
        lambda s: more(s.submitter, "initContainers", {"name": "first", "image": "busybox:1"}),
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
    "pods_ask_for_nothing_else": [
        lambda s: set_to([{"name": "kernel.msgmax", "value": "1"}], SECURITY, "sysctls")(s.head),
        lambda s: set_to("Unmasked", SECURITY, "procMount")(s.container()),
        lambda s: set_to(True, "shareProcessNamespace")(s.submitter),
        lambda s: set_to(True, "hostNetwork")(s.gpu),
        lambda s: set_to("a-node", "nodeName")(s.gpu),
        lambda s: set_to("system-node-critical", "priorityClassName")(s.head),
        lambda s: more(s.gpu, "ephemeralContainers", {"name": "look"}),
        lambda s: without("enableServiceLinks")(s.gpu),
        lambda s: set_to(["--password", "x"], "args")(s.container("submitter")),
        lambda s: set_to([{"name": "runs", "devicePath": "/dev/x"}], "volumeDevices")(
            s.container()
        ),
        lambda s: set_to("10.0.0.1", "livenessProbe", "httpGet", "host")(s.container()),
        lambda s: set_to({"exec": {"command": ["x"]}}, "lifecycle", "postStart")(s.container()),
        lambda s: set_to(
            {"container.apparmor.security.beta.kubernetes.io/ray-worker": "unconfined"},
            *("rayClusterSpec", "workerGroupSpecs", 1, "template", "metadata", "annotations"),
        )(s.job),
    ],
    "every_container_has_requests_and_limits": [
        lambda s: without("resources", "limits", "memory")(s.container()),
        lambda s: without("resources", "limits", "ephemeral-storage")(s.container()),
        lambda s: without("resources")(s.container("submitter")),
        lambda s: without("resources", "requests")(s.ray["autoscalerOptions"]),
        lambda s: set_to("640Gi", "resources", "requests", "memory")(s.container()),
        lambda s: set_to("0", "resources", "requests", "cpu")(s.container()),
    ],
    "service_account_tokens_are_mounted_where_used": [
        lambda s: without("automountServiceAccountToken")(s.gpu),
        lambda s: without("serviceAccountName")(s.submitter),
        lambda s: without("automountServiceAccountToken")(s.get("ServiceAccount", "pmg-node")),
        lambda s: set_to([{"name": "a-token"}], "secrets")(s.get("ServiceAccount", "pmg-node")),
        lambda s: s.container("head")["volumeMounts"].append({"name": "api-access"}),
        lambda s: s.ray["autoscalerOptions"]["volumeMounts"].pop(),
    ],
    "accounts_have_no_rights_that_they_do_not_use": [
        lambda s: s.get("Role", "pmg-autoscaler")["rules"][0]["verbs"].append("delete"),
        lambda s: s.get("Role", "pmg-autoscaler")["rules"][0]["resources"].append("secrets"),
        lambda s: set_to("pmg-node", "subjects", 0, "name")(s.get("RoleBinding", "pmg-autoscaler")),
        lambda s: set_to("default", "subjects", 0, "namespace")(
            s.get("RoleBinding", "pmg-autoscaler")
        ),
        lambda s: set_to("pmg-head", "serviceAccountName")(s.gpu),
        lambda s: set_to({"kind": "ClusterRole", "name": "cluster-admin"}, "roleRef")(
            s.get("RoleBinding", "pmg-autoscaler")
        ),
    ],
    "secrets_are_references": [
        lambda s: more(s.container(), "env", {"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}),
        lambda s: more(s.container(), "env", {"name": "DB_PASS", "value": "x"}),
        lambda s: more(s.container(), "envFrom", {"secretRef": {"name": "all"}}),
        lambda s: more(s.ray["autoscalerOptions"], "envFrom", {"secretRef": {"name": "all"}}),
        lambda s: set_to("x", "data", "PGPASSWORD")(s.get("ConfigMap", "pmg-environment")),
        lambda s: set_to({"password": "eA=="}, "binaryData")(s.get("ConfigMap", "pmg-settings")),
    ],
    "no_secret_stands_in_a_text": [
        lambda s: set_to("postgresql://pmg:word@host/db", "data", "URL")(
            s.get("ConfigMap", "pmg-settings")
        ),
        lambda s: set_to("aws_secret_access_key: abc", "data", "run.yaml")(
            s.get("ConfigMap", "pmg-settings")
        ),
        lambda s: set_to("-----BEGIN RSA PRIVATE KEY-----", "data", "id")(
            s.get("ConfigMap", "pmg-settings")
        ),
        lambda s: set_to("python -m tune.search postgresql://:word@host/db", "entrypoint")(s.job),
        lambda s: set_to("PGPASSWORD=abc python -m launch.train", "entrypoint")(s.job),
        lambda s: set_to(["postgres", "--password", "x"], "command")(s.container("postgres")),
        lambda s: set_to(["sh", "-c", "serve --password x"], "command")(s.container("postgres")),
    ],
    "images_are_pinned": [
        lambda s: set_to("pmg-gpu", "image")(s.container()),
        lambda s: set_to("pmg-gpu:latest", "image")(s.container("submitter")),
        lambda s: set_to("registry.example.org/pmg-gpu:0.1.0", "image")(s.container("postgres")),
        lambda s: set_to("localhost:5000/pmg-gpu:0.1.0", "image")(s.container()),
        lambda s: set_to("localhost:5000/pmg-gpu", "image")(s.container()),
        lambda s: set_to("somebody/else:1", "image")(s.container()),
        lambda s: set_to("rayproject/ray:nightly", "image")(s.ray["autoscalerOptions"]),
    ],
    "the_namespace_is_restricted": [
        lambda s: set_to("baseline", "metadata", "labels", "pod-security.kubernetes.io/enforce")(
            s.get("Namespace")
        ),
        lambda s: set_to(
            "v1.0", "metadata", "labels", "pod-security.kubernetes.io/enforce-version"
        )(s.get("Namespace")),
        lambda s: s.drop("Namespace", "pmg"),
        lambda s: s.add("Namespace", "another"),
        lambda s: set_to("default", "metadata", "namespace")(s.get("RayCluster")),
    ],
    "volumes_are_of_restricted_kinds": [
        lambda s: more(s.gpu, "volumes", {"name": "host", "hostPath": {"path": "/"}}),
        lambda s: without("emptyDir", "sizeLimit")(s.gpu["volumes"][0]),
    ],
    "secrets_and_data_are_where_they_are_needed": [
        lambda s: more(
            s.gpu, "volumes", {"name": "i", "persistentVolumeClaim": {"claimName": "pmg-input"}}
        ),
        lambda s: more(
            s.gpu, "volumes", {"name": "o", "persistentVolumeClaim": {"claimName": "pmg-output"}}
        ),
        lambda s: more(s.head, "volumes", {"name": "k", "secret": {"secretName": "pmg-pseudonym"}}),
        lambda s: more(
            s.gpu,
            "volumes",
            {"name": "k", "projected": {"sources": [{"secret": {"name": "pmg-pseudonym"}}]}},
        ),
        lambda s: more(s.container(), "env", secret("pmg-pseudonym", "key")),
        lambda s: more(s.container(), "env", secret("pmg-postgres", "password", "PGPASSWORD")),
        lambda s: more(s.container("submitter"), "env", secret("pmg-object-store", "secret-key")),
        lambda s: more(s.container("head"), "env", secret("another", "key")),
        lambda s: without("persistentVolumeClaim", "readOnly")(s.input),
    ],
    "what_a_pod_names_is_there": [
        lambda s: set_to("another", "serviceAccountName")(s.gpu),
        lambda s: more(s.container(), "envFrom", {"configMapRef": {"name": "another"}}),
        lambda s: more(s.container(), "volumeMounts", {"name": "another", "mountPath": "/x"}),
        lambda s: s.drop("PersistentVolumeClaim", "pmg-runs"),
        lambda s: s.drop("ConfigMap", "pmg-settings"),
    ],
    "behind_every_service_somebody_listens": [
        lambda s: set_to({"pmg/role": "x"}, "spec", "selector")(s.get("Service", "pmg-postgres")),
        lambda s: set_to("x", "spec", "ports", 0, "targetPort")(s.get("Service", "pmg-postgres")),
    ],
    "queues_lead_to_one_another": [
        lambda s: set_to("x", "spec", "clusterQueue")(s.get("LocalQueue")),
        lambda s: set_to({"matchLabels": {}}, "spec", "namespaceSelector")(s.get("ClusterQueue")),
        lambda s: s.drop("ResourceFlavor", "pmg-gpu"),
        lambda s: set_to("x", "metadata", "labels", "kueue.x-k8s.io/queue-name")(
            s.get("RayJob", "pmg-tune")
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
    "drains_leave_heads_and_training_alone": [
        lambda s: s.drop("PodDisruptionBudget", "pmg-ray"),
        lambda s: set_to({"x": "y"}, "spec", "selector", "matchLabels")(
            s.get("PodDisruptionBudget", "pmg-ray")
        ),
        lambda s: set_to(1, "spec", "minAvailable")(s.get("PodDisruptionBudget", "pmg-ray")),
    ],
    "jobs_end": [
        lambda s: without("ttlSecondsAfterFinished")(s.job),
        lambda s: without("activeDeadlineSeconds")(s.job),
        lambda s: without("backoffLimit")(s.job),
        lambda s: set_to(False, "shutdownAfterJobFinishes")(s.job),
        lambda s: without("spec", "activeDeadlineSeconds")(s.get("Job", "pmg-phantom")),
    ],
    "jobs_have_clusters_of_their_own": [
        lambda s: set_to({"ray.io/cluster": "pmg"}, "clusterSelector")(s.job),
        lambda s: set_to("env_vars: {MLFLOW_TRACKING_TOKEN: x}", "runtimeEnvYAML")(s.job),
    ],
    "the_head_does_no_work": [
        lambda s: without("headGroupSpec", "rayStartParams", "num-cpus")(s.ray),
    ],
    "the_standing_cluster_scales_from_nothing_and_survives_its_head": [
        lambda s: set_to(1, "workerGroupSpecs", 1, "minReplicas")(s.ray),
        lambda s: set_to("v1", "autoscalerOptions", "version")(s.ray),
        lambda s: without("gcsFaultToleranceOptions")(s.ray),
    ],
    "nodes_with_gpus_are_for_pods_that_use_them": [
        lambda s: without("tolerations")(s.gpu),
        lambda s: set_to([{"operator": "Exists"}], "tolerations")(s.gpu),
        lambda s: set_to(s.gpu["tolerations"], "tolerations")(s.submitter),
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


def test_a_shared_cluster_bounds_what_the_namespace_holds() -> None:
    quota = Stack("gpu-cluster").get("ResourceQuota")["spec"]["hard"]
    assert {"requests.cpu", "requests.memory", "requests.nvidia.com/gpu"} <= quota.keys()
    assert (quota["services.nodeports"], quota["services.loadbalancers"]) == ("0", "0")
