"""Who may ask what of Ray and of the API server: tokens, accounts and their rights."""

from __future__ import annotations

from collections.abc import Iterator

from built import Manifest, every_container, objects, pods, rays

from policies.rule import rule


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
