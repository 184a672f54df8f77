"""A trial as Ray Tune runs it: one training of `launch`, followed from evaluation to evaluation.

The trial's own process takes no CPU: it starts Ray Train's workers, which do, and reads what they
observe. Ray Train places a group of workers as a whole or not at all, so that trials which wait for
resources hold none.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray.tune

from launch import checkpoint
from launch.failure import cause
from launch.run_folder import RunFolder
from launch.train import InThread, trainer
from pmg.config import Config, load_config
from storage.place import Place
from tune.judge import Judge

__all__ = ["TrialFolder", "TrialRun"]

_POLL_S = 0.2
_STOPPING_S = 40.0  # Ray Tune waits a minute for a trial's process to take its next


@dataclass(frozen=True)
class TrialFolder:
    """What lies in a trial's folder beside its run's files."""

    root: Path

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.root)

    @property
    def _judge(self) -> Path:
        return self.root / "judge.json"

    @property
    def _parent(self) -> Path:
        return self.root / "parent.json"

    @property
    def _attempts(self) -> Path:
        """One empty file an attempt: named by its start, changed last at its last sign of life."""
        return self.root / "attempts"

    def prepare(
        self, config: Config, judge: Judge, parent: Mapping[str, Any] | None = None
    ) -> None:
        """Write what the trial's process needs. The same again if the trial is gone on with.

        parent: `run` and `step` of the checkpoint to begin from; none: the first step.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        if parent is not None:
            self._parent.write_text(json.dumps(dict(parent)), encoding="utf-8")
        self._judge.write_text(json.dumps(asdict(judge)), encoding="utf-8")
        self.run.config.write_text(config.to_yaml(), encoding="utf-8")

    def config(self) -> Config:
        return load_config(self.run.config)

    def judge(self) -> Judge:
        fields = json.loads(self._judge.read_text(encoding="utf-8"))
        return Judge(**fields | {"objectives": tuple(fields["objectives"])})

    def inherit(self, config: Config) -> None:
        """Begin from the parent's checkpoint, where there is one and none of its own.

        Raises CheckpointError if it is gone or damaged.
        """
        if self._parent.exists() and checkpoint.newest(self.run.checkpoints) is None:
            parent = json.loads(self._parent.read_text(encoding="utf-8"))
            of = RunFolder(Path(parent["run"])).checkpoints
            checkpoint.adopt(of, parent["step"], Place.of(self.run.checkpoints), config)

    def begin_attempt(self) -> Path:
        self._attempts.mkdir(exist_ok=True)
        path = self._attempts / f"{time.time_ns():020d}"
        path.touch()
        return path

    def attempts(self) -> int:
        return len(list(self._attempts.glob("*")))

    def worked_s(self) -> float:
        """Seconds from start to end, or last sign of life, of all attempts."""
        return sum(max(f.stat().st_mtime - int(f.name) / 1e9, 0) for f in self._attempts.glob("*"))


class TrialRun(ray.tune.Trainable):  # type: ignore[misc]
    """One trial after another in one process; `config` is {"folder": the trial's}."""

    def setup(self, config: dict[str, Any]) -> None:
        self._folder = TrialFolder(Path(config["folder"]))
        run = self._folder.run
        for stale in (run.stop_request, run.failure):
            stale.unlink(missing_ok=True)
        settings = self._folder.config()
        self._folder.inherit(settings)
        self._steps = settings.train.steps
        self._workers = settings.launch.workers
        self._seen = 0
        self._beat = self._folder.begin_attempt()
        found = checkpoint.newest(run.checkpoints)
        done = found is not None and found.step >= self._steps
        fit = trainer(settings, run, self._folder.judge()).fit
        self._fit = InThread((lambda: None) if done else fit)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial, which saves the start of a process."""
        self.cleanup()
        if self._fit.is_alive():
            return False
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait for the next evaluation.

        An error that would come again is a result, `failed`; what may go well the next time, such
        as a lost node, raises RuntimeError, whereupon Ray Tune tries again.
        """
        while True:
            alive = self._fit.is_alive()  # before looking: what it wrote last is then seen
            os.utime(self._beat)
            for record in self._folder.run.read_observations():
                if record["step"] > self._seen:
                    self._seen = record["step"]
                    done = self._seen >= self._steps
                    if done:  # the checkpoint and the end of the workers belong to the cost
                        self._fit.join(_STOPPING_S)
                    return self._result(record) | {"done": done}
            if not alive and self._folder.run.failure.exists():
                line = self._folder.run.failure.read_text(encoding="utf-8").partition("\n")[0]
                return {"failed": line, "step": self._seen, "done": True}
            if not alive:
                why = f"the workers ended after step {self._seen} of {self._steps}"
                raise RuntimeError(why if self._fit.error is None else cause(self._fit.error))
            time.sleep(_POLL_S)

    def cleanup(self) -> None:
        """End the workers after the step they are at."""
        if self._fit.is_alive():
            self._folder.run.stop_request.touch()
            self._fit.join(_STOPPING_S)
        os.utime(self._beat)

    def _result(self, record: dict[str, Any]) -> dict[str, Any]:
        os.utime(self._beat)
        metrics = record["metrics"]
        return {
            "step": record["step"],
            "objectives": record["objectives"],
            "memory_bytes": record["memory_bytes"],
            "seconds_per_step": 1 / metrics["steps_per_s"],
            "effective_components": metrics["prior.effective_components"],
            "seconds": record["seconds"],
            "worker_seconds": self._folder.worked_s() * self._workers,
        }
