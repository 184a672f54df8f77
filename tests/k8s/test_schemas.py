"""Every built object is what three versions of Kubernetes, KubeRay and Kueue accept."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from built import BUILDS, K8S, NO_KUBECTL, Manifest, build, kustomize, pods
from cel_expr_python import cel

pytestmark = NO_KUBECTL

VERSIONS = ("1.33", "1.35", "1.37")
CRDS = Path(os.environ.get("PMG_K8S_CRDS") or K8S.parents[1] / "shared" / "k8s" / "crds")
NO_CRDS = pytest.mark.skipif(
    not CRDS.is_dir(),
    reason=f"RAY'S AND KUEUE'S OBJECTS WERE NOT CHECKED: no folder {CRDS}; PMG_K8S_CRDS names one",
)
# The Prometheus operator's own definitions are at hand nowhere; promtool checks what is in them.
NOT_HELD = {"PodMonitor", "PrometheusRule"}


@functools.cache
def definitions() -> dict[tuple[str, str], Manifest]:
    """Schemas by (apiVersion, kind), closed: a field that is not in them is an error."""
    found = {}
    for path in sorted(CRDS.glob("*.yaml")):
        crd = yaml.safe_load(path.read_text())["spec"]
        for version in crd["versions"]:
            schema = copy.deepcopy(version["schema"]["openAPIV3Schema"])
            api = f"{crd['group']}/{version['name']}"
            schema["properties"]["metadata"]["x-kubernetes-preserve-unknown-fields"] = True
            found[api, crd["names"]["kind"]] = closed(schema)
    return found


def closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(part) for key, part in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


def check_custom(one: Manifest) -> None:
    schema = definitions()[one["apiVersion"], one["kind"]]
    jsonschema.Draft202012Validator(schema).validate(one)


def broken_rules(schema: Manifest, value: Any, path: str) -> Iterator[str]:
    """The CEL rules of the schema that the value breaks, once its defaults are filled in.

    As the API server does when an object is created: a rule with `oldSelf` holds for updates only.
    """
    if isinstance(value, dict):
        for name, part in schema.get("properties", {}).items():
            if "default" in part:
                value.setdefault(name, copy.deepcopy(part["default"]))
            if name in value:
                yield from broken_rules(part, value[name], f"{path}.{name}")
    if isinstance(value, list):
        for number, one in enumerate(value):
            yield from broken_rules(schema.get("items", {}), one, f"{path}[{number}]")
    for told in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" not in told["rule"] and not holds(told["rule"], value):
            yield f"{path}: {told['rule']}"


def holds(rule: str, value: Any) -> bool:
    language = cel.NewEnv(variables={"self": cel.Type.DYN})
    result = language.compile(rule).eval(data={"self": value}).value()
    assert isinstance(result, bool), f"{rule}: {result}"
    return result


def is_custom(one: Manifest) -> bool:
    return one["apiVersion"].split("/")[0] in ("ray.io", "kueue.x-k8s.io")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", BUILDS)
def test_objects_are_of_the_schema_of_this_kubernetes(name: str, version: str) -> None:
    checked = 0
    for one in build(name):
        if not is_custom(one) and one["kind"] not in NOT_HELD:
            kubernetes_validate.validate(one, version, strict=True)
            checked += 1
    for pod in pods(build(name)):  # those inside Ray's objects too, as pods of this version
        kubernetes_validate.validate(pod.as_object(), version, strict=True)
        checked += 1
    assert checked > 2


@NO_CRDS
@pytest.mark.parametrize("name", BUILDS)
def test_custom_objects_are_of_their_own_definitions(name: str) -> None:
    custom = [one for one in build(name) if is_custom(one)]
    assert custom
    for one in custom:
        check_custom(one)


@NO_CRDS
def test_a_misspelt_field_of_a_custom_object_is_refused() -> None:
    for one in build("overlays/gpu-cluster/jobs") + build("overlays/gpu-cluster"):
        if is_custom(one) and one["kind"] != "ResourceFlavor":
            one["spec"]["shutdownAfterJobFinish"] = True
            with pytest.raises(jsonschema.ValidationError, match="shutdownAfterJobFinish"):
                check_custom(one)


@NO_CRDS
@pytest.mark.parametrize("name", BUILDS)
def test_custom_objects_keep_the_rules_of_their_definitions(name: str) -> None:
    for one in build(name):
        if is_custom(one):
            schema = definitions()[one["apiVersion"], one["kind"]]
            assert list(broken_rules(schema, one, one["kind"])) == []


def change(one: Manifest, *path: str | int, to: Any) -> None:
    node: Any = one["spec"]
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = to


@NO_CRDS
@pytest.mark.parametrize(
    ("kind", "path", "to", "broken"),
    [
        ("ClusterQueue", ("resourceGroups", 0, "coveredResources"), ["cpu"], "resourceGroups[0]"),
        ("ClusterQueue", ("preemption", "borrowWithinCohort"), {"policy": "Any"}, "preemption"),
        ("ResourceFlavor", ("tolerations",), [{"operator": "Equal"}], "tolerations"),
        ("RayCluster", ("managedBy",), "somebody", "managedBy"),
    ],
)
def test_a_broken_rule_of_a_definition_is_noticed(
    kind: str, path: tuple[str | int, ...], to: Any, broken: str
) -> None:
    one = next(one for one in build("overlays/gpu-cluster") if one["kind"] == kind)
    change(one, *path, to=to)
    schema = definitions()[one["apiVersion"], one["kind"]]
    assert {text.split(": ")[0] for text in broken_rules(schema, one, kind)} == {
        f"{kind}.spec.{broken}"
    }


def test_a_misspelt_field_of_a_pod_is_refused() -> None:
    for pod in pods(build("overlays/gpu-cluster")):
        broken = pod.as_object()
        broken["spec"]["containers"][0]["securityContex"] = {}
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


def test_every_component_is_in_an_overlay_but_the_external_store() -> None:
    """It takes the object store's place; the next test builds it."""
    used = "\n".join(path.read_text() for path in K8S.glob("overlays/**/kustomization.yaml"))
    unused = {p.name for p in (K8S / "components").iterdir() if f"components/{p.name}" not in used}
    assert unused == {"external-s3"}


def test_the_store_may_lie_outside_the_cluster(tmp_path: Path) -> None:
    base = os.path.relpath(K8S, tmp_path)
    (tmp_path / "kustomization.yaml").write_text(
        f"resources: [{base}/overlays/gpu-node]\ncomponents: [{base}/components/external-s3]\n"
    )
    made = kustomize(tmp_path)
    environment = next(one["data"] for one in made if one["metadata"]["name"] == "pmg-environment")
    assert environment["AWS_ENDPOINT_URL"] == "https://s3.example.org"
    assert environment["AWS_ALLOW_HTTP"] == "false"
    assert environment["PGHOST"] == "pmg-postgres"
