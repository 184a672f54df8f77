"""Population-based training: who is ended, what succeeds it, and what a killed driver leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from driven_search import SPACE, Search
from optuna.trial import TrialState
from ray.tune.search import Searcher

from launch import checkpoint
from launch.run_folder import RunFolder
from pmg.config import load_config
from storage.place import Place
from tune.study import counted
from tune.table import trial_table
from tune.trial import TrialFolder

PBT = {"name": "pbt", "factor": 2, "startup_trials": 2}
WIDE = SPACE | {"optim.lr": {"float": [1e-4, 1e-2], "log": True}}


def population(folder: Path, trials: int = 2, **pruner: object) -> Search:
    random = {"name": "random"}
    return Search(folder, trials=trials, space=WIDE, pruner=PBT | pruner, sampler=random)


def save(run: Path, step: int, weight: float) -> None:
    """A checkpoint as the workers of a trial write it."""
    place = Place.of(RunFolder(run).checkpoints)
    config = TrialFolder(run).config()
    digest = checkpoint.write(place, step, "translator-0.safetensors", {"w": torch.tensor(weight)})
    state = {"step": step, "identity": checkpoint.identity(config, "cohort")}
    checkpoint.seal(place, state, {"translator-0.safetensors": digest})


def begun(search: Search, *values: float) -> list[Path]:
    """Trials that have come to step 100 with these values, in order, and have saved it."""
    folders = []
    for number, value in enumerate(values):
        folder = Path(search.algorithm.suggest(str(number))["folder"])
        save(folder, 100, weight=value)
        ended = search.algorithm.take(str(number), search.result(100, value))
        assert not ended, "none was to be ended yet"
        folders.append(folder)
    return folders


def end_a_bad_one(search: Search) -> tuple[Path, str]:
    """The folder of the good trial, and the name of the one that was ended."""
    (good,) = begun(search, 1.0)
    bad = Path(search.algorithm.suggest("bad")["folder"])
    assert search.algorithm.take("bad", search.result(100, 2.0))
    assert (bad / "stop").exists()
    return good, "bad"


def test_in_a_bad_trials_place_a_good_ones_weights_are_trained_on_with_other_settings(tmp_path):
    search = population(tmp_path)
    good, bad = end_a_bad_one(search)
    search.algorithm.on_trial_complete(bad, search.result(100, 2.0))
    place = TrialFolder(Path(search.algorithm.suggest("next")["folder"]))
    parent, ended, successor = search.study.trials
    assert ended.state is TrialState.PRUNED
    assert successor.user_attrs["parent"] == {"number": 0, "step": 100, "run": str(good)}
    for path in ("prior.components", "prior.min_weight"):  # of the networks, or no weight
        assert successor.params.get(path) == parent.params.get(path)
    for path in ("loss.lambda_kl", "optim.lr"):
        assert successor.params[path] != parent.params[path]
    config = place.config()
    assert config.loss.lambda_kl == successor.params["loss.lambda_kl"]

    place.inherit(config)
    found = checkpoint.newest(place.run.checkpoints)
    assert (found.step, dict(found.tensors("translator"))["w"]) == (100, torch.tensor(1.0))
    checkpoint.refuse_other(found, checkpoint.identity(config, "cohort"))  # it is its own
    of_parent = checkpoint.newest(RunFolder(good).checkpoints)
    with pytest.raises(checkpoint.CheckpointError, match=r"optim\.lr is"):
        checkpoint.refuse_other(of_parent, checkpoint.identity(config, "cohort"))


def test_a_successor_takes_its_place_before_points_that_wait_for_a_larger_budget(tmp_path):
    search = population(tmp_path)
    _, bad = end_a_bad_one(search)
    search.study.enqueue_trial({"optim.lr": 1e-3})
    search.algorithm.on_trial_complete(bad, search.result(100, 2.0))
    assert search.algorithm.suggest("next")["folder"].endswith("trial_0003")
    assert search.algorithm.suggest("more") is None
    assert search.study.trials[2].state is TrialState.WAITING


def test_weights_that_were_damaged_on_the_way_are_not_trained_on(tmp_path):
    search = population(tmp_path)
    good, bad = end_a_bad_one(search)
    search.algorithm.on_trial_complete(bad, search.result(100, 2.0))
    place = TrialFolder(Path(search.algorithm.suggest("next")["folder"]))
    (file,) = (good / "checkpoints" / "step_00000100").glob("translator-*")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(checkpoint.CheckpointError, match="does not have the digest"):
        place.inherit(place.config())


def test_a_trial_and_its_successors_count_as_one(tmp_path):
    search = population(tmp_path)
    _, bad = end_a_bad_one(search)
    assert search.algorithm.suggest("early") is None  # while it may still be succeeded
    search.algorithm.on_trial_complete(bad, search.result(100, 2.0))
    assert "folder" in search.algorithm.suggest("next")
    assert len(search.study.trials) == 3
    assert len(counted(search.study.trials)) == 2
    assert trial_table(search.study, search.study.trials, 2).title == "s: 0 of 2 trials"
    assert search.algorithm.suggest("more") is None
    for name in ("0", "next"):
        search.algorithm.on_trial_complete(name, search.result(400, 0.5))
    assert search.algorithm.suggest("more") == Searcher.FINISHED
    assert trial_table(search.study, search.study.trials, 2).title == "s: 2 of 2 trials"


@pytest.mark.parametrize("told", [False, True])
def test_what_a_killed_driver_had_decided_is_done_once(tmp_path, told):
    first = population(tmp_path)
    _, bad = end_a_bad_one(first)
    if told:
        first.algorithm._tell(first.algorithm._ot_trials[bad], TrialState.PRUNED)
    for _ in range(2):
        second = population(tmp_path)
        states = [trial.state for trial in second.study.trials]
        assert states == [TrialState.RUNNING, TrialState.PRUNED, TrialState.WAITING]
    assert second.algorithm.suggest("0")["folder"].endswith("trial_0000")  # goes on
    assert second.algorithm.suggest("1")["folder"].endswith("trial_0002")
    assert "parent" in second.study.trials[2].user_attrs


def test_a_step_that_a_resume_repeats_is_not_judged_again(tmp_path):
    first = population(tmp_path, trials=4, startup_trials=3)
    begun(first, 2.0, 1.0)
    first.algorithm.suggest("good")
    assert not first.algorithm.take("good", first.result(100, 1.5))
    second = population(tmp_path, trials=4, startup_trials=3)
    second.algorithm.suggest("0")
    assert not second.algorithm.take("0", second.result(100, 2.0))  # the worst of three by now


def test_none_is_ended_before_enough_have_come_to_its_step(tmp_path):
    search = population(tmp_path, trials=4, startup_trials=4)
    begun(search, 1.0, 2.0, 3.0)
    search.algorithm.suggest("last")
    assert search.algorithm.take("last", search.result(100, 4.0))


def test_none_is_ended_where_no_good_trial_has_saved_its_weights(tmp_path):
    search = population(tmp_path)
    search.algorithm.suggest("0")
    assert not search.algorithm.take("0", search.result(100, 1.0))
    search.algorithm.suggest("1")
    assert not search.algorithm.take("1", search.result(100, 2.0))


def test_a_trial_whose_objective_is_no_number_is_the_worst_and_is_never_handed_on(tmp_path):
    search = population(tmp_path)
    (good,) = begun(search, float("nan"))
    search.algorithm.suggest("1")
    assert not search.algorithm.take("1", search.result(100, 2.0))
    save(good, 200, weight=0.0)
    assert not search.algorithm.take("1", search.result(200, float("nan")))


def test_where_large_is_good_the_small_are_ended(tmp_path):
    search = Search(tmp_path, ("calcium_kept",), trials=2, space=WIDE, pruner=PBT)
    begun(search, 50.0)
    search.algorithm.suggest("1")
    assert search.algorithm.take("1", search.result(100, 40.0))


def test_changed_settings_stay_in_their_ranges(tmp_path):
    search = population(tmp_path)
    change = search.algorithm._population.changed
    values = {"prior.components": 3, "loss.lambda_kl": 1.0, "optim.lr": 1e-4}
    seen = {path: set() for path in values}
    for seed in range(200):
        for path, value in change(values, np.random.default_rng(seed)).items():
            assert search.space.parameters[path].holds(value)
            seen[path].add(round(value, 6))
    assert seen["prior.components"] == {3}
    assert {0.8, 1.0} <= seen["loss.lambda_kl"]  # a fifth smaller; 1.25 is beyond its range
    assert len(seen["loss.lambda_kl"]) > 20  # drawn anew


def test_every_checkpoint_is_kept_for_successors(tmp_path):
    search = population(tmp_path)
    assert search.config.config().train.keep == 4  # 400 steps, evaluated every 100
    folder = Path(search.algorithm.suggest("0")["folder"])
    assert load_config(folder / "config.yaml").train.keep == 4
