"""What a cluster administrator demands: one function a rule, which yields its violations."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from decimal import Decimal

import yaml
from built import Manifest, Pod, objects, pods, rays
from network import OUTSIDE, Where, lets_in, lets_through, reaches

__all__ = ["RULES", "gibibytes"]

Rule = Callable[[list[Manifest]], Iterator[str]]
RULES: list[Rule] = []

RAY_ROLES = ("head", "cpu", "gpu")
_RAY_PORTS = (6379, 8265, 10001, 52365, 20000)
_OPERATOR = ("kuberay-system", {"app.kubernetes.io/name": "kuberay-operator"})
_PROMETHEUS = ("monitoring", {"app.kubernetes.io/name": "prometheus"})
_STRANGERS = (
    ("pmg", {"app": "anything"}),
    ("default", {}),
    ("default", {"pmg/role": "client"}),  # a name counts in this namespace only
    ("default", {"pmg/role": "head"}),
    ("monitoring", {"app.kubernetes.io/name": "grafana"}),
)
_IDENTIFIED = {"pmg-ingest", "pmg-translate", "pmg-evaluate", "pmg-phantom"}
_RESULTS = {"pmg-translate", "pmg-evaluate", "pmg-fetch"}
_SEARCHES = {"pmg", "pmg-tune"}
_SECRET = re.compile(r"secret|token|passw|credential|(access|private|api)_?key", re.I)
_WAY_IN = re.compile(r"\w*Ingress|\w*Route|Gateway")
_NO_SECRET = re.compile(r"_(FILE|PATH|MODE)$")
_UNITS = {"": 0, "Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40}


def rule(check: Rule) -> Rule:
    RULES.append(check)
    return check


def gibibytes(quantity: str | int) -> float:
    number, unit = re.fullmatch(r"([0-9.]+)([KMGT]i)?", str(quantity)).groups("")  # type: ignore[union-attr]
    return float(Decimal(number) * 2 ** _UNITS[unit] / 2**30)


def _containers(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest, Pod]]:
    """Those that the operator adds too."""
    for pod in pods(manifests):
        whole = Pod(pod.name, pod.as_object(), pod.ray)
        for container in whole.containers:
            yield f"{pod.name}/{container['name']}", container, whole


@rule
def ray_asks_for_a_token(manifests: list[Manifest]) -> Iterator[str]:
    for name, ray in rays(manifests):
        if ray.get("authOptions", {}).get("mode") != "token":
            yield name


@rule
def only_own_pods_and_named_clients_reach_ray(manifests: list[Manifest]) -> Iterator[str]:
    for one in objects(manifests, "NetworkPolicy"):
        peers = [peer for way in one["spec"].get("ingress", ()) for peer in way.get("from", ())]
        if any("ipBlock" in peer for peer in peers):  # whose pods or people nobody knows
            yield f"{one['metadata']['name']} lets addresses in"
    for port in _RAY_PORTS:
        for stranger in (*_STRANGERS, _PROMETHEUS, *([_OPERATOR] if port != 8265 else [])):
            for role in RAY_ROLES:
                if lets_in(manifests, stranger, ("pmg", {"pmg/role": role}), port):
                    yield f"{stranger} reaches port {port} of {role}"
        for role in RAY_ROLES:
            client = ("pmg", {"pmg/role": "client"})
            if (port, role) != (8265, "head") and lets_in(
                manifests, client, ("pmg", {"pmg/role": role}), port
            ):
                yield f"a client reaches port {port} of {role}"


@rule
def what_has_to_talk_can(manifests: list[Manifest]) -> Iterator[str]:
    head = ("pmg", {"pmg/role": "head"})
    needed: list[tuple[Where, Where, int]] = [
        (("pmg", {"pmg/role": a}), ("pmg", {"pmg/role": b}), port)
        for a in RAY_ROLES
        for b in RAY_ROLES
        for port in (6379, 20000)
    ]
    needed += [(("pmg", {"pmg/role": "client"}), head, 8265), (_OPERATOR, head, 8265)]
    for role in RAY_ROLES:
        node = ("pmg", {"pmg/role": role})
        needed.append((node, ("pmg", {"pmg/role": "postgres"}), 5432))
        needed.append((node, ("pmg", {"pmg/role": "object-store"}), 9000))
        needed.append((_PROMETHEUS, node, 8080))
        needed.append((node, ("kube-system", {"k8s-app": "kube-dns"}), 53))
    for source, target, port in needed:
        if not reaches(manifests, source, target, port):
            yield f"{source} does not reach port {port} of {target}"


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
def nothing_reaches_the_outside(manifests: list[Manifest]) -> Iterator[str]:
    """But the API server's one address, and DNS."""
    for role in sorted({pod.template["metadata"]["labels"]["pmg/role"] for pod in pods(manifests)}):
        own = ("pmg", {"pmg/role": role})
        for target in (*_STRANGERS[1:], OUTSIDE):
            for port in (53, 80, 443, 5432, 6443, 9000):
                if lets_through(manifests, "egress", own, target, port):
                    yield f"{role} reaches port {port} of {target}"


@rule
def data_stores_answer_ray_alone(manifests: list[Manifest]) -> Iterator[str]:
    for role, port in (("postgres", 5432), ("object-store", 9000)):
        for stranger in (*_STRANGERS, _OPERATOR, _PROMETHEUS, ("pmg", {"pmg/role": "client"})):
            if lets_in(manifests, stranger, ("pmg", {"pmg/role": role}), port):
                yield f"{stranger} reaches {role}"


@rule
def nothing_is_exposed_outside_the_cluster(manifests: list[Manifest]) -> Iterator[str]:
    for one in objects(manifests, "Service"):
        if one["spec"].get("type", "ClusterIP") != "ClusterIP" or one["spec"].get("externalIPs"):
            yield f"Service {one['metadata']['name']}"
    yield from (one["kind"] for one in manifests if _WAY_IN.fullmatch(one["kind"]))
    for name, ray in rays(manifests):
        head = ray["headGroupSpec"]
        if head.get("serviceType", "ClusterIP") != "ClusterIP" or head.get("enableIngress"):
            yield f"{name}: its head's service"
        if head.get("headService", {}).get("spec", {}).get("type", "ClusterIP") != "ClusterIP":
            yield f"{name}: its head's service"
    for pod in pods(manifests):
        if any(pod.spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{pod.name}: the host's namespaces"
    for name, container, _ in _containers(manifests):
        if any("hostPort" in port for port in container.get("ports", ())):
            yield f"{name}: a port of the host"


@rule
def nothing_runs_as_root(manifests: list[Manifest]) -> Iterator[str]:
    for pod in pods(manifests):
        context = pod.spec.get("securityContext", {})
        if not context.get("runAsNonRoot") or not context.get("runAsUser", 0) > 10000:
            yield pod.name
    for name, container, _ in _containers(manifests):
        own = container.get("securityContext", {})
        if (
            own.get("runAsNonRoot") is False
            or own.get("runAsUser", 1) == 0
            or own.get("privileged")
        ):
            yield name


@rule
def root_file_systems_are_read_only(manifests: list[Manifest]) -> Iterator[str]:
    for name, container, _ in _containers(manifests):
        if not container.get("securityContext", {}).get("readOnlyRootFilesystem"):
            yield name


@rule
def capabilities_are_dropped(manifests: list[Manifest]) -> Iterator[str]:
    for name, container, _ in _containers(manifests):
        context = container.get("securityContext", {})
        if context.get("allowPrivilegeEscalation") is not False:
            yield f"{name}: may gain privileges"
        if context.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{name}: keeps capabilities"


@rule
def seccomp_is_the_runtimes_default(manifests: list[Manifest]) -> Iterator[str]:
    for name, container, pod in _containers(manifests):
        profile = pod.spec.get("securityContext", {}).get("seccompProfile")
        profile = container.get("securityContext", {}).get("seccompProfile", profile)
        if profile != {"type": "RuntimeDefault"}:
            yield name


@rule
def nothing_else_is_asked_of_the_kernel(manifests: list[Manifest]) -> Iterator[str]:
    """What PodSecurity's `restricted` forbids beside what stands above."""
    asked = ("sysctls", "seLinuxOptions", "windowsOptions", "appArmorProfile", "procMount")
    for pod in pods(manifests):
        if pod.spec.get("shareProcessNamespace"):
            yield f"{pod.name}: its containers see one another's processes"
    for name, container, pod in _containers(manifests):
        for context in (pod.spec.get("securityContext", {}), container.get("securityContext", {})):
            yield from (f"{name}: {key}" for key in asked if key in context)


@rule
def every_container_has_requests_and_limits(manifests: list[Manifest]) -> Iterator[str]:
    for name, container, _ in _containers(manifests):
        for side in ("requests", "limits"):
            missing = {"cpu", "memory"} - container.get("resources", {}).get(side, {}).keys()
            if missing:
                yield f"{name}: no {side} of {', '.join(sorted(missing))}"


@rule
def service_account_tokens_are_mounted_where_used(manifests: list[Manifest]) -> Iterator[str]:
    for one in objects(manifests, "ServiceAccount"):
        if one.get("automountServiceAccountToken") is not False:
            yield f"ServiceAccount {one['metadata']['name']}"
    for pod in pods(manifests):
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.name}: automounted"
        if pod.spec.get("serviceAccountName", "default") == "default":
            yield f"{pod.name}: the namespace's default account"
    for name, container, pod in _containers(manifests):
        tokens = {
            volume["name"]
            for volume in pod.spec.get("volumes", ())
            for source in volume.get("projected", {}).get("sources", ())
            if "serviceAccountToken" in source
        }
        mounted = {mount["name"] for mount in container.get("volumeMounts", ())}
        if tokens & mounted and container["name"] != "autoscaler":
            yield f"{name}: has a token"
        if container["name"] == "autoscaler" and not tokens & mounted:
            yield f"{name}: has no token, and cannot scale"


@rule
def accounts_have_no_rights_that_they_do_not_use(manifests: list[Manifest]) -> Iterator[str]:
    allowed = {
        ("", "pods"): {"get", "list", "watch", "patch"},
        ("ray.io", "rayclusters"): {"get", "patch"},
    }
    for one in objects(manifests, "Role", "ClusterRole"):
        for granted in one["rules"]:
            for group in granted["apiGroups"]:
                for resource in granted["resources"]:
                    more = set(granted["verbs"]) - allowed.get((group, resource), set())
                    if more:
                        yield f"{one['metadata']['name']}: {', '.join(sorted(more))} {resource}"
    for one in objects(manifests, "RoleBinding", "ClusterRoleBinding"):
        subjects = [(who["kind"], who["name"]) for who in one["subjects"]]
        if one["kind"] == "ClusterRoleBinding" or subjects != [("ServiceAccount", "pmg-head")]:
            yield f"{one['kind']} {one['metadata']['name']}: {subjects}"
        if (one["roleRef"]["kind"], one["roleRef"]["name"]) != ("Role", "pmg-autoscaler"):
            yield f"{one['kind']} {one['metadata']['name']}: {one['roleRef']['name']}"
    for pod in pods(manifests):
        scales = pod.ray is not None and pod.ray.get("enableInTreeAutoscaling")
        if pod.spec["serviceAccountName"] == "pmg-head" and not (scales and pod.role == "head"):
            yield f"{pod.name}: has the autoscaler's account"


@rule
def secrets_are_references(manifests: list[Manifest]) -> Iterator[str]:
    for one in objects(manifests, "Secret"):
        yield f"Secret {one['metadata']['name']} stands in the manifests"
    for one in objects(manifests, "ConfigMap"):
        for key in one.get("data", {}):
            if _SECRET.search(key) and not _NO_SECRET.search(key):
                yield f"ConfigMap {one['metadata']['name']}: {key}"
    for name, container, _ in _containers(manifests):
        for variable in container.get("env", ()):
            secret = _SECRET.search(variable["name"]) and not _NO_SECRET.search(variable["name"])
            if secret and "secretKeyRef" not in variable.get("valueFrom", {}):
                yield f"{name}: {variable['name']}"
        if any("secretRef" in source for source in container.get("envFrom", ())):
            yield f"{name}: takes all of a secret"


@rule
def no_secret_stands_in_a_text(manifests: list[Manifest]) -> Iterator[str]:
    for one in objects(manifests, "RayJob"):
        given = yaml.safe_load(one["spec"].get("runtimeEnvYAML", "{}")).get("env_vars", {})
        for key in given:
            if _SECRET.search(key) and not _NO_SECRET.search(key):
                yield f"RayJob {one['metadata']['name']}: {key} in its runtime environment"
    for one in manifests:
        for text in _texts(one):
            if re.search(r"://[^/\s:@]*:[^/\s@]+@", text):
                yield f"{one['kind']} {one['metadata']['name']}: a password in a URL"


def _texts(node: object) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        yield from (text for value in node.values() for text in _texts(value))
    elif isinstance(node, list):
        yield from (text for value in node for text in _texts(value))


@rule
def images_are_pinned(manifests: list[Manifest]) -> Iterator[str]:
    for name, container, _ in _containers(manifests):
        image, _, digest = container["image"].partition("@")
        tag = image.rpartition("/")[2].partition(":")[2]
        if not re.search(r"\d", tag):
            yield f"{name}: {container['image']} has no version"
        registry = "/" in image and "." in image.split("/")[0]  # else loaded into the one node
        if registry and not re.fullmatch("sha256:[0-9a-f]{64}", digest):
            yield f"{name}: {container['image']} has no digest"


@rule
def the_namespace_is_restricted(manifests: list[Manifest]) -> Iterator[str]:
    for one in objects(manifests, "Namespace"):
        for mode in ("enforce", "audit", "warn"):
            if one["metadata"]["labels"].get(f"pod-security.kubernetes.io/{mode}") != "restricted":
                yield f"{one['metadata']['name']}: {mode}"
    for one in manifests:
        cluster_wide = ("Namespace", "ClusterQueue", "ResourceFlavor")
        if one["kind"] not in cluster_wide and one["metadata"].get("namespace") != "pmg":
            yield f"{one['kind']} {one['metadata']['name']} is not in the namespace"


@rule
def volumes_are_of_restricted_kinds(manifests: list[Manifest]) -> Iterator[str]:
    kinds = {"emptyDir", "persistentVolumeClaim", "configMap", "secret", "projected"}
    for pod in pods(manifests):
        for volume in pod.spec.get("volumes", ()):
            if volume.keys() - {"name"} - kinds:
                yield f"{pod.name}: {volume['name']}"
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"{pod.name}: {volume['name']} has no limit"


@rule
def identified_data_and_the_key_are_where_they_are_needed(
    manifests: list[Manifest],
) -> Iterator[str]:
    for pod in pods(manifests):
        mounts = {m["name"]: m for c in pod.containers for m in c.get("volumeMounts", ())}
        job = pod.name.rpartition("-")[0] if pod.ray else pod.name
        for volume in pod.spec.get("volumes", ()):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            key = volume.get("secret", {}).get("secretName") == "pmg-pseudonym"
            if (claim == "pmg-input" or key) and job not in _IDENTIFIED:
                yield f"{pod.name}: {volume['name']}"
            if claim == "pmg-output" and job not in _RESULTS:
                yield f"{pod.name}: {volume['name']}"
            if (
                claim == "pmg-input"
                and pod.ray
                and not mounts.get(volume["name"], {"readOnly": True}).get("readOnly")
            ):
                yield f"{pod.name}: could change {volume['name']}"


@rule
def the_databases_password_is_where_searches_run(manifests: list[Manifest]) -> Iterator[str]:
    for name, container, pod in _containers(manifests):
        secrets = [one.get("valueFrom", {}).get("secretKeyRef") for one in container.get("env", ())]
        given = any(one and one["name"] == "pmg-postgres" for one in secrets)
        if given and not (pod.ray and pod.name.rpartition("-")[0] in _SEARCHES):
            yield name


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
        if gibibytes(shm["sizeLimit"]) < store + spare:
            yield f"{pod.name}: {shm['sizeLimit']} of shared memory for a store of {store:.1f} GiB"
        memory = gibibytes(pod.containers[0]["resources"]["limits"]["memory"])
        if gibibytes(shm["sizeLimit"]) > memory / 2:
            yield f"{pod.name}: shared memory takes over half of {memory} GiB"


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
def jobs_end(manifests: list[Manifest]) -> Iterator[str]:
    for one in objects(manifests, "RayJob"):
        spec, name = one["spec"], one["metadata"]["name"]
        for field in ("ttlSecondsAfterFinished", "activeDeadlineSeconds", "backoffLimit"):
            if not spec.get(field, 0) > 0:
                yield f"{name}: {field}"
        if not spec.get("shutdownAfterJobFinishes"):
            yield f"{name}: shutdownAfterJobFinishes"


@rule
def the_head_does_no_work(manifests: list[Manifest]) -> Iterator[str]:
    for name, ray in rays(manifests):
        params = ray["headGroupSpec"]["rayStartParams"]
        if (params.get("num-cpus"), params.get("num-gpus")) != ("0", "0"):
            yield name
        if ray.get("enableInTreeAutoscaling") and any(
            group["minReplicas"] != 0 for group in ray["workerGroupSpecs"]
        ):
            yield f"{name}: holds idle nodes"
