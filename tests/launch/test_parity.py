"""DeepSpeed's ranks train what one process of plain torch trains on the same global batches."""

from __future__ import annotations

import pytest
import torch
from ranks import train_alone, train_together
from small_run import small_config

STEPS = 10
PRIOR = {"components": 3, "fit_step": 2, "reseed_every": 2}
STAGES = (0, 1, 2, 3)
OPTIONS = {
    "plain": {},
    # Gradients here have norms of tens: this limit cuts them in every step.
    "clipped": {"optim": {"clip": 0.5}},
    "spectral norm": {"discriminator": {"width": 4, "layers": 2, "spectral_norm": True}},
    "gradient penalty": {"loss": {"r1": 100.0, "r1_every": 2}},
    "accumulated": {"train": {"accumulate": 3}},
    "optimiser offloaded": {"launch": {"offload": "optimizer"}},
    "all offloaded": {"launch": {"offload": "parameters"}},
}
REFUSED = {  # by the configuration
    (3, "gradient penalty"),
    (0, "optimiser offloaded"),
    *((stage, "all offloaded") for stage in (0, 1, 2)),
}
CASES = [(s, option) for s in STAGES for option in OPTIONS if (s, option) not in REFUSED]
# The same, as one process of plain torch has it.
WITHOUT_OFFLOAD = [option for option in OPTIONS if "offloaded" not in option]


def config_of(store, stage, option):
    """The prior is fitted to encodings on the way, and looked after later."""
    sections = {"prior": PRIOR} | OPTIONS[option]
    sections["train"] = {"batch": 6} | sections.get("train", {})
    sections["launch"] = {"zero_stage": stage, "workers": 2} | sections.get("launch", {})
    return small_config(store, **sections)


@pytest.fixture(scope="module")
def together(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    train_together([config_of(store, *case) for case in CASES], STEPS, folder)
    return {case: torch.load(folder / f"{number}.pt") for number, case in enumerate(CASES)}


@pytest.fixture(scope="module")
def alone(store):
    return {
        option: train_alone(config_of(store, 0, option), STEPS)[0] for option in WITHOUT_OFFLOAD
    }


def assert_same(trained, expected, stage):
    # At stage 3 nothing is left whole on a rank, or the test would not see what gathering does.
    everything = [name for name in expected if not name.startswith("averaged.")]
    assert trained.pop("sharded") == (len(everything) if stage == 3 else 0)
    assert trained.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(trained[name], value, rtol=0, atol=1e-5, msg=name)


@pytest.mark.long
@pytest.mark.parametrize(("stage", "option"), CASES)
def test_two_ranks_train_what_one_process_does(stage, option, together, alone):
    expected = alone[option if option in WITHOUT_OFFLOAD else "plain"]
    assert_same(dict(together[stage, option]), expected, stage)


@pytest.mark.long
@pytest.mark.parametrize("ranks", [1, 3])
def test_one_and_three_ranks_train_what_one_process_does(ranks, store, alone, tmp_path):
    configs = [config_of(store, stage, "clipped") for stage in STAGES]
    train_together(configs, STEPS, tmp_path, ranks)
    for number, stage in enumerate(STAGES):
        trained = torch.load(tmp_path / f"{number}.pt")
        assert_same(trained, alone["clipped"], stage)


@pytest.mark.long
def test_stages_of_wide_networks_differ_by_what_adam_makes_of_rounding_alone(store, tmp_path):
    """At width 32 Adam's own eps lets an order of sums move a weight by up to 1e-3 in ten steps.

    A gradient that cancels to its rounding is divided by its own size, so that its sign alone
    counts: one process against itself, the batch in two parts, moves as far. With an eps above the
    rounding every stage trains what one process does.
    """
    sections = {"model": {"width": 32, "blocks": 1, "latent_channels": 4}, "prior": PRIOR}
    sections["discriminator"] = {"width": 32, "layers": 2, "scales": 1}

    def wide(stage, workers=2, **train):
        launch = {"zero_stage": stage, "workers": workers}
        return small_config(store, train={"batch": 6} | train, launch=launch, **sections)

    def apart(eps):
        one, other = (train_alone(wide(0, 1, accumulate=n), STEPS, eps)[0] for n in (1, 2))
        return max((one[name] - other[name]).abs().max().item() for name in one)

    eps = 1e-3
    assert apart(None) > 1e-5 > apart(eps)
    train_together([wide(stage) for stage in STAGES], STEPS, tmp_path, eps=eps)
    expected, _ = train_alone(wide(0), STEPS, eps)
    for stage in STAGES:
        assert_same(torch.load(tmp_path / f"{stage}.pt"), expected, stage)


@pytest.mark.slow
def test_training_compiles_nothing(store, tmp_path, monkeypatch):
    """DeepSpeed compiles what it has in C++ where it first wants it; there need be no compiler."""
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "compiled"))
    cases = [(0, "plain"), (2, "optimiser offloaded"), (3, "all offloaded")]
    train_together([config_of(store, *case) for case in cases], 1, tmp_path)
    assert not (tmp_path / "compiled").exists()


@pytest.mark.slow
@pytest.mark.parametrize("option", ["clipped", "spectral norm", "gradient penalty"])
def test_every_option_matters_here(option, alone):
    name = "critic.discriminators.0.scales.0.first.bias"
    assert (alone[option][name] - alone["plain"][name]).abs().max() > 1e-4
