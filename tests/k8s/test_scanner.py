"""checkov finds nothing in the overlays but what is written down here with its reason."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from built import NO_KUBECTL, OVERLAYS, Manifest, build, pods

# In an environment of its own (`make test` makes it): it pins other versions of what pmg needs.
CHECKOV = shutil.which("checkov") or Path(sys.prefix) / "checkov" / "bin" / "checkov"

pytestmark = [
    NO_KUBECTL,
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path(CHECKOV).is_file(), reason=f"NOTHING WAS SCANNED: there is no {CHECKOV}"
    ),
]

OF_THE_LAPTOP = {
    "CKV_K8S_15": "pull policy Always: the one node was given the image, no registry has it",
    "CKV_K8S_43": "digests: an image that was built here and loaded into the node has none; "
    "PostgreSQL's is named by version, and by digest where a registry mirrors it",
}
OF_THE_SECRETS = {
    "CKV_K8S_35": "secrets as files: obstore and libpq read AWS_* and PGPASSWORD from the "
    "environment; a password file that a group may read, as mounted secrets are, libpq refuses",
}


Findings = dict[str, dict[str, set[str]]]


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    """Of every overlay, and of one with a planted violation: resources by the check they failed."""
    folder = tmp_path_factory.mktemp("scanned")
    for overlay in OVERLAYS:
        manifests = [*build(f"overlays/{overlay}"), *build(f"overlays/{overlay}/jobs")]
        (folder / f"{overlay}.yaml").write_text(yaml.safe_dump_all(scannable(manifests)))
    planted = build("overlays/gpu-cluster")
    ray = next(one["spec"] for one in planted if one["kind"] == "RayCluster")
    container = ray["workerGroupSpecs"][1]["template"]["spec"]["containers"][0]
    container["securityContext"] = {"privileged": True}
    (folder / "planted.yaml").write_text(yaml.safe_dump_all(scannable(planted)))
    scanned = subprocess.run(
        [
            CHECKOV,
            *("--directory", folder, "--framework", "kubernetes"),
            *("--output", "json", "--skip-download", "--quiet"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    result = json.loads(scanned.stdout)
    assert result["summary"]["parsing_errors"] == 0
    assert result["summary"]["passed"] > 1000
    found: Findings = {path.stem: {} for path in folder.iterdir()}
    for one in result["results"]["failed_checks"]:
        of_file = found[Path(one["file_path"]).stem]
        of_file.setdefault(one["check_id"], set()).add(f"{one['resource']}: {one['check_name']}")
    return found


def scannable(manifests: list[Manifest]) -> list[Manifest]:
    """What Ray's objects hold, which the scanner does not know, as Pods and Jobs."""
    known = [one for one in manifests if not one["kind"].startswith("Ray")]
    inside = [pod.as_object() for pod in pods(manifests) if pod.ray]
    submitters = [as_job(pod.as_object()) for pod in pods(manifests) if "submitter" in pod.name]
    return known + inside + submitters


def as_job(pod: Manifest) -> Manifest:
    """What the operator makes of a submitter's template."""
    metadata = {"name": pod["metadata"]["name"], "namespace": pod["metadata"]["namespace"]}
    template = {"metadata": {"labels": pod["metadata"]["labels"]}, "spec": pod["spec"]}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata}
    return job | {"spec": {"template": template}}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_scanner_finds_only_what_is_explained(overlay: str, findings: Findings) -> None:
    explained = OF_THE_SECRETS | (OF_THE_LAPTOP if overlay == "laptop" else {})
    found = findings[overlay]
    assert {check: found[check] for check in found.keys() - explained.keys()} == {}
    assert explained.keys() - found.keys() == set(), "an exception that nothing needs"


def test_the_scanner_sees_into_rays_pods(findings: Findings) -> None:
    assert any("pmg-gpu" in resource for resource in findings["planted"]["CKV_K8S_16"])
