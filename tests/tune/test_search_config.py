"""What a search's configuration refuses, and by which name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pmg.config import ConfigError, load_config
from tune.config import load_search, point_values
from tune.space import checked_space, with_values

SMALL = {
    "base": {"config": "demo"},
    "space": {"prior.components": {"int": [1, 16], "log": True}},
    "objectives": ["sliced_wasserstein"],
}


def written(tmp_path: Path, **changed: object) -> Path:
    file = tmp_path / "tune.yaml"
    file.write_text(yaml.safe_dump(SMALL | changed))
    return file


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"space": {"prior.componets": {"int": [1, 4]}}}, "did you mean prior.components?"),
        ({"space": {"loss.lambda_kl": {"float": [1, 0.1]}}}, r"range \[1, 0.1\] is empty"),
        ({"space": {"loss.lambda_kl": {"float": [1, 1]}}}, "is empty"),
        ({"space": {"loss.lambda_kl": {"float": [0, 1], "log": True}}}, "lower end above 0"),
        ({"space": {"prior.components": {"int": [0, 4]}}}, "prior.components: 0 does not fit"),
        ({"space": {"prior.components": {"int": [1, 500]}}}, "prior.components: 500 does not fit"),
        ({"space": {"prior.components": {"float": [1, 16]}}}, "6.7.* does not fit"),
        ({"space": {"model.norm": {"choice": ["none", "batch"]}}}, "'batch' does not fit"),
        ({"space": {"model.norm": {"choice": ["none"]}}}, "expected two or more"),
        ({"space": {"loss.lambda_kl": {}}}, "expected one of int"),
        ({"space": {"train.seed": {"int": [0, 4]}}}, "final.seeds retrain with others"),
        ({"space": {"data.store": {"choice": ["a", "b"]}}}, "trials share one store"),
        ({"space": {"launch.workers": {"int": [1, 2]}}}, "resources says it"),
        ({"space": {}}, "space"),
        ({"objectives": ["body_mea"]}, "did you mean body_mae?"),
        ({"objectives": ["no_such_thing_at_all"]}, "known: sliced_wasserstein"),
        ({"objectives": ["body_mae"]}, "set validation.cases"),
        ({"objectives": []}, "objectives"),
        ({"objectives": ["kid", "kid"]}, "must differ"),
        ({"objectives": ["kid", "calcium_kept"], "sampler": {"name": "cmaes"}}, "one objective"),
        ({"objectives": ["kid", "calcium_kept"], "pruner": {"name": "median"}}, "one objective"),
        ({"final": {"seeds": [2, 1]}}, "final.seeds: 1 is the seed that trials have"),
        ({"final": {"points": 0, "against": ["unit"]}}, "expected 1 or more"),
        ({"final": {"against": ["faithfull"]}}, "config faithfull: no such file, nor a preset"),
        ({"final": {"against": ["unit"]}, "resources": {"workers": 2}}, "train.batch 1 must be"),
        ({"pruner": {"name": "pbt"}}, r"a float range of loss.\* or optim.lr in the space"),
        ({"pruner": {"grace_steps": 9999}}, "pruner.grace_steps 9999 leaves nothing to end early"),
        ({"budget": {"steps": 100, "evaluate_every": 30}}, "multiple of evaluate_every 30"),
        ({"budget": {"trails": 3}}, "budget.trails: unknown field; did you mean budget.trials?"),
        ({"resources": {"workers": 2, "gpus_per_worker": 0.5}}, "needs workers 1"),
        ({"base": {"config": "fateful"}}, "no such file, nor a preset"),
        ({"base": {"overrides": ["prior.componets=3"]}}, "did you mean prior.components"),
    ],
)
def test_what_is_wrong_is_refused_by_its_name(tmp_path, changed, message):
    with pytest.raises(ConfigError, match=message):
        load_search(written(tmp_path, **changed))


CONDITIONAL = {
    "prior.components": {"int": [1, 16], "log": True},
    "prior.min_weight": {"float": [1e-4, 1e-2], "log": True, "if": "prior.components > 1"},
}


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("prior.components", "expected a setting, an operator and a value"),
        ("prior.components > 99", "never holds"),
        ("prior.componets > 1", "did you mean prior.components?"),
        ("prior.min_weight > 0", "must stand before"),
    ],
)
def test_a_condition_that_can_not_be_met_or_read_is_refused(tmp_path, condition, message):
    space = CONDITIONAL | {"prior.min_weight": {"float": [1e-4, 1e-2], "if": condition}}
    with pytest.raises(ConfigError, match=message):
        load_search(written(tmp_path, space=space))


class Drawn:
    """What Optuna would suggest, as a test wants it."""

    def __init__(self, **values: object) -> None:
        self._values = values
        self.asked: list[str] = []

    def _of(self, name: str) -> object:
        self.asked.append(name)
        return self._values[name]

    def suggest_int(self, name, low, high, *, log=False):
        return self._of(name)

    def suggest_float(self, name, low, high, *, log=False):
        return self._of(name)

    def suggest_categorical(self, name, choices):
        assert self._values[name] in choices
        return self._of(name)


def test_a_setting_whose_condition_does_not_hold_is_not_drawn_and_stays_the_bases(tmp_path):
    space = load_search(written(tmp_path, space=CONDITIONAL)).searched()
    one = Drawn(**{"prior.components": 1, "prior.min_weight": 0.005})
    assert space.suggest(one) == {"prior.components": 1}
    assert one.asked == ["prior.components"]
    two = Drawn(**{"prior.components": 2, "prior.min_weight": 0.005})
    assert space.suggest(two) == {"prior.components": 2, "prior.min_weight": 0.005}


def test_lists_are_choices_too(tmp_path):
    patches = [[32, 32], [64, 64]]
    space = load_search(written(tmp_path, space={"data.patch": {"choice": patches}})).searched()
    drawn = space.suggest(Drawn(**{"data.patch": "[32, 32]"}))
    assert drawn == {"data.patch": [32, 32]}
    assert with_values(space.base, drawn).data.patch == (32, 32)
    assert space.decoded(space.fixed(drawn)) == drawn


def test_points_of_presets_are_moved_into_the_ranges_and_given_ones_refused(tmp_path):
    search = load_search(
        written(
            tmp_path,
            space={
                "prior.components": {"int": [1, 2]},
                "prior.min_weight": {"float": [1e-4, 1e-2], "if": "prior.components > 1"},
                "optim.lr": {"float": [2e-4, 1e-2], "log": True},
            },
        )
    )
    space = search.searched()
    faithful = point_values(search, space, "faithful")  # K = 4, lr = 1e-4
    assert faithful == {"prior.components": 2, "prior.min_weight": 1e-3, "optim.lr": 2e-4}
    unit = point_values(search, space, "unit")
    assert unit == {"prior.components": 1, "optim.lr": 2e-4}
    assert point_values(search, space, {"optim.lr": "1e-3"}) == {"optim.lr": 1e-3}
    with pytest.raises(ConfigError, match=r"optim.lr: 0.5 is not in the space's \[0.0002, 0.01\]"):
        point_values(search, space, {"optim.lr": 0.5})
    with pytest.raises(ConfigError, match=r"optim.lrr: not in the space; did you mean optim.lr"):
        point_values(search, space, {"optim.lrr": 0.001})


def test_the_base_gets_what_the_search_decides_and_nothing_else(tmp_path):
    search = load_search(
        written(
            tmp_path,
            budget={"steps": 120, "evaluate_every": 30},
            resources={"workers": 2, "cpus_per_worker": 0.5},
            base={"config": "demo", "overrides": ["data.validation_fraction=0.4"]},
        )
    )
    config = search.config()
    assert (config.train.steps, config.train.checkpoint_every) == (120, 30)
    assert config.train.log_every == 15  # the demo's 20 does not divide 30
    assert (config.launch.workers, config.launch.cpus_per_worker) == (2, 0.5)
    assert config.data.validation_fraction == 0.4
    assert config.model.width == 8


def test_a_search_comes_back_from_its_yaml(tmp_path):
    search = load_search(written(tmp_path, space=CONDITIONAL, points=["unit"]))
    again = written(tmp_path)
    again.write_text(search.to_yaml())
    assert load_search(again) == search


@given(low=st.floats(1e-4, 1), high=st.floats(1.1, 1e3), value=st.floats(-1e6, 1e6))
def test_the_nearest_value_lies_in_the_range_and_is_itself_if_inside(low, high, value):
    given_space = {"loss.lambda_kl": {"float": [low, high], "log": True}}
    from tune.config import SearchConfig  # noqa: PLC0415

    search = SearchConfig.model_validate(SMALL | {"space": given_space})
    space = checked_space(search.space, search.config())
    (near,) = space.nearest({"loss.lambda_kl": value}).values()
    assert low <= near <= high
    assert near == value or not low <= value <= high


def test_the_example_of_the_documentation_is_taken():
    example = Path(__file__).parents[2] / "docs" / "tune.yaml"
    search = load_search(example)
    assert {"prior.components", "loss.lambda_gan", "loss.lambda_kl"} <= search.space.keys()


def test_a_rival_is_trained_as_trials_are_in_all_but_its_own_settings(tmp_path):
    base = {"config": "demo", "overrides": ["data.validation_seed=3"]}
    search = load_search(written(tmp_path, base=base, store="cohort", budget={"steps": 500}))
    rival, trial, faithful = search.rival("faithful"), search.config(), load_config("faithful")
    assert rival.model == faithful.model
    assert rival.loss == faithful.loss
    assert rival.optim == faithful.optim
    assert rival.data.store == trial.data.store
    assert rival.data.validation_fraction == trial.data.validation_fraction > 0
    assert rival.data.validation_seed == 3
    assert rival.train.steps == 500
