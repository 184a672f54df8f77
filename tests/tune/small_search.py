"""A search of trainings that take seconds, and what must hold of one that has ended."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import optuna
import yaml
from optuna.trial import TrialState
from small_run import small_config

from launch import checkpoint
from tune.study import counted, load_study

__all__ = ["EVERY", "STEPS", "assert_whole", "first_steps", "saved", "written"]

STEPS, EVERY = 40, 20


def written(folder: Path, store: Path, steps: int = STEPS, **changed: object) -> Path:
    """tune.yaml of a small search; of four patients it holds out one of each domain."""
    base = folder / "base.yaml"
    base.write_text(small_config(store, data={"patch": (32, 32)}).to_yaml())
    search = {
        "base": {"config": str(base), "overrides": ["data.validation_fraction=0.5"]},
        "space": {
            "prior.components": {"int": [1, 8], "log": True},
            "prior.min_weight": {"float": [1e-4, 1e-2], "log": True, "if": "prior.components > 1"},
            "loss.lambda_kl": {"float": [1e-3, 1.0], "log": True},
        },
        "points": ["unit"],
        "objectives": ["sliced_wasserstein"],
        "pruner": {"name": "none"},
        "budget": {"trials": 3, "steps": steps, "evaluate_every": EVERY},
        "final": {"points": 0},
    }
    file = folder / "tune.yaml"
    file.write_text(yaml.safe_dump(search | changed))
    return file


def saved(out: Path) -> list[Path]:
    """Trials' folders that hold a sealed checkpoint."""
    folders = sorted(out.glob("trials/trial_*"))
    return [f for f in folders if checkpoint.newest(f / "checkpoints") is not None]


def first_steps(trial: Path) -> list[int]:
    """The step at which each life of a trial's workers began."""
    log = (trial / "logs" / "rank_0.log").read_text()
    return [int(line.split("from step ")[1].split()[0]) for line in log.splitlines()
            if "launch.worker: from step" in line]  # fmt: skip


def assert_whole(out: Path, trials: int, steps: int) -> optuna.Study:
    """Every trial is complete, counted once, and has trained to the end."""
    study = load_study(str(out))
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * trials
    assert len(counted(study.trials)) == trials
    for trial in study.trials:
        newest = checkpoint.newest(Path(trial.user_attrs["run"]) / "checkpoints")
        assert newest.step == steps
        assert list(trial.intermediate_values) == list(range(EVERY, steps + 1, EVERY))
    runs = Counter(trial.user_attrs["run"] for trial in study.trials)
    assert set(runs.values()) == {1}
    return study
