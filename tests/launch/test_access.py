"""Tokens that nobody else can read, and secrets that are not sent along."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from launch.access import AccessError, refuse_secrets, refuse_shared_token, token_file
from pmg.config import Config, load_config


@pytest.fixture(autouse=True)
def _home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_token_is_of_mode_0600_under_any_umask_and_is_kept(tmp_path):
    before = os.umask(0)
    try:
        path = token_file()
    finally:
        os.umask(before)
    assert path == tmp_path / ".ray" / "auth_token"
    assert mode(path) == 0o600
    assert len(path.read_text()) == 64
    assert token_file().read_text() == path.read_text()


def test_the_token_that_ray_itself_wrote_readable_by_all_is_closed(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"],
        env=os.environ | {"HOME": str(tmp_path)},
        check=True,
        capture_output=True,
    )
    path = tmp_path / ".ray" / "auth_token"
    path.chmod(0o644)
    refuse_shared_token()
    assert mode(path) == 0o600


@pytest.mark.parametrize("shared", [0o644, 0o640, 0o604, 0o666])
def test_a_named_token_that_others_can_read_is_refused_with_its_mode(monkeypatch, tmp_path, shared):
    path = tmp_path / "token"
    path.write_text("a secret")
    path.chmod(shared)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    with pytest.raises(AccessError, match=f"{path}: its mode is {shared:04o}") as refusal:
        refuse_shared_token()
    assert "a secret" not in str(refusal.value)
    path.chmod(0o600)
    refuse_shared_token()


@pytest.mark.parametrize(
    "name", ["AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "DB_PASSWORD", "MLFLOW_TRACKING_TOKEN", "api_key"]
)
def test_a_variable_that_says_it_is_a_secret_is_not_sent(name):
    with pytest.raises(AccessError, match=name) as refusal:
        refuse_secrets({"A": "1", name: "hunter2"}, "env.yaml")
    assert "hunter2" not in str(refusal.value)


def test_variables_that_name_files_or_are_no_secrets_are_sent():
    refuse_secrets({"RAY_AUTH_TOKEN_PATH": "/t", "OMP_NUM_THREADS": "1", "KEYBOARD": "us"}, "e")


@pytest.mark.parametrize("uri", ["https://me:hunter2@host", "https://host/?token=hunter2"])
def test_a_password_in_the_trackers_address_is_refused_and_not_repeated(uri):
    with pytest.raises(ValidationError):
        Config.model_validate({"track": {"mlflow": uri}})
    with pytest.raises(ValueError, match=r"track\.mlflow.*MLFLOW_TRACKING_PASSWORD") as refusal:
        load_config(None, [f"track.mlflow={uri}"])
    assert "hunter2" not in str(refusal.value)
