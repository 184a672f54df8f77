"""The study as Ray Tune's search algorithm: budget, dead drivers, early ends, constraints."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from driven_search import SPACE, TWO, Search
from optuna.trial import TrialState
from ray.tune.search import Searcher

from pmg.config import ConfigError, load_config
from tune.best import best_first, chosen
from tune.config import ConstraintsConfig, FinalConfig, PrunerConfig, SamplerConfig
from tune.study import counted

optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_the_budget_ends_the_search(tmp_path):
    search = Search(tmp_path, trials=3, pruner={"name": "none"})
    for number in range(3):
        assert "folder" in search.algorithm.suggest(str(number))
        search.train(str(number), float(number))
    assert search.algorithm.suggest("more") == Searcher.FINISHED
    assert Search(tmp_path, trials=3).algorithm.suggest("again") == Searcher.FINISHED
    assert "folder" in Search(tmp_path, trials=4).algorithm.suggest("one more")


def test_the_trials_of_a_dead_driver_keep_number_settings_and_folder(tmp_path):
    first = Search(tmp_path, trials=3, pruner={"name": "none"})
    places = [first.algorithm.suggest(str(n))["folder"] for n in range(3)]
    configs = [(Path(place) / "config.yaml").read_text() for place in places]
    first.train("0", 1.0)
    first.algorithm.take("1", first.result(100, 2.0))

    second = Search(tmp_path, trials=3, pruner={"name": "none"})
    assert [second.algorithm.suggest(str(n))["folder"] for n in range(2)] == places[1:]
    assert [(Path(place) / "config.yaml").read_text() for place in places] == configs
    assert second.algorithm.suggest("more") == Searcher.FINISHED
    second.train("0", 2.0)  # from its observations, those that are known come again
    second.train("1", 3.0)
    assert [t.state for t in second.study.trials] == [TrialState.COMPLETE] * 3
    assert [t.value for t in second.study.trials] == [1.0, 2.0, 3.0]
    assert len(counted(second.study.trials)) == 3


def test_a_driver_that_died_between_asking_and_drawing_leaves_a_trial_to_draw(tmp_path):
    first = Search(tmp_path, trials=1)
    first.study.ask()  # and dead
    second = Search(tmp_path, trials=1)
    place = Path(second.algorithm.suggest("0")["folder"])
    assert place.name == "trial_0000"
    components = second.study.trials[0].params["prior.components"]
    assert load_config(place / "config.yaml").prior.components == components
    assert second.algorithm.suggest("1") == Searcher.FINISHED


def test_hopeless_trials_are_ended_and_their_workers_told_so(tmp_path):
    search = Search(tmp_path, trials=20, pruner={"name": "asha", "factor": 2})
    ended = {}
    for number in range(8):
        folder = Path(search.algorithm.suggest(str(number))["folder"])
        ended[number] = search.train(str(number), float(number))
        assert (folder / "stop").exists() == ended[number]
    assert not ended[0]  # the best of all
    assert all(ended[n] for n in range(2, 8))
    assert search.study.trials[7].state is TrialState.PRUNED
    assert search.study.trials[7].user_attrs["step"] == 100


@pytest.mark.parametrize("name", ["asha", "median", "hyperband"])
def test_no_trial_is_ended_before_its_grace_is_over(tmp_path, name):
    search = Search(
        tmp_path,
        trials=20,
        pruner={"name": name, "factor": 2, "startup_trials": 1, "grace_steps": 200},
    )
    for number in range(8):
        search.algorithm.suggest(str(number))
        search.train(str(number), float(number))
    ended = [t for t in search.study.trials if t.state is TrialState.PRUNED]
    assert ended
    assert all(trial.user_attrs["step"] >= 200 for trial in ended)


def test_with_several_objectives_the_first_ends_trials_early(tmp_path):
    search = Search(tmp_path, TWO, trials=9, pruner={"name": "asha", "factor": 2})
    for number in range(4):
        search.algorithm.suggest(str(number))
        search.train(str(number), float(number), 50.0 + number)
    states = [trial.state for trial in search.study.trials]
    assert states[0] is TrialState.COMPLETE
    assert states[3] is TrialState.PRUNED
    assert search.study.trials[0].values == [0.0, 50.0]


def test_the_best_of_several_objectives_are_those_of_the_front(tmp_path):
    search = Search(tmp_path, TWO, trials=4, pruner={"name": "none"})
    for number, values in enumerate([(1.0, 10.0), (2.0, 30.0), (3.0, 20.0), (0.5, 5.0)]):
        search.algorithm.suggest(str(number))
        search.train(str(number), *values)
    assert [trial.number for trial in best_first(search.study)] == [3, 0, 1, 2]


def test_a_failed_trial_says_why_and_counts(tmp_path):
    search = Search(tmp_path, trials=2)
    search.algorithm.suggest("0")
    assert not search.algorithm.take("0", {"failed": "loss not finite", "step": 0, "done": True})
    search.algorithm.on_trial_complete("0", {"failed": "loss not finite"})
    search.algorithm.suggest("1")
    search.algorithm.on_trial_complete("1", None, error=True)
    assert [t.state for t in search.study.trials] == [TrialState.FAIL] * 2
    assert search.study.trials[0].user_attrs["error"] == "loss not finite"
    assert search.study.trials[1].user_attrs["error"] == "its processes died 0 times"
    assert search.algorithm.suggest("2") == Searcher.FINISHED


def test_values_that_are_not_numbers_fail_a_trial(tmp_path):
    search = Search(tmp_path, pruner={"name": "none"})
    search.algorithm.suggest("0")
    search.train("0", float("nan"))
    assert search.study.trials[0].state is TrialState.FAIL
    assert "not finite" in search.study.trials[0].user_attrs["error"]


def test_a_trial_beyond_the_constraints_is_never_the_best(tmp_path):
    limits = ConstraintsConfig(memory_bytes=1000, seconds_per_step=1.0).model_dump()
    search = Search(tmp_path, pruner={"name": "none"}, constraints=limits)
    for number, (value, memory) in enumerate([(0.1, 1001), (0.5, 999), (0.7, 10)]):
        search.algorithm.suggest(str(number))
        search.train(str(number), value, memory_bytes=memory)
    assert [trial.number for trial in best_first(search.study)] == [1, 2]
    assert search.study.best_trial.number == 1


def test_settings_that_do_not_fit_together_fail_without_a_training(tmp_path):
    space = {
        "prior.components": {"int": [1, 200]},
        "prior.min_weight": {"float": [1e-4, 0.01], "if": "prior.components > 1"},
    }
    search = Search(tmp_path, trials=500, space=space)
    assert "folder" in search.algorithm.suggest("0")
    failed = [t for t in search.study.trials if t.state is TrialState.FAIL]
    assert all("must be below 1" in trial.user_attrs["error"] for trial in failed)


def test_a_space_whose_settings_never_fit_together_is_refused(tmp_path):
    space = {
        "model.blocks": {"int": [2, 3]},
        "model.shared_blocks": {"choice": [1, 2]},
        "model.downsamplings": {"choice": [1, 2]},
    }
    search = Search(tmp_path, trials=500, space=space)
    search.algorithm._of_attributes = _never
    with pytest.raises(ConfigError, match="50 points in a row"):
        search.algorithm.suggest("0")


def _never(config, attributes):
    raise ConfigError("never")


def test_the_points_to_retrain_are_the_best_and_the_best_at_other_k(tmp_path):
    search = Search(tmp_path, pruner={"name": "none"})
    for number in range(4):
        search.algorithm.suggest(str(number))
        search.train(str(number), abs(number - 2.0))
    own = search.study.trials[2].params["prior.components"]
    final = FinalConfig(points=2, components=(own, own + 1))
    points = chosen(search.study, final, search.space)
    assert [(number, k) for number, k, _ in points] == [(2, None), (1, None), (2, own + 1)]
    assert points[0][2]["prior.components"] == own


@pytest.mark.parametrize("name", ["tpe", "gp", "cmaes", "nsga2", "random"])
def test_every_sampler_draws_conditional_and_list_settings_inside_the_space(tmp_path, name):
    space = SPACE | {"data.patch": {"choice": [[32, 32], [64, 64]]}}
    sampler = SamplerConfig(name=name, startup_trials=3, population=3).model_dump()
    search = Search(
        tmp_path, trials=12, space=space, sampler=sampler,
        pruner=PrunerConfig(name="none").model_dump(),
    )  # fmt: skip
    for number in range(8):
        search.algorithm.suggest(str(number))
        search.train(str(number), 1.0 / (1 + number))
    for trial in search.study.trials:
        assert 1 <= trial.params["prior.components"] <= 16
        assert ("prior.min_weight" in trial.params) == (trial.params["prior.components"] > 1)
        assert trial.params["data.patch"] in ("[32, 32]", "[64, 64]")
