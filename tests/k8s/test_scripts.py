"""The scripts beside the manifests, with a kubectl and a docker that note what they are told."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from built import K8S


def told(folder: Path, name: str, script: str) -> dict[str, str]:
    """An environment whose command of this name is the script, which appends its arguments."""
    program = folder / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/bash\necho "$*" >>{folder}/told\n{script}\n')
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(folder)}


KEEPS_FILES = """
[ "$1 $2" = "get secret" ] && { [ -e "$HOME/$3" ]; exit; }
for argument; do
  case $argument in --from-file=*)
    mkdir -p "$HOME/$4"; cp "${argument#*=*=}" "$HOME/$4/$(cut -d= -f2 <<<"$argument")" ;;
  esac
done
"""


def test_the_secrets_are_drawn_once_and_never_stand_on_a_command_line(tmp_path: Path) -> None:
    environment = told(tmp_path, "kubectl", KEEPS_FILES)
    for _ in range(2):
        subprocess.run([K8S / "make-secrets"], env=environment, check=True, capture_output=True)
    calls = (tmp_path / "told").read_text()
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.glob("pmg-*/*")}
    assert {str(path) for path in made} == {
        "pmg-object-store/access-key",
        "pmg-object-store/secret-key",
        "pmg-postgres/password",
        "pmg-pseudonym/key",
    }
    for name, secret in made.items():
        assert len(secret) >= (18 if "access" in str(name) else 32)
        assert secret.decode("latin-1") not in calls
    assert len(set(made.values())) == 4
    assert calls.count("create secret") == 3, "the second run must leave what there is"


def test_a_key_that_exists_already_is_taken(tmp_path: Path) -> None:
    environment = told(tmp_path, "kubectl", KEEPS_FILES)
    (tmp_path / "mine").write_bytes(bytes(range(32)))
    subprocess.run(
        [K8S / "make-secrets", tmp_path / "mine"], env=environment, check=True, capture_output=True
    )
    assert (tmp_path / "pmg-pseudonym" / "key").read_bytes() == bytes(range(32))


def test_the_images_are_pinned_to_what_the_registry_has(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    digest = "sha256:" + "ab" * 32
    environment = told(tmp_path, "docker", f"echo {digest}")
    command = [tmp_path / "k8s" / "pin-images", "registry.hospital.example/research"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    written = tmp_path / "k8s/components/pinned-images/kustomization.yaml"
    images = yaml.safe_load(written.read_text())["images"]
    names = [image["name"] for image in images]
    assert names == ["pmg-cpu", "pmg-gpu", "postgres", "quay.io/minio/minio"]
    for image in images:
        assert image["newName"].startswith("registry.hospital.example/research/")
        assert image["digest"] == digest
        asked = f"buildx imagetools inspect {image['newName']}:{image['newTag']} "
        assert asked in (tmp_path / "told").read_text()


def test_an_image_without_a_digest_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    environment = told(tmp_path, "docker", "echo not found")
    command = [tmp_path / "k8s" / "pin-images", "registry.hospital.example/research"]
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(command, env=environment, check=True, capture_output=True)
    name = "components/pinned-images/kustomization.yaml"
    assert (tmp_path / "k8s" / name).read_text() == (K8S / name).read_text()


CONNECTS = """
case "$1" in
  get) printf %s "dGhlLXRva2Vu" ;;
  port-forward) echo "Forwarding from 127.0.0.1:43210 -> 8265"; exec sleep 60 ;;
esac
"""


def test_a_command_gets_address_and_token_and_nothing_of_it_stays(tmp_path: Path) -> None:
    environment = told(tmp_path, "kubectl", CONNECTS)
    show = "echo $RAY_ADDRESS $RAY_AUTH_MODE $(stat -c %a $RAY_AUTH_TOKEN_PATH)"
    show += " $(cat $RAY_AUTH_TOKEN_PATH) $RAY_AUTH_TOKEN_PATH"
    done = subprocess.run(
        [K8S / "connect", "--", "bash", "-c", show],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    address, mode, rights, token, path = done.stdout.split()
    assert (address, mode) == ("http://127.0.0.1:43210", "token")
    assert (rights, token) == ("600", "the-token")
    assert not Path(path).exists()
    assert "get secret pmg --namespace pmg" in (tmp_path / "told").read_text()


def test_a_commands_failure_is_the_scripts(tmp_path: Path) -> None:
    environment = told(tmp_path, "kubectl", CONNECTS)
    done = subprocess.run([K8S / "connect", "--", "false"], env=environment, check=False)
    assert done.returncode == 1
