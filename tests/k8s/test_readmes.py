"""The commands that the pages under k8s/ and docs/security.md tell to type name what there is."""

from __future__ import annotations

import importlib
import itertools
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import pytest
import yaml
from built import K8S, NO_KUBECTL, OVERLAYS, Manifest, amount, build, objects, pods

from launch.submit import MODULES
from pmg.cli.submit import command as pmg_submit

ROOT = K8S.parent
PAGES = sorted([*K8S.rglob("README.md"), ROOT / "docs" / "security.md"])


def commands(page: Path) -> Iterator[str]:
    """Each line of the page's blocks, without comment, and those of a loop once a round."""
    for block in re.findall(r"^```\n(.*?)^```", page.read_text(), re.M | re.S):
        rounds = [""]
        for line in block.splitlines():
            told = line.partition("    #")[0].strip()
            if loop := re.fullmatch(r"for job in (.*); do", told):
                rounds = loop[1].split()
            elif told == "done":
                rounds = [""]
            elif told and not told.startswith("#"):
                yield from (told.replace("$job", job) for job in rounds)


def told(program: str) -> list[str]:
    """All commands of this program, of all pages."""
    lines = [line for page in PAGES for line in commands(page)]
    found = [part for line in lines for part in re.split(r" (?:\||&&) ", line)]
    return [part for part in found if part.startswith(f"{program} ")]


def named_objects(overlay: str) -> tuple[set[str], list[dict[str, str]]]:
    """kind/name of all objects of an overlay's two builds; labels of theirs and of their pods."""
    made = [*build(f"overlays/{overlay}"), *build(f"overlays/{overlay}/jobs")]
    names = {f"{one['kind'].lower()}/{one['metadata']['name']}" for one in made}
    # KubeRay submits a RayJob by a Job of its name.
    names |= {name.removeprefix("ray") for name in names if name.startswith("rayjob/")}
    return names, [labels for one in made for labels in _labels(one)]


def _labels(one: Manifest) -> Iterator[dict[str, str]]:
    yield one["metadata"].get("labels", {})
    template = one.get("spec", {}).get("template", {})
    yield template.get("metadata", {}).get("labels", {}) if isinstance(template, dict) else {}


def test_each_page_tells_commands() -> None:
    assert len(PAGES) == 2 + len(OVERLAYS)
    assert len(told("kubectl")) > 40
    assert len(told("docker")) >= 5


@NO_KUBECTL
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_kubectl_is_told_about_is_built(overlay: str) -> None:
    names, labels = named_objects(overlay)
    selectable = {f"{key}={value}" for one in labels for key, value in one.items()}
    page = K8S / "overlays" / overlay / "README.md"
    lines = [line for line in commands(page) if line.startswith("kubectl ")]
    text = [*lines, *re.findall(r"`(kubectl [^`]*)`", page.read_text())]
    for line in text:
        words = shlex.split(line.partition(" | ")[0])
        if "-k" in words:
            assert (ROOT / words[words.index("-k") + 1] / "kustomization.yaml").is_file(), line
        if "-l" in words and "kubernetes.io" not in line:
            assert words[words.index("-l") + 1] in selectable, line
        assert {word for word in words if re.match(r"(ray)?job/", word)} <= names, line
        if words[1] in ("wait", "exec", "logs"):
            assert ("-n", "pmg") in itertools.pairwise(words), line


def requested(specs: Iterable[Manifest]) -> str:
    cores = memory = 0.0
    for container in (container for spec in specs for container in spec["containers"]):
        requests = container["resources"]["requests"]
        cores += amount("cpu", requests["cpu"])
        memory += amount("memory", requests["memory"])
    return f"{cores:g} cores and {memory:g} GiB"


@NO_KUBECTL
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_costs_are_what_is_requested(overlay: str) -> None:
    page = " ".join((K8S / "overlays" / overlay / "README.md").read_text().split())
    stack, jobs = build(f"overlays/{overlay}"), build(f"overlays/{overlay}/jobs")
    resting = [pod for pod in pods(stack) if pod.role in ("head", "postgres", "object-store")]
    assert f"at rest requests {requested(pod.as_object()['spec'] for pod in resting)}" in page
    job = next(one["spec"] for one in jobs if one["metadata"]["name"] == "pmg-train")
    ray = job["rayClusterSpec"]
    specs = [ray["headGroupSpec"]["template"]["spec"], job["submitterPodTemplate"]["spec"]]
    for group in ray["workerGroupSpecs"]:
        specs += [group["template"]["spec"]] * group["replicas"]
    assert requested(specs) in page
    claims = [one["spec"] for one in objects(stack, "PersistentVolumeClaim")]
    for one in objects(stack, "StatefulSet"):
        claims += [template["spec"] for template in one["spec"]["volumeClaimTemplates"]]
    total = sum(amount("storage", claim["resources"]["requests"]["storage"]) for claim in claims)
    text, gib = {"laptop": ("85 GiB", 85), "gpu-node": ("1.2 TB", 1118)}.get(
        overlay, ("8 TiB", 8192)
    )
    assert text in page
    assert total == pytest.approx(gib, rel=0.02)


def test_an_image_is_built_from_arguments_that_the_dockerfile_has() -> None:
    known = set(re.findall(r"^ARG (\w+)", (K8S / "Dockerfile").read_text(), re.M))
    for line in told("docker build"):
        words = shlex.split(line)
        given = [words[n + 1] for n, word in enumerate(words) if word == "--build-arg"]
        assert {argument.partition("=")[0] for argument in given} <= known, line
        assert (ROOT / words[words.index("-f") + 1]).is_file()


@NO_KUBECTL
def test_the_servers_images_are_mirrored_as_they_are_pinned() -> None:
    pinned = yaml.safe_load((K8S / "components/pinned-images/kustomization.yaml").read_text())
    used = {
        c["image"].partition("@")[0] for p in pods(build("overlays/laptop")) for c in p.containers
    }
    mirrored = {
        f"{one['name']}:{one['newTag']}": f"REGISTRY/{Path(one['newName']).name}:{one['newTag']}"
        for one in pinned["images"]
        if not one["name"].startswith("pmg-")
    }
    assert mirrored.keys() < used
    for line in told("docker buildx imagetools create"):
        *_, target, source = shlex.split(line)
        assert mirrored[source] == target


def test_scripts_are_there_and_may_be_run() -> None:
    for name in ("make-secrets", "pin-images", "connect"):
        assert os.access(K8S / name, os.X_OK)
    written = {word for page in PAGES for line in commands(page) for word in line.split()}
    scripts = {word for word in written if re.fullmatch(r"k8s/[a-z-]+", word)}
    assert scripts == {"k8s/make-secrets", "k8s/pin-images", "k8s/connect"}


@pytest.mark.parametrize("line", told("k8s/connect"))
def test_a_job_that_is_submitted_brings_its_files_and_parses(line: str, tmp_path: Path) -> None:
    words = shlex.split(line)[2:]
    if words[:2] == ["pmg", "submit"]:
        words[words.index("--working-dir") + 1] = str(tmp_path)
        given = pmg_submit.make_context("submit", words[2:]).params
        name, arguments = given["command_name"], list(given["arguments"])
    else:
        assert words[:3] == ["ray", "job", "submit"]
        assert "--working-dir" in words
        python, dash_m, module, *arguments = words[words.index("--", 3) + 1 :]
        assert (python, dash_m) == ("python", "-m")
        name = next(name for name, known in MODULES.items() if known == module)
    (tmp_path / "run.yaml").touch()
    here = [str(tmp_path / word) if word.endswith(".yaml") else word for word in arguments]
    main = importlib.import_module(MODULES[name]).main
    assert isinstance(main, click.Command)
    assert main.make_context(name, here).params["run"] == Path("/runs/mine")
