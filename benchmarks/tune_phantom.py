"""A search on a small phantom cohort to its end, its driver killed once; where the seconds went."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import yaml

from storage.ingest import ingest
from storage.phantom import write_cohort
from storage.pseudonym import KEY_BYTES
from tune.study import load_study

__all__ = ["killed_search", "phantom_store", "print_seconds"]

_SEED, _SUBJECTS = 11, 6
_SPACING_MM = (5.0, 4.0, 4.0)
_PARTS = ("start", "imports", "engines", "data", "steps", "checkpoint", "evaluation", "rest")
_DYING_S = 3.0  # Ray's processes end when their driver is gone


def phantom_store(folder: Path, seed: int = _SEED, tests: int = 0) -> Path:
    """A store of six phantom subjects a domain, written by way of DICOM unless it is there.

    tests: subjects with truth below folder/dicom/test, which the store does not hold.
    """
    store, manifest = folder / "store", folder / "dicom" / "manifest.csv"
    if not manifest.is_file():  # it is written last
        write_cohort(folder / "dicom", seed, _SUBJECTS, tests)
    key = folder / "pseudonyms.key"
    key.write_bytes(bytes(KEY_BYTES))  # always the same: which patients are held out goes by it
    key.chmod(0o600)
    ingest(None, store, manifest=manifest, spacing_mm=_SPACING_MM, key_path=key)
    return store


def killed_search(store: Path, out: Path, trials: int, steps: int, kill_after: int) -> None:
    """Run the search's command, kill it once so many trials are finished, and resume it."""
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(_search(store, trials, steps)), encoding="utf-8")
    command = [sys.executable, "-m", "tune.search", "--config", str(file), "--out", str(out)]
    started = time.monotonic()
    first = subprocess.Popen(command, start_new_session=True)
    while first.poll() is None and _finished(out) < kill_after:
        time.sleep(1)
    if first.poll() is None:
        os.kill(first.pid, signal.SIGKILL)
    ended = "killed" if first.wait() == -signal.SIGKILL else "ended"
    print(
        f"{ended} after {time.monotonic() - started:.0f} s, {_finished(out)} trials finished",
        flush=True,
    )
    time.sleep(_DYING_S)
    subprocess.run([*command, "--resume"], check=True)
    print(f"in all {(time.monotonic() - started) / 60:.1f} min for {_finished(out)} trials")


def print_seconds(out: Path) -> None:
    """Where the seconds of each trial that was never killed went, and their share outside."""
    outside, shares = [], []
    for trial in load_study(str(out)).trials:
        spent = trial.user_attrs.get("seconds", {})
        if not spent or trial.user_attrs.get("attempts") != 1:
            continue
        whole = trial.user_attrs["worker_seconds"]
        outside.append(whole - spent["steps"] - spent["evaluation"])
        shares.append(outside[-1] / whole)
        parts = "  ".join(f"{name} {spent.get(name, 0):.1f}" for name in _PARTS)
        state = trial.state.name.lower()
        print(f"  trial {trial.number:2} {state:9} {parts}  all {whole:.1f} s, {shares[-1]:.0%}")
    if shares:
        print(
            f"outside steps and evaluation: median {statistics.median(outside):.1f} s, "
            f"{statistics.median(shares):.0%}"
        )


def _finished(out: Path) -> int:
    if not (out / "study.journal").is_file():
        return 0
    try:
        trials = load_study(str(out)).trials
    except RuntimeError:  # not yet created
        return 0
    return sum(trial.state.is_finished() for trial in trials)


def _search(store: Path, trials: int, steps: int) -> dict[str, object]:
    """No early stopping: every trial is to train to its end."""
    return {
        "base": {"config": "demo", "overrides": ["data.validation_fraction=0.4"]},
        "store": str(store),
        "space": {
            "prior.components": {"int": [1, 16], "log": True},
            "loss.lambda_kl": {"float": [1e-3, 1.0], "log": True},
            "loss.lambda_change": {"float": [0.1, 10.0], "log": True},
            "optim.lr": {"float": [2e-4, 4e-3], "log": True},
        },
        "points": ["faithful", "unit"],
        "objectives": ["sliced_wasserstein"],
        "validation": {"volumes": 2},
        "pruner": {"name": "none"},
        "budget": {"trials": trials, "steps": steps, "evaluate_every": steps // 3},
        "final": {"points": 1, "seeds": [2]},
    }
