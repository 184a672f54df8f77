"""The second search, on another cohort, begins with what the first one found."""

from __future__ import annotations

import statistics
import warnings
from pathlib import Path

import optuna
import pytest
from driven_search import Search
from optuna.trial import TrialState

from tune.config import SearchConfig
from tune.first_points import enqueue, first_points, source_trials
from tune.sampling import sampler_of
from tune.study import FINAL, StudyError, create_study

optuna.logging.set_verbosity(optuna.logging.WARNING)
SPACE = {
    "prior.components": {"int": [1, 16], "log": True},
    "loss.lambda_kl": {"float": [1e-3, 1], "log": True},
    "loss.lambda_gan": {"float": [0.1, 10], "log": True},
}
BEST = {"prior.components": 6, "loss.lambda_kl": 0.3, "loss.lambda_gan": 0.4}
NO_EARLY_END = {"name": "none"}


def distance(params: dict[str, float]) -> float:
    """0 at BEST; the same for each cohort up to an offset."""
    low = {path: space.get("int", space.get("float")) for path, space in SPACE.items()}
    return sum(
        abs(params[path] - best) / (low[path][1] - low[path][0]) for path, best in BEST.items()
    )


def earlier_search(folder: Path, trials: int = 20, space=SPACE) -> Search:
    search = Search(folder, trials=trials, space=space, pruner=NO_EARLY_END)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        search.study.set_metric_names(["kid"])
    search.study.enqueue_trial(BEST | {"loss.lambda_kl": 0.29})
    for number in range(trials):
        search.algorithm.suggest(str(number))
        search.train(str(number), distance(search.study.trials[number].params))
    return search


def later_search(folder: Path, earlier: Path, space=SPACE, names=("kid",), **warm) -> Search:
    """As `tune.search.search` begins one."""
    folder.mkdir()
    sampler = {"name": "cmaes" if warm.get("trials") else "tpe"}
    search = Search(
        folder, names, trials=9, space=space, pruner=NO_EARLY_END, sampler=sampler,
        warm_start={"storage": str(earlier)} | warm,
    )  # fmt: skip
    source = source_trials(search.config, search.space)
    search.study.sampler = sampler_of(search.config.sampler, earlier=source)
    enqueue(search.study, search.space, first_points(search.config, search.space))
    return search


def test_the_best_points_of_the_first_search_are_trained_again_on_the_new_cohort(tmp_path):
    first = earlier_search(tmp_path)
    best = sorted(first.study.trials, key=lambda trial: trial.value)[:3]
    for _ in range(2):  # a resume does not try them twice
        later = later_search(tmp_path / f"later{_}", tmp_path)
        enqueue(later.study, later.space, first_points(later.config, later.space))
        for number in range(4):
            later.algorithm.suggest(str(number))
            later.train(str(number), 100.0 + number)  # this cohort's values lie elsewhere
        assert [t.params for t in later.study.trials[:3]] == [t.params for t in best]
        assert later.study.trials[0].user_attrs["origin"] == f"s, trial {best[0].number}"
        assert "origin" not in later.study.trials[3].user_attrs
        assert later.study.best_value == 100.0  # no value of the other cohort counts
        states = [trial.state for trial in later.study.trials]
        assert states == [TrialState.COMPLETE] * 4


def test_points_are_moved_into_a_narrower_space_and_other_settings_left_out(tmp_path):
    earlier_search(tmp_path)
    space = {"prior.components": {"int": [1, 4]}, "optim.lr": {"float": [1e-4, 1e-2], "log": True}}
    later = later_search(tmp_path / "later", tmp_path, space)
    later.algorithm.suggest("0")
    assert later.study.trials[0].params["prior.components"] == 4
    assert 1e-4 <= later.study.trials[0].params["optim.lr"] <= 1e-2


def test_what_retraining_found_best_comes_first(tmp_path):
    first = earlier_search(tmp_path)
    third = sorted(first.study.trials, key=lambda trial: trial.value)[2]
    final = create_study(first.study._storage, f"s{FINAL}", ["minimize"], first.study.sampler)
    for components, value in ((None, 0.5), (9, 0.1)):
        attributes = {"point": third.number, "components": components, "seed": 1}
        final.enqueue_trial(third.params, user_attrs=attributes)
        final.tell(final.ask(), value)
    later = later_search(tmp_path / "later", tmp_path)
    later.algorithm.suggest("0")
    assert later.study.trials[0].params == third.params | {"prior.components": 9}


def test_cmaes_begins_where_the_good_trials_of_the_first_search_lie(tmp_path):
    earlier_search(tmp_path, trials=60)

    def proposed(folder: Path, **warm) -> list[float]:
        search = later_search(folder, tmp_path, points=1, **warm)
        found = []
        for number in range(9):
            search.algorithm.suggest(str(number))
            search.train(str(number), 5.0)  # it learns nothing of its own
            found.append(distance(search.study.trials[number].params))
        return found[2:]  # the best point, and one before cmaes begins

    cold = proposed(tmp_path / "cold")
    warm = proposed(tmp_path / "warm", trials=True)
    assert statistics.median(warm) < 0.6 * statistics.median(cold)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"names": ("calcium_kept",)}, "is of minimize kid, this search of maximize calcium_kept"),
        ({"space": SPACE | {"loss.lambda_kl": {"float": [1e-3, 2]}}}, "drew loss.lambda_kl by"),
        ({"space": {"loss.lambda_kl": SPACE["loss.lambda_kl"]}}, "drew prior.components by"),
    ],
)
def test_trials_of_another_space_or_objective_are_refused(tmp_path, changed, message):
    earlier_search(tmp_path, trials=3)
    with pytest.raises(StudyError, match=message):
        later_search(tmp_path / "later", tmp_path, trials=True, **changed)


def test_only_cmaes_takes_an_earlier_searchs_trials(tmp_path):
    settings = {"space": SPACE, "objectives": ["kid"], "base": {"config": "demo"}}
    warm = {"storage": str(tmp_path), "trials": True}
    with pytest.raises(ValueError, match=r"warm_start\.trials needs sampler cmaes, not tpe"):
        SearchConfig.model_validate(settings | {"warm_start": warm})


def test_an_earlier_search_that_finished_nothing_is_named(tmp_path):
    Search(tmp_path, space=SPACE)
    with pytest.raises(StudyError, match="warm_start: study s has no complete trial"):
        later_search(tmp_path / "later", tmp_path)
