"""DeepSpeed's ranks train what one process of plain torch trains on the same global batch."""

from __future__ import annotations

import pytest
import torch
from ranks import train_alone, train_together
from small_run import make_store, small_config

# One step before and one after the prior's fit.
STEPS, FIT = 5, 2


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("parity") / "store"
    make_store(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_train_what_one_process_does(stage, store, tmp_path):
    config = small_config(
        store,
        launch={"zero_stage": stage, "workers": 2},
        prior={"components": 3, "fit_step": FIT, "reseed_every": 2},
    )
    train_together(config, STEPS, tmp_path / "together.pt")
    together = torch.load(tmp_path / "together.pt")
    together.pop("partitioned")
    alone = train_alone(config, STEPS)
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=0, atol=1e-5, msg=name)
