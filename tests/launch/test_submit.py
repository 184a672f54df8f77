"""Jobs of a real Ray cluster of two raylets with token authentication, as a user submits them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from small_run import make_store, small_config

from benchmarks.head import Head
from launch.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.ray]

PLANTED = "planted-s3-secret-1f6c"


def pmg(head: Head, *arguments: str, expected: int | None = 0, **variables: str):
    """The command as a user's shell starts it; the address by option."""
    command = [sys.executable, "-m", "pmg", *arguments]
    done = subprocess.run(
        command,
        env=head.environment | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    if expected is not None:
        assert done.returncode == expected, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def trained(head: Head, store, tmp_path_factory):
    """A run of 6 steps that was submitted, its folder, and what the submitting terminal showed."""
    place = tmp_path_factory.mktemp("submitted")
    working = place / "working"
    working.mkdir()
    config = small_config(
        store,
        train={"steps": 6, "checkpoint_every": 6},
        launch={"placement": "STRICT_SPREAD"},
        track={"panel_every": 4, "tensorboard": True, "mlflow": f"file:{place / 'mlruns'}"},
    )
    (working / "run.yaml").write_text(config.to_yaml())
    environment = place / "env.yaml"
    environment.write_text(yaml.safe_dump({"env_vars": {"PMG_TEST_MARK": "seen"}}))
    run = RunFolder(place / "run")
    done = pmg(
        head,
        *("submit", "--address", head.address, "--id", "train-1"),
        *("--working-dir", str(working), "--runtime-env", str(environment)),
        *("train", "--config", "run.yaml", "--run", str(run.root)),
        AWS_SECRET_ACCESS_KEY=PLANTED,
    )
    return run, done.stdout


def test_a_submitted_run_trains_on_every_raylet_and_its_terminal_shows_it(head, trained):
    run, said = trained
    assert f"job train-1 on {head.address}" in said
    assert "gloo between the workers, 2 nodes" in said
    assert "step 6/6" in said
    assert "job train-1 succeeded" in said
    assert [record["step"] for record in run.read_metrics()] == [2, 4, 6]
    sessions = [p for p in head.folder.glob("**/session_2*") if p.is_dir() and not p.is_symlink()]
    assert len(sessions) == 1, "the job started a cluster of its own"


def test_the_folder_explains_itself_and_shows_panels_in_every_place(trained):
    run, _ = trained
    guide = run.guide.read_text()
    for named in re.findall(r"^\| `([^`]+)`", guide, re.M):
        if named != run.failure.name:
            assert (run.root / named.rstrip("/")).exists(), named
    (start,) = json.loads(run.environment.read_text())
    assert start["backend"] == "gloo"
    assert sum(start["workers"].values()) == 2
    assert start["packages"]["deepspeed"]
    assert os.uname().nodename not in run.environment.read_text()
    assert run.panel(4).read_bytes().startswith(b"\x89PNG")
    assert list(run.tensorboard.glob("events.*"))
    (metrics,) = run.root.parent.glob(f"mlruns/*/{run.mlflow_run.read_text()}/metrics")
    steps = [line.split()[2] for line in (metrics / "steps_per_s").read_text().splitlines()]
    assert steps == ["2", "4", "6"]
    assert list(run.root.parent.glob("mlruns/*/*/artifacts/panels/step_00000004.png"))
    assert "data:image/png;base64" in run.report.read_text()


def test_no_secret_of_the_submitting_shell_reaches_the_run_or_the_cluster(head, trained):
    run, said = trained
    token = Path(head.environment["RAY_AUTH_TOKEN_PATH"]).read_bytes()
    assert PLANTED not in said
    for root in (run.root, head.folder):
        for path in root.rglob("*"):
            if path.is_file() and path != Path(head.environment["RAY_AUTH_TOKEN_PATH"]):
                content = path.read_bytes()
                assert PLANTED.encode() not in content, path
                assert token not in content, path


def test_metrics_of_a_run_stand_at_rays_exporter(head, store, tmp_path):
    config = small_config(store, train={"steps": 100_000, "log_every": 2, "checkpoint_every": 4})
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    arguments = ["train", "--config", str(tmp_path / "run.yaml"), "--run", str(tmp_path / "seen")]
    pmg(head, "submit", "--address", head.address, "--detach", "--id", "endless", *arguments)
    wanted = {
        *("pmg_step", "pmg_steps_per_second", "pmg_images_per_second", "pmg_data_wait_share"),
        *("pmg_effective_components", "pmg_memory_bytes", "pmg_loss"),
        "pmg_checkpoint_unix_seconds",
    }
    deadline = time.monotonic() + 200
    text = ""
    while not all(re.search(rf'ray_{name}\{{.*run="seen"', text) for name in wanted):
        assert time.monotonic() < deadline, re.findall(r'^(ray_pmg\w+)\{.*run="(\w+)"', text, re.M)
        time.sleep(1)
        # Each raylet exports what its own workers report.
        text = "".join(
            urllib.request.urlopen(url, timeout=10).read().decode() for url in head.exporters()
        )
    assert re.search(r'ray_pmg_loss\{.*term="vae1.kl"', text)

    # Ctrl-C of the following terminal leaves the job; stop saves a checkpoint first.
    follow = subprocess.Popen(
        [sys.executable, "-m", "pmg", "job", "logs", "-f", "--address", head.address, "endless"],
        env=head.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert any("model: " in line for line in follow.stdout)
    follow.send_signal(signal.SIGINT)
    said, _ = follow.communicate(timeout=30)
    assert "endless goes on without this terminal" in said
    assert follow.returncode == 0
    assert "RUNNING" in pmg(head, "job", "status", "--address", head.address, "endless").stdout
    pmg(head, "job", "stop", "--address", head.address, "endless")
    while "RUNNING" in pmg(head, "job", "status", "--address", head.address, "endless").stdout:
        assert time.monotonic() < deadline
    run = RunFolder(tmp_path / "seen")
    last = list(run.read_metrics())[-1]["step"]
    assert sorted(run.checkpoints.glob("step_????????"))[-1].name == f"step_{last:08d}"


def test_a_runs_model_and_report_are_fetched_and_checkpoints_stay(head, trained, tmp_path):
    run, _ = trained
    done = pmg(head, "job", "fetch", "--address", head.address, "--out", str(tmp_path), "train-1")
    for name in ("model/model.safetensors", "report.html", "metrics.jsonl", "config.yaml"):
        assert (tmp_path / name).read_bytes() == (run.root / name).read_bytes()
        assert str(tmp_path / name) in done.stdout
    assert not (tmp_path / "checkpoints").exists()


def test_a_cohort_is_evaluated_by_a_job(head, trained, store, tmp_path):
    run, _ = trained
    arguments = ["--run", str(run.root), "--store", str(store), "--out", str(tmp_path / "out")]
    arguments += ["--memory", "0.5"]
    done = pmg(head, "submit", "--address", head.address, "evaluate", *arguments)
    assert "[2/2" in done.stdout
    assert (tmp_path / "out" / "report.html").exists()
    assert (
        "2 of them done"
        in pmg(head, "submit", "--address", head.address, "evaluate", *arguments).stdout
    )


def test_a_wrong_token_is_refused_in_one_line(head, tmp_path):
    wrong = tmp_path / "token"
    wrong.write_text("0" * 64)
    wrong.chmod(0o600)
    arguments = ("submit", "--address", head.address, "train", "--config", "x", "--run", "y")
    done = pmg(head, *arguments, expected=1, RAY_AUTH_TOKEN_PATH=str(wrong))
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert head.address in line
    assert "Invalid authentication token" in line
    assert "Traceback" not in done.stderr
    wrong.chmod(0o644)
    done = pmg(head, *arguments, expected=1, RAY_AUTH_TOKEN_PATH=str(wrong))
    assert "mode is 0644" in done.stderr


def test_a_secret_in_a_runtime_environment_is_refused_by_name(head, tmp_path):
    environment = tmp_path / "env.yaml"
    environment.write_text(yaml.safe_dump({"env_vars": {"AWS_SECRET_ACCESS_KEY": PLANTED}}))
    submit = ("submit", "--address", head.address, "--runtime-env", str(environment))
    done = pmg(head, *submit, "train", "--config", "x", "--run", "y", expected=1)
    assert "AWS_SECRET_ACCESS_KEY" in done.stderr
    assert PLANTED not in done.stderr


def test_a_workers_error_reaches_the_terminal_as_its_cause_then_its_traceback(head, tmp_path):
    make_store(tmp_path / "store")
    for shard in (tmp_path / "store" / "volumes").glob("ct-2-1-*/c/*/*/*"):
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    (tmp_path / "run.yaml").write_text(small_config(tmp_path / "store").to_yaml())
    arguments = ["--config", str(tmp_path / "run.yaml"), "--run", str(tmp_path / "run")]
    done = pmg(head, "submit", "--address", head.address, "train", *arguments, expected=1)
    lines = done.stdout.splitlines()
    (cause,) = (number for number, line in enumerate(lines) if line.startswith("Error: "))
    assert lines[cause].startswith("Error: volume ct-2-1: ")
    assert lines[cause + 2].startswith("Traceback")
    assert len(lines) < 200
    assert " failed: " in done.stderr


def test_nothing_that_answers_is_named_with_its_address(head):
    done = pmg(head, "job", "list", "--address", "http://127.0.0.1:9", expected=1)
    (line,) = done.stderr.splitlines()
    assert "http://127.0.0.1:9" in line
