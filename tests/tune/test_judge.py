"""The judge: which scans it looks at, and what it measures on them."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.distributed as dist
from small_run import small_config

from launch.train import with_store
from pmg.config import ConfigError
from pmg.training import Training, build_modules, torch_engines
from pmg.translate import VolumeTranslator
from storage.grid import canonical
from storage.sampling import split_patients
from storage.store import Store
from storage.stream import open_stream
from tune.config import ValidationConfig
from tune.judge import _scenes, judge_of

OBJECTIVES = ("sliced_wasserstein", "calcium_invented", "gradient_correlation")
HELD = {"patch": (32, 32), "validation_fraction": 0.5}


@pytest.fixture(scope="module")
def config(store):
    return with_store(small_config(store, data=HELD))[0]


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def training_of(config) -> Training:
    translator, critic = build_modules(config)
    engines = torch_engines(translator, critic, config)
    return Training(config, *engines, device=torch.device("cpu"))


def test_no_scan_that_is_judged_is_seen_by_a_training_whatever_its_seed(config):
    judge = judge_of(config, OBJECTIVES, ValidationConfig())
    store = Store.open(config.data.store)
    judged = {scene.name for scene in _scenes(judge, config.data.spacing_mm, 0, 1)}
    _, held = split_patients(store.rows, 0.5, 0)
    assert judged == {row.volume_id for row in held if row.domain == 1}
    for seed in (0, 1, 2):
        with open_stream(
            store, config.data, seed=seed, rank=0, world_size=1, global_batch=4
        ) as stream:
            seen = {name for _ in range(5) for pair in next(stream).volume_ids for name in pair}
        assert not seen & {row.volume_id for row in held}


def test_it_measures_what_the_evaluation_of_a_whole_scan_measures(config, alone):
    judge = pickle.loads(pickle.dumps(judge_of(config, OBJECTIVES, ValidationConfig())))
    training = training_of(config)
    found = judge(training)
    assert set(found["objectives"]) == set(OBJECTIVES)
    assert found["memory_bytes"] > 50 * 2**20

    (scene,) = _scenes(judge, config.data.spacing_mm, 0, 1)
    translator = VolumeTranslator(training.translating_model.eval(), config, 1, torch.device("cpu"))
    hu = canonical(translator.translate(scene.source))
    distances = scene.targets.distances(scene.framed, {"x": translator.on_grid(hu)})
    (expected,) = [a.value for q, a in distances["x"].items() if q.name == "sliced Wasserstein"]
    assert found["objectives"]["sliced_wasserstein"] == pytest.approx(expected)


def test_the_ranks_share_the_scans(config):
    judge = judge_of(config, OBJECTIVES, ValidationConfig())
    shares = [[s.name for s in _scenes(judge, config.data.spacing_mm, r, 2)] for r in (0, 1)]
    whole = [scene.name for scene in _scenes(judge, config.data.spacing_mm, 0, 1)]
    assert sorted(shares[0] + shares[1]) == sorted(whole)


def test_untranslated_scans_are_their_own_translation(config):
    found = judge_of(config, OBJECTIVES, ValidationConfig()).untranslated(config)
    assert found["gradient_correlation"] == pytest.approx(1)
    assert found["calcium_invented"] == 0


def test_a_split_that_holds_out_nobody_is_refused_with_one_that_does(config):
    none = config.model_copy(
        update={"data": config.data.model_copy(update={"validation_fraction": 0.01})}
    )
    with pytest.raises(ConfigError, match="holds out no scan of domain 1"):
        judge_of(none, OBJECTIVES, ValidationConfig())


def test_an_objective_without_anything_to_count_is_refused(config):
    judge = judge_of(config, ("calcium_kept",), ValidationConfig())
    with pytest.raises(ConfigError, match="calcium_kept: the held-out scans have nothing"):
        judge.untranslated(config)
