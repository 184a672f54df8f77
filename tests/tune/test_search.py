"""Searches of real trainings, to their end, on a cluster that they share."""

from __future__ import annotations

import io
from pathlib import Path

import optuna
import pytest
from click.testing import CliRunner
from optuna.trial import TrialState
from rich.console import Console
from small_run import small_config
from small_search import EVERY, STEPS, assert_whole, first_steps, written

from launch.cluster import cluster
from pmg.cli.tune import command as tune_command
from pmg.config import LaunchConfig, load_config
from tune.config import load_search
from tune.search import main, search
from tune.study import PARENT, counted, load_study

optuna.logging.set_verbosity(optuna.logging.WARNING)
pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture(scope="module", autouse=True)
def ray_cluster():
    with cluster(LaunchConfig(workers=2)):
        yield


def searched(file: Path, out: Path) -> str:
    """Search in this process; what is printed."""
    console = Console(file=io.StringIO(), width=200)
    search(load_search(file), out, console=console)
    return console.file.getvalue()


def test_a_search_ends_with_a_configuration_that_trains_and_a_report(store, tmp_path):
    out = tmp_path / "search"
    rival = tmp_path / "rival.yaml"
    rival.write_text(small_config("elsewhere", model={"width": 6}).to_yaml())
    final = {"points": 1, "seeds": [7], "against": [str(rival)]}
    file = written(tmp_path, store, final=final)
    printed = searched(file, out)
    study = assert_whole(out, 3, STEPS)
    assert study.trials[0].params["prior.components"] == 1  # unit, tried first
    assert "prior.min_weight" not in study.trials[0].params
    assert "trial 0 complete at step 40  sliced_wasserstein " in printed
    again, compared = load_study(str(out), "pmg-final").trials
    assert again.state is TrialState.COMPLETE
    assert load_config(Path(again.user_attrs["run"]) / "config.yaml").train.seed == 7
    assert again.params == study.best_trial.params
    assert compared.state is TrialState.COMPLETE
    trained = load_config(Path(compared.user_attrs["run"]) / "config.yaml")
    assert (trained.model.width, trained.train.steps, trained.train.seed) == (6, STEPS, 7)

    best = load_config(out / "best.yaml")
    assert best.prior.components == study.best_trial.params["prior.components"]
    assert best.loss.lambda_kl == study.best_trial.params["loss.lambda_kl"]
    assert best.train.steps == small_config(store).train.steps  # the base's, not a trial's

    told = CliRunner().invoke(main, ["--config", str(file), "--out", str(out)])
    assert told.exit_code == 1
    assert "add --resume" in told.output
    shown = CliRunner().invoke(tune_command, ["report", str(out)])
    assert shown.exit_code == 0, shown.output
    page = (out / "report.html").read_text()
    for part in ("History", "Importances", "Slices", "Parallel coordinates", "Timeline",
                 "side by side", "worker hours", "no translation", "Retrained",
                 str(rival)):  # fmt: skip
        assert part in page, part
    assert "<script src=" not in page  # self-contained


@pytest.mark.long
def test_bad_trials_are_succeeded_by_trainings_that_go_on_from_good_ones(store, tmp_path):
    out = tmp_path / "search"
    space = {
        "prior.components": {"int": [1, 8], "log": True},
        "loss.lambda_kl": {"float": [1e-3, 1.0], "log": True},
        "optim.lr": {"float": [1e-4, 1e-2], "log": True},
    }
    file = written(
        tmp_path, store, steps=60, space=space, resources={"most_at_once": 1},
        pruner={"name": "pbt", "factor": 2, "startup_trials": 2},
    )  # fmt: skip
    searched(file, out)
    trials = load_study(str(out)).trials
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    successors = [trial for trial in trials if PARENT in trial.user_attrs]
    ended = [trial for trial in trials if trial.state is TrialState.PRUNED]
    assert len(counted(trials)) == len(complete) == 3
    assert len(successors) == len(ended) >= 1
    for trial in successors:
        parent, step = (trial.user_attrs[PARENT][name] for name in ("number", "step"))
        run = Path(trial.user_attrs["run"])
        assert first_steps(run) == [step]
        assert min(trial.intermediate_values) == step + EVERY
        other = trials[parent].params
        assert trial.params["prior.components"] == other["prior.components"]
        assert trial.params["loss.lambda_kl"] != other["loss.lambda_kl"]
        config = load_config(run / "config.yaml")
        assert config.loss.lambda_kl == trial.params["loss.lambda_kl"]
