"""The image holds what pyproject.toml asks for, and runs as the manifests say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from built import K8S
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = K8S.parent
DOCKERFILE = (K8S / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions(name: str) -> list[str]:
    """The arguments of every instruction of this name, continued lines joined."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M))
    return re.findall(rf"^{name} +(.*)$", joined, flags=re.M)


def copied() -> list[str]:
    """What the build stage takes from the context."""
    return [
        source
        for arguments in instructions("COPY")
        if not arguments.startswith("--from")
        for source in arguments.split()[:-1]
    ]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().split()
    return {canonicalize_name(n): v for n, _, v in (line.partition("==") for line in lines)}


def test_the_linter_has_nothing_to_say() -> None:
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert linter, "hadolint comes with pmg[dev]"
    found = subprocess.run(
        [linter, "--failure-threshold", "style", K8S / "Dockerfile"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stdout) == (0, "")


def test_every_base_is_named_by_version_and_digest() -> None:
    assert instructions("FROM") == [
        "python:${PYTHON}@${PYTHON_DIGEST} AS build",
        "python:${PYTHON}@${PYTHON_DIGEST} AS run",
    ]
    arguments = dict(argument.split("=", 1) for argument in instructions("ARG"))
    assert re.fullmatch(r"\d+\.\d+\.\d+-slim-\w+", arguments["PYTHON"])
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", arguments["PYTHON_DIGEST"])
    version = arguments["PYTHON"].partition("-")[0]
    assert version in SpecifierSet(PROJECT["project"]["requires-python"])


def extras() -> list[str]:
    """Of pmg, that the image is built with."""
    named = re.findall(r'"\.\[([a-z,]+)\]"', " ".join(instructions("RUN")))
    return [extra for group in named for extra in group.split(",")]


def wanted() -> list[str]:
    """What the project asks for, with the image's extras."""
    optional = PROJECT["project"]["optional-dependencies"]
    return PROJECT["project"]["dependencies"] + [d for extra in extras() for d in optional[extra]]


def test_the_lock_file_pins_every_dependency_within_its_bounds() -> None:
    locked = pins()
    assert extras() == ["postgres", "tracking"]  # each has its secret among the manifests
    for line in wanted():
        one = Requirement(line)
        assert locked[canonicalize_name(one.name)] in one.specifier, line


def test_every_install_is_bound_to_the_lock_file() -> None:
    installs = [
        command for run in instructions("RUN") for command in re.findall(r"pip install [^;&]*", run)
    ]
    assert len(installs) == 3
    assert all("--constraint constraints.txt" in command for command in installs)


def test_every_package_of_the_project_is_copied_and_nothing_else() -> None:
    found = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = {name.rstrip("*") for name in found}
    files = {"constraints.txt", "pyproject.toml", PROJECT["project"]["readme"], "LICENSE"}
    assert set(copied()) == packages | files
    ignored = (K8S / "Dockerfile.dockerignore").read_text().split("\n")
    let_through = {line[1:] for line in ignored if line.startswith("!")}
    assert let_through == set(copied())


def test_versions_are_those_of_the_project_and_of_ray() -> None:
    version = PROJECT["project"]["version"]
    assert f'org.opencontainers.image.version="{version}"' in DOCKERFILE
    texts = [path.read_text() for path in K8S.glob("**/*.yaml")]
    for text in texts:
        for tag in re.findall(r"image: pmg-[cg]pu:(\S+)", text):
            assert tag == version
    pinned = yaml.safe_load((K8S / "components/pinned-images/kustomization.yaml").read_text())
    own = [image["newTag"] for image in pinned["images"] if image["name"].startswith("pmg-")]
    assert own == [version] * 2
    ray = yaml.safe_load((K8S / "base/ray/raycluster.yaml").read_text())["spec"]["rayVersion"]
    assert ray == pins()["ray"]


def test_the_image_runs_as_the_user_of_the_manifests() -> None:
    ray = yaml.safe_load((K8S / "base/ray/raycluster.yaml").read_text())["spec"]
    context = ray["headGroupSpec"]["template"]["spec"]["securityContext"]
    assert instructions("USER") == [f"{context['runAsUser']}:{context['runAsGroup']}"]


@pytest.mark.long
def test_the_install_steps_run_in_a_clean_environment(tmp_path: Path) -> None:
    """As written, without an engine: pip resolves all of it from the lock file, and builds pmg.

    Nothing but pmg is downloaded whole: the packages weigh gigabytes, and `make test` has just
    installed the same ones. The lock file is that of the machine's own index, as for VARIANT=gpu.
    """
    source, environment = tmp_path / "src", tmp_path / "venv"
    source.mkdir()
    for name in copied():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name)
        else:
            shutil.copy(ROOT / name, source / name)
    venv.create(environment, with_pip=True)
    variables = {
        **os.environ,
        "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
        "VARIANT": "gpu",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTHONPATH": "",
    }
    steps = [run for run in instructions("RUN") if "pip install" in run]
    assert len(steps) == 2
    resolved = ""
    for step in steps:
        done = subprocess.run(
            ["/bin/sh", "-ec", step.replace("pip install", "pip install --dry-run")],
            cwd=source,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        resolved += done.stdout
    would = re.findall(r"Would install (.*)", resolved)
    chosen = {
        canonicalize_name(name): version
        for name, _, version in (one.rpartition("-") for line in would for one in line.split())
    }
    locked = pins()
    for line in wanted():
        name = canonicalize_name(Requirement(line).name)
        assert chosen[name].partition("+")[0] == locked[name]
    wrong = subprocess.run(
        ["/bin/sh", "-ec", steps[0]],
        cwd=source,
        env=variables | {"VARIANT": "tpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert wrong.returncode == 2
    assert "expected cpu or gpu" in wrong.stderr
    # pmg itself for real
    subprocess.run(
        [environment / "bin" / "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, "."],
        cwd=source,
        env=variables,
        check=True,
    )
    (wheel,) = tmp_path.glob("pmg-*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    data = [path for path in (ROOT / "pmg").rglob("*") if path.suffix in (".yaml", ".jinja")]
    assert {str(path.relative_to(ROOT)) for path in data} <= inside
    assert {"launch/train.py", "tune/__init__.py", "storage/store.py"} <= inside
