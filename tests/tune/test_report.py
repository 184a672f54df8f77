"""The report of a study, and the configuration that it ends with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from click.testing import CliRunner
from small_run import make_store, small_config

from launch.train import with_store
from pmg.cli.tune import command
from pmg.config import load_config
from pmg.training import build_modules
from pmg.weights import save_translator
from tune.best import best_first, winner
from tune.config import SearchConfig
from tune.report import components_advice
from tune.search import _describe
from tune.space import Space
from tune.study import FINAL, create_study, load_study, open_storage

optuna.logging.set_verbosity(optuna.logging.WARNING)
RANDOM = optuna.samplers.RandomSampler(seed=3)
NAMES = ["sliced_wasserstein", "gradient_correlation"]


@pytest.fixture
def searched(tmp_path):
    """A finished search of two objectives: its folder, study and space."""
    make_store(tmp_path / "store")
    held = {"patch": (32, 32), "validation_fraction": 0.5}
    base = tmp_path / "base.yaml"
    base.write_text(small_config(tmp_path / "store", data=held).to_yaml(), encoding="utf-8")
    config = SearchConfig.model_validate(
        {
            "base": {"config": str(base)},
            "space": {
                "prior.components": {"int": [1, 8], "log": True},
                "loss.lambda_kl": {"float": [1e-3, 1.0], "log": True},
            },
            "objectives": NAMES,
            "budget": {"trials": 8, "steps": 20, "evaluate_every": 20},
        }
    )
    found, _ = with_store(config.config())
    space = Space(config.searched().parameters, {}, found)
    folder = tmp_path / "search"
    folder.mkdir()
    storage = open_storage(str(folder / "study.journal"))
    sampler = optuna.samplers.RandomSampler(seed=3)
    study = create_study(storage, "pmg", ["minimize", "maximize"], sampler)
    _describe(study, config, found, {"sliced_wasserstein": 0.5, "gradient_correlation": 1.0})
    for number in range(8):
        trial = study.ask()
        k = space.suggest(trial)["prior.components"]
        finish(study, trial, folder / f"t{number}", [abs(k - 4) + 0.01 * number, 1 - 0.1 * number])
    save_translator(build_modules(found)[0], found, folder / "t0" / "model")
    return folder, study, space


def finish(study, trial, run: Path, values: list[float]) -> None:
    run.mkdir(exist_ok=True)
    seconds = {"start": 2.0, "steps": 20.0, "evaluation": 3.0, "rest": 0.1}
    attributes = {"run": str(run), "step": 20, "worker_seconds": 36.0, "seconds": seconds}
    attributes |= {"objectives": dict(zip(NAMES, values, strict=True)), "attempts": 1}
    for name, value in attributes.items():
        trial.set_user_attr(name, value)
    study.tell(trial, values)


def retrain(study, space, tmp_path, centres: dict[int, float], seeds: int) -> None:
    """The best point at several K, as `final.components` has it done."""
    best = best_first(study)[0]
    final = create_study(study._storage, f"pmg{FINAL}", ["minimize", "maximize"], RANDOM)
    own = best.params["prior.components"]
    for k, centre in centres.items():
        for seed in range(seeds):
            other = None if k == own else k
            attributes = {"point": best.number, "components": other, "seed": seed}
            final.enqueue_trial(best.params, user_attrs=attributes)
            trial = final.ask()
            space.suggest(trial)
            finish(final, trial, tmp_path / "again", [centre + 0.001 * seed, 0.5])


def test_the_page_shows_everything_and_fetches_nothing(searched, tmp_path):
    folder, study, space = searched
    retrain(study, space, tmp_path, {1: 2.0, 4: 0.1, 8: 0.1}, seeds=6)
    final = load_study(str(folder), f"pmg{FINAL}")
    final.enqueue_trial({}, user_attrs={"against": "faithful", "seed": 1})
    finish(final, final.ask(), tmp_path / "faithful", [0.7, 0.6])
    done = CliRunner().invoke(command, ["report", str(folder)])
    assert done.exit_code == 0, done.output
    page = (folder / "report.html").read_text(encoding="utf-8")
    for part in ("History", "Importances", "Slices", "Parallel coordinates", "Pareto front",
                 "Timeline", "worker hours", "no translation", "Number of components",
                 "4 and 8 do not differ", "Retrained with other seeds", "<td>faithful</td>",
                 "0.7 (0.7 to 0.7)"):  # fmt: skip
        assert part in page, part
    assert ("side by side" in page) == (study.trials[0] in best_first(study)[:4])
    assert "<script src=" not in page
    assert "0.080" in page  # 8 trials of 36 s


def test_the_page_is_written_whatever_the_locale(searched):
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "pmg", "tune", "report", str(searched[0])],
        env=os.environ | ascii_alone,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_best_yaml_is_a_training_of_the_bases_own_length(searched):
    folder, study, space = searched
    assert CliRunner().invoke(command, ["report", str(folder)]).exit_code == 0
    best = load_config(folder / "best.yaml")
    trial, components = winner(study)
    assert components is None
    assert best.prior.components == trial.params["prior.components"]
    assert best.loss.lambda_kl == trial.params["loss.lambda_kl"]
    assert best.train == small_config("x").train
    assert best.data.store == space.base.data.store


def test_the_retrainings_median_decides_which_point_and_k_is_best(searched, tmp_path):
    _, study, space = searched
    own = best_first(study)[0].params["prior.components"]
    retrain(study, space, tmp_path, {own: 0.5, own + 1: 0.2}, seeds=3)
    trial, components = winner(study)
    assert (trial.number, components) == (best_first(study)[0].number, own + 1)


def test_advice_goes_by_trainings_that_differ_in_k_alone_where_there_are_any(searched, tmp_path):
    _, study, space = searched
    assert components_advice(study, space).components is None  # too few trials of each
    retrain(study, space, tmp_path, {1: 2.0, 2: 0.3, 6: 0.3}, seeds=6)
    advice = components_advice(study, space)
    assert advice.components == 2
    assert advice.same == (2, 6)


def test_a_study_that_is_none_of_a_search_is_refused(tmp_path):
    create_study(open_storage(str(tmp_path / "study.journal")), "other", ["minimize"], RANDOM)
    refused = CliRunner().invoke(command, ["report", str(tmp_path)])
    assert refused.exit_code == 1
    assert "study other: it is of no search" in refused.output
