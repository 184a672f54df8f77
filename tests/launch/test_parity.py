"""DeepSpeed's ranks train what one process of plain torch trains on the same global batches."""

from __future__ import annotations

import pytest
import torch
from ranks import train_alone, train_together
from small_run import make_store, small_config

pytestmark = pytest.mark.slow

STEPS = 6
PRIOR = {"components": 3, "fit_step": 2, "reseed_every": 2}
OPTIONS = {
    "plain": {},
    # Gradients here have norms of tens: this limit cuts them in every step.
    "clipped": {"optim": {"clip": 0.5}},
    "spectral norm": {"discriminator": {"width": 4, "layers": 2, "spectral_norm": True}},
    "gradient penalty": {"loss": {"r1": 100.0, "r1_every": 2}},
}
CASES = [
    (stage, option)
    for stage in (0, 1, 2, 3)
    for option in OPTIONS
    if (stage, option) != (3, "gradient penalty")  # which the configuration refuses
]


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """One for each case; the prior is fitted to encodings on the way, and looked after later."""
    store = tmp_path_factory.mktemp("parity") / "store"
    make_store(store)
    return [
        small_config(store, launch={"zero_stage": stage}, prior=PRIOR, **OPTIONS[option])
        for stage, option in CASES
    ]


@pytest.fixture(scope="module")
def together(configs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    train_together(configs, STEPS, folder)
    return {case: torch.load(folder / f"{number}.pt") for number, case in enumerate(CASES)}


@pytest.fixture(scope="module")
def alone(configs):
    return {option: train_alone(configs[CASES.index((0, option))], STEPS)[0] for option in OPTIONS}


@pytest.mark.parametrize(("stage", "option"), CASES)
def test_two_ranks_train_what_one_process_does(stage, option, together, alone):
    trained, expected = dict(together[stage, option]), alone[option]
    # At stage 3 nothing is left whole on a rank, or the test would not see what gathering does.
    everything = [name for name in expected if not name.startswith("averaged.")]
    assert trained.pop("sharded") == (len(everything) if stage == 3 else 0)
    assert trained.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(trained[name], value, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("option", ["clipped", "spectral norm", "gradient penalty"])
def test_every_option_matters_here(option, alone):
    name = "critic.discriminators.0.scales.0.first.bias"
    assert (alone[option][name] - alone["plain"][name]).abs().max() > 1e-4
