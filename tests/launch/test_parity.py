"""DeepSpeed's ranks train what one process of plain torch trains on the same global batches."""

from __future__ import annotations

import pytest
import torch
from ranks import train_alone, train_together
from small_run import make_store, small_config

pytestmark = pytest.mark.slow

STEPS = 6
# Gradients here have norms of tens: the second limit cuts them in every step.
CASES = [(stage, clip) for stage in (0, 1, 2, 3) for clip in (0.0, 0.5)]


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """One for each case; the prior is fitted to encodings on the way, and looked after later."""
    store = tmp_path_factory.mktemp("parity") / "store"
    make_store(store)
    prior = {"components": 3, "fit_step": 2, "reseed_every": 2}
    return [
        small_config(store, launch={"zero_stage": s}, optim={"clip": c}, prior=prior)
        for s, c in CASES
    ]


@pytest.fixture(scope="module")
def together(configs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    train_together(configs, STEPS, folder)
    return {case: torch.load(folder / f"{number}.pt") for number, case in enumerate(CASES)}


@pytest.fixture(scope="module")
def alone(configs):
    return {clip: train_alone(configs[CASES.index((0, clip))], STEPS) for clip in (0.0, 0.5)}


@pytest.mark.parametrize(("stage", "clip"), CASES)
def test_two_ranks_train_what_one_process_does(stage, clip, together, alone):
    trained, expected = dict(together[stage, clip]), alone[clip]
    # At stage 3 nothing is left whole on a rank, or the test would not see what gathering does.
    everything = [name for name in expected if not name.startswith("averaged.")]
    assert trained.pop("sharded") == (len(everything) if stage == 3 else 0)
    assert trained.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(trained[name], value, rtol=0, atol=1e-5, msg=name)


def test_the_limit_of_gradients_matters_here(alone):
    unlimited, limited = (alone[clip]["translator.encoders.0.stem.weight"] for clip in (0.0, 0.5))
    assert (unlimited - limited).abs().max() > 1e-3
