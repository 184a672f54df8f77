"""What a cluster administrator demands: one function a rule, which yields its violations.

By default the answer is no: kinds, fields, rights, connections, and who sees which secret or volume
are lists of what is allowed, so that what nobody thought of is noticed too.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator

from built import Manifest, Pod, amount, every_container, objects, pods, rays
from network import OUTSIDE, Network, Where, matches

__all__ = ["RULES"]

Rule = Callable[[list[Manifest]], Iterator[str]]
RULES: list[Rule] = []


def rule(check: Rule) -> Rule:
    RULES.append(check)
    return check


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
def ray_asks_for_a_token(manifests: list[Manifest]) -> Iterator[str]:
    for name, ray in rays(manifests):
        if ray.get("authOptions") != {"mode": "token"}:
            yield name
    given = {
        **{
            name: [one["name"] for one in c.get("env", ())]
            for name, c, _ in every_container(manifests)
        },
        **{m["metadata"]["name"]: m.get("data", {}) for m in objects(manifests, "ConfigMap")},
    }
    for name, variables in given.items():
        if any(variable.startswith("RAY_AUTH") for variable in variables):
            yield f"{name} says otherwise than the operator"


_NODES = ("head", "a job's head", "cpu", "gpu")
_ROLES = ("head", "cpu", "gpu", "client", "postgres", "object-store", "phantom", "fetch")
_PEERS: dict[str, Where] = {
    **{role: ("pmg", {"pmg/role": role}) for role in _ROLES},
    "head": ("pmg", {"pmg/role": "head", "ray.io/cluster": "pmg"}),
    "a job's head": ("pmg", {"pmg/role": "head", "ray.io/cluster": "pmg-train-x7k2p"}),
    "a pod without role": ("pmg", {"app": "anything"}),
    "operator": ("kuberay-system", {"app.kubernetes.io/name": "kuberay-operator"}),
    "prometheus": ("monitoring", {"app.kubernetes.io/name": "prometheus"}),
    "dns": ("kube-system", {"k8s-app": "kube-dns"}),
    "grafana": ("monitoring", {"app.kubernetes.io/name": "grafana"}),
    "kube-system": ("kube-system", {"k8s-app": "metrics-server"}),
    # a name counts in this namespace only
    "another's client": ("default", {"pmg/role": "client"}),
    "another's head": ("default", {"pmg/role": "head"}),
    "outside": OUTSIDE,
}
_ALL_PORTS = range(1, 65536)
_TALK: dict[tuple[str, str], Iterable[int]] = {
    **dict.fromkeys(itertools.product(_NODES, _NODES), _ALL_PORTS),
    **{(node, "postgres"): (5432,) for node in _NODES},
    **{(node, "object-store"): (9000,) for node in _NODES},
    **{("prometheus", node): (8080,) for node in _NODES},
    **{(own, "dns"): (53,) for own in (*_ROLES, "a job's head", "a pod without role")},
    **{(who, head): (8265,) for who in ("client", "operator") for head in _NODES[:2]},
}


@rule
def nothing_talks_but_what_must(manifests: list[Manifest]) -> Iterator[str]:
    network = Network(manifests)
    for asks, answers in itertools.product(_PEERS, _PEERS):
        source, target = _PEERS[asks], _PEERS[answers]
        for port in network.ports() - set(_TALK.get((asks, answers), ())):
            if source[0] == "pmg" and network.lets_out(source, target, port):
                yield f"{asks} may ask port {port} of {answers}"
            if target[0] == "pmg" and network.lets_in(source, target, port):
                yield f"{answers} answers {asks} on port {port}"


@rule
def no_address_is_open_but_the_api_servers(manifests: list[Manifest]) -> Iterator[str]:
    """Of an address nobody knows whose it is, nor does the model of the network."""
    for one in objects(manifests, "NetworkPolicy"):
        ways = [*one["spec"].get("ingress", ()), *one["spec"].get("egress", ())]
        peers = [peer for way in ways for side in ("from", "to") for peer in way.get(side, ())]
        name = one["metadata"]["name"]
        if any("ipBlock" in peer for peer in peers) and name != "autoscaler":
            yield name


@rule
def what_has_to_talk_can(manifests: list[Manifest]) -> Iterator[str]:
    network = Network(manifests)
    for (asks, answers), ports in _TALK.items():
        for port in (6379, 20000) if ports is _ALL_PORTS else ports:
            if not network.reaches(_PEERS[asks], _PEERS[answers], port):
                yield f"{asks} does not reach port {port} of {answers}"


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
def nothing_is_exposed_outside_the_cluster(manifests: list[Manifest]) -> Iterator[str]:
    """What else could do it is no known kind, or no field that a pod may have."""
    for one in objects(manifests, "Service"):
        more = one["spec"].keys() - {"type", "selector", "ports"}
        if one["spec"].get("type") != "ClusterIP" or more:
            yield f"Service {one['metadata']['name']}: {one['spec'].get('type')} {more}"
    for name, ray in rays(manifests):
        head = ray["headGroupSpec"]
        more = head.keys() - {"serviceType", "rayStartParams", "template"}
        if head["serviceType"] != "ClusterIP" or more:
            yield f"{name}: its head's service is {head['serviceType']} {more}"
    for name, container, _ in every_container(manifests):
        if any(port.keys() - {"name", "containerPort"} for port in container.get("ports", ())):
            yield f"{name}: a port of the host"


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
        if more or pod.role not in _ROLES:
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
def service_account_tokens_are_mounted_where_used(manifests: list[Manifest]) -> Iterator[str]:
    for one in objects(manifests, "ServiceAccount"):
        more = one.keys() - {"apiVersion", "kind", "metadata", "automountServiceAccountToken"}
        if one.get("automountServiceAccountToken") is not False or more:
            yield f"ServiceAccount {one['metadata']['name']} {more}"
    for pod in pods(manifests):
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.name}: automounted"
        if pod.spec.get("serviceAccountName", "default") == "default":
            yield f"{pod.name}: the namespace's default account"
    for name, container, pod in every_container(manifests):
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


_RIGHTS = [
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "patch"]},
    {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": ["get", "patch"]},
]


@rule
def accounts_have_no_rights_that_they_do_not_use(manifests: list[Manifest]) -> Iterator[str]:
    """The autoscaler's are all that there are."""
    for one in objects(manifests, "Role"):
        if one["rules"] != _RIGHTS:
            yield f"Role {one['metadata']['name']}: {one['rules']}"
    for one in objects(manifests, "RoleBinding"):
        if one["subjects"] != [{"kind": "ServiceAccount", "name": "pmg-head", "namespace": "pmg"}]:
            yield f"RoleBinding {one['metadata']['name']}: {one['subjects']}"
        if (one["roleRef"]["kind"], one["roleRef"]["name"]) != ("Role", "pmg-autoscaler"):
            yield f"RoleBinding {one['metadata']['name']}: {one['roleRef']}"
    for pod in pods(manifests):
        scales = pod.ray is not None and pod.ray.get("enableInTreeAutoscaling")
        if pod.spec.get("serviceAccountName") == "pmg-head" and not (scales and pod.role == "head"):
            yield f"{pod.name}: has the autoscaler's account"


_SECRET = r"(?:secret|token|passw|pwd|credential|(?:access|private|api)[_-]?key)[\w-]*"
_NAMES_A_SECRET = re.compile(rf"{_SECRET}|pass$|pass_", re.I)
_NAMES_A_FILE = re.compile(r"_(FILE|PATH)$")
_TELLS_A_SECRET = re.compile(
    rf"""://[^/\s:@]*:[^/\s@]+@                        # a URL with a password
      | -----BEGIN\ [A-Z ]*PRIVATE\ KEY
      | (?:--[\w-]*{_SECRET}[=\ ] | {_SECRET}['"]?\s*[:=])\s*['"]?[^\s'"/$]""",
    re.I | re.X,
)


def _is_secret(name: str) -> bool:
    return bool(_NAMES_A_SECRET.search(name)) and not _NAMES_A_FILE.search(name)


@rule
def secrets_are_references(manifests: list[Manifest]) -> Iterator[str]:
    for one in objects(manifests, "ConfigMap"):
        for key in {**one.get("data", {}), **one.get("binaryData", {})}:
            if _is_secret(key):
                yield f"ConfigMap {one['metadata']['name']}: {key}"
    for name, container, _ in every_container(manifests):
        for variable in container.get("env", ()):
            if _is_secret(variable["name"]) and "secretKeyRef" not in variable.get("valueFrom", {}):
                yield f"{name}: {variable['name']}"
        if any("secretRef" in source for source in container.get("envFrom", ())):
            yield f"{name}: takes all of a secret"


@rule
def no_secret_stands_in_a_text(manifests: list[Manifest]) -> Iterator[str]:
    for one in manifests:
        if any(_TELLS_A_SECRET.search(text) for text in _texts(one)):
            yield f"{one['kind']} {one['metadata']['name']}"


def _texts(node: object) -> Iterator[str]:
    """Every string, and a list of them as the command that it may be."""
    if isinstance(node, list) and all(isinstance(word, str) for word in node):
        yield " ".join(node)
    elif isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        yield from (text for value in node.values() for text in _texts(value))
    elif isinstance(node, list):
        yield from (text for value in node for text in _texts(value))


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


@rule
def volumes_are_of_restricted_kinds(manifests: list[Manifest]) -> Iterator[str]:
    kinds = {"emptyDir", "persistentVolumeClaim", "configMap", "secret", "projected"}
    for pod in pods(manifests):
        for volume in pod.spec.get("volumes", ()):
            if volume.keys() - {"name"} - kinds:
                yield f"{pod.name}: {volume['name']}"
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"{pod.name}: {volume['name']} has no limit"


# Names of pods by secret or claim; docs/security.md says why.
_MAY_SEE = {
    "pmg-input": r"pmg-(ingest|translate|evaluate)-cpu|pmg-phantom",
    "pmg-output": r"pmg-(translate|evaluate)-cpu|pmg-fetch",
    "pmg-runs": r"pmg(-\w+)?-(head|cpu|gpu)",
    "pmg-pseudonym": r"pmg-(ingest|translate|evaluate)-cpu",
    "pmg-postgres": r"pmg(-tune)?-(head|cpu)|pmg-postgres",
    "pmg-object-store": r"pmg(-\w+)?-(head|cpu|gpu)|pmg-object-store",
    "pmg-mlflow": r"pmg(-\w+)?-(head|cpu|gpu)",
}
_READS_ONLY = {"pmg-input": r".*-cpu", "pmg-output": r"pmg-fetch"}


@rule
def secrets_and_data_are_where_they_are_needed(manifests: list[Manifest]) -> Iterator[str]:
    for pod in pods(manifests):
        for name, may_write in _seen(pod):
            if not re.fullmatch(_MAY_SEE.get(name, ""), pod.name):
                yield f"{pod.name} sees {name}"
            if may_write and re.fullmatch(_READS_ONLY.get(name, ""), pod.name):
                yield f"{pod.name} could change {name}"


def _seen(pod: Pod) -> Iterator[tuple[str, bool]]:
    """Every secret and claim that the pod names, and whether it may be written to."""
    for container in pod.containers:
        for variable in container.get("env", ()):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                yield reference["name"], False
    for volume in pod.spec.get("volumes", ()):
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]
            yield claim["claimName"], not claim.get("readOnly")
        if "secret" in volume:
            yield volume["secret"]["secretName"], False
        for source in volume.get("projected", {}).get("sources", ()):
            if "secret" in source:
                yield source["secret"]["name"], False


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
