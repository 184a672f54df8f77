"""Where secrets and data of patients may stand, and which pods see them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from built import Manifest, Pod, every_container, objects, pods

from policies.rule import rule

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
