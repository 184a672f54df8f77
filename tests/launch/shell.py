"""A training run as a user's shell starts it, and what a test does to it and asks of it.

`whole` is the one that all others are compared with.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from small_run import small_config

from launch import checkpoint
from launch.run_folder import RunFolder

# So many that a run is still under way when a signal that follows its step 6 arrives.
STEPS = 80
INTERRUPTED, TERMINATED = 130, 143


def command(store, run: Path, **sections) -> list[str]:
    """`python -m launch.train` on the small run, as a user's shell starts it."""
    sections["train"] = {"steps": STEPS, "log_every": 2, "checkpoint_every": 10} | sections.get(
        "train", {}
    )
    file = run.with_name(f"{run.name}.yaml")
    file.write_text(small_config(store, **sections).to_yaml())
    return [sys.executable, "-m", "launch.train", "--config", str(file), "--run", str(run)]


def finish(
    arguments: list[str], expected: int = 0, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    done = subprocess.run(
        arguments, capture_output=True, text=True, check=False, timeout=300, env=environment
    )
    assert done.returncode == expected, done.stdout + done.stderr
    return done


@pytest.fixture(scope="session")
def whole(
    store: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, subprocess.CompletedProcess]:
    """An undisturbed run with a Ray of its own, and what it printed."""
    folder = RunFolder(tmp_path_factory.mktemp("whole") / "run")
    return folder, finish(command(store, folder.root))


class Started:
    """A run in a process group of its own, as a terminal starts it."""

    def __init__(
        self, arguments: list[str], folder: RunFolder, environment: dict[str, str] | None = None
    ) -> None:
        self._folder = folder
        self._before = len(self._lines())
        self._process = subprocess.Popen(
            arguments, start_new_session=True, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._own = psutil.Process(self._process.pid)

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *error: object) -> None:
        """Leave nothing behind of a run that a failed test did not end."""
        if self._own.is_running():
            for process in [*self.processes(), self._own]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.wait()

    def _lines(self) -> list[str]:
        path = self._folder.metrics
        return path.read_text().splitlines() if path.exists() else []

    def wait_for_records(self, count: int) -> None:
        deadline = time.monotonic() + 240
        while len(self._lines()) < self._before + count:
            assert self._process.poll() is None, "the run ended early"
            assert time.monotonic() < deadline, f"{count} records were not written"
            time.sleep(0.05)

    def processes(self) -> list[psutil.Process]:
        """All that the run has started on this machine."""
        return self._own.children(recursive=True)

    def workers(self) -> list[psutil.Process]:
        return [c for c in self.processes() if "RayTrainWorker" in " ".join(c.cmdline())]

    def interrupt(self) -> None:
        """What a terminal does on Ctrl-C: it tells the whole group."""
        os.killpg(self._process.pid, signal.SIGINT)

    def terminate(self) -> None:
        """What a scheduler does before it takes the machine away."""
        self._process.terminate()

    def kill(self) -> None:
        """What the kernel does when memory runs out."""
        self._process.kill()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def end(self) -> tuple[int, str]:
        """Wait for it: its exit code and its output. No process of it may stay behind."""
        started = self.processes()
        printed, _ = self._process.communicate(timeout=280)
        _, left = psutil.wait_procs(started, timeout=20)
        assert [p for p in left if p.status() != psutil.STATUS_ZOMBIE] == []
        return self._process.returncode, printed


def assert_same_weights(one: RunFolder, other: RunFolder) -> None:
    a, b = (load_file(f.model / "model.safetensors") for f in (one, other))
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def newest_step(folder: RunFolder) -> int:
    return checkpoint.newest(folder.checkpoints).step
