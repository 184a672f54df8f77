"""The hook that runs before a pod ends asks its drivers to save, and waits for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from built import K8S

# In a world of processes of its own: the hook asks every driver that it sees.
ALONE = ["unshare", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]

pytestmark = pytest.mark.skipif(
    subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode != 0
    if Path("/usr/bin/unshare").exists()
    else True,
    reason="THE HOOK WAS NOT RUN: unshare may make no namespace of processes here",
)

DRIVER = """
import pathlib, signal, sys, time

def save(*_):
    time.sleep(1)
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit(143)

signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1] + ".ready").touch()
time.sleep(float(sys.argv[2]))
"""


def run(tmp_path: Path, module: str, patience_s: float, lives_s: float = 60) -> None:
    """Start a driver, then the hook as the manifest has it; both end with their namespace."""
    package = tmp_path / "launch"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "train.py").write_text(DRIVER)
    (tmp_path / "other.py").write_text(DRIVER)
    scripts = yaml.safe_load((K8S / "base" / "node-scripts.yaml").read_text())["data"]
    (tmp_path / "pre_stop.py").write_text(scripts["pre_stop.py"])
    shell = f"""
        {sys.executable} -m {module} {tmp_path}/file {lives_s} &
        while [ ! -e {tmp_path}/file.ready ]; do sleep 0.1; done
        {sys.executable} {tmp_path}/pre_stop.py {patience_s}
        cp {tmp_path}/file {tmp_path}/seen 2>/dev/null || true
    """
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    command = [*ALONE, "bash", "-c", shell]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=60)


def test_a_driver_saves_before_the_hook_ends(tmp_path: Path) -> None:
    run(tmp_path, "launch.train", 30)
    assert (tmp_path / "seen").read_text() == "saved"


def test_a_process_that_is_no_driver_is_left_alone(tmp_path: Path) -> None:
    run(tmp_path, "other", 30)
    assert not (tmp_path / "file").exists()


def test_patience_has_an_end(tmp_path: Path) -> None:
    run(tmp_path, "launch.train", 0.2)
    assert not (tmp_path / "seen").exists()
