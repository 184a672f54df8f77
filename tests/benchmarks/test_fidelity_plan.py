"""The budget of the fidelity benchmark: one for all."""

from __future__ import annotations

import math

import pytest

from benchmarks.fidelity_plan import SIZES


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_every_contender_sees_as_many_voxels_and_those_of_a_preset_learn_alike(size):
    voxels, optims, schedules = {}, {}, set()
    for contender in size.contenders:
        config = size.config(contender, seed=3)
        train = config.train
        voxels[contender.name] = train.steps * train.batch * math.prod(config.data.patch)
        assert train.seed == 3
        assert optims.setdefault(contender.preset, config.optim) == config.optim
        schedules.add(config.optim.schedule)
    least, most = min(voxels.values()), max(voxels.values())
    assert most <= 1.001 * least, voxels
    if size.name == "small":
        assert len(schedules) == 1


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_contenders_are_the_baselines_whole_slices_and_several_k(size):
    configs = {one.name: size.config(one, seed=1) for one in size.contenders}
    assert configs["unit"].prior.components == 1
    assert configs["cyclegan"].model.architecture == "cyclegan"
    assert min(configs["whole-slice"].data.patch) > 2 * min(configs["pmg-k8"].data.patch)
    assert all(configs[f"pmg-k{k}"].prior.components == k for k in (1, 4, 8))
    same = configs["pmg-k1"].model_dump() | {"prior": configs["pmg-k8"].prior.model_dump()}
    assert same == configs["pmg-k8"].model_dump()
