"""Counts of parameters and operations, against counts by hand."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from tiny import tiny_config

from pmg.cli.info import command
from pmg.config import Config, load_config
from pmg.cost import Cost, cost_of
from pmg.model import Critic, Translator


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"data": {"slices": 3}},
        {"data": {"patch": (8, 8, 8)}, "translate": {"tile": (8, 8, 8)}},
        {"model": {"shared_blocks": 0}},
        {"discriminator": {"spectral_norm": True}, "loss": {"r1": 1.0, "kl": "monte_carlo"}},
    ],
)
def test_every_parameter_is_counted_once(sections):
    config = tiny_config(**sections)
    counted = cost_of(config).parameters
    model, critic = Translator(config), Critic(config)
    assert counted["D"] == sum(p.numel() for p in critic.parameters())
    assert sum(counted.values()) - counted["D"] == sum(p.numel() for p in model.parameters())


def unit(patch: int = 64) -> Config:
    return load_config("unit", [f"data.patch=[{patch}, {patch}]", "prior.min_weight=0"])


def unit_translation_flops(patch: int) -> int:
    """By the published description: twice the products of every layer."""
    fine, half, latent = patch**2, (patch // 2) ** 2, (patch // 4) ** 2
    encoder = fine * 49 * 64 + half * 16 * 64 * 128 + latent * 16 * 128 * 256
    blocks = 16 * latent * 9 * 256 * 256
    generator = half * 25 * 256 * 128 + fine * 25 * 128 * 64 + fine * 49 * 64
    return 2 * (encoder + blocks + generator)


@pytest.mark.parametrize("patch", [64, 128])
def test_operations_of_a_translation_are_the_products_of_its_layers(patch):
    assert cost_of(unit(patch)).translation_flops == unit_translation_flops(patch)


def test_a_step_costs_its_passes_forward_and_twice_back():
    cost = cost_of(unit())
    # Two encodings, four decodings of both latents, two encodings and two decodings of the cycle.
    passes = 4 * cost.translation_flops
    assert 3 * passes < cost.step_flops < 3 * 1.6 * passes


def test_what_it_costs_is_told_in_three_digits():
    cost = Cost({"E": 9_584_000, "D": 132}, step_flops=144 * 10**9, translation_flops=999)
    assert str(cost) == (
        "9.58 M parameters (E 9.58 M, D 132); 144 GFLOP a step and pair, "
        "999 FLOP to translate a patch"
    )


def test_info_tells_what_the_model_of_a_run_costs(tmp_path):
    config = tiny_config()
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    result = CliRunner().invoke(command, [str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "architecture pmg, patches 16 x 16, K = 3, C = 4" in result.output
    assert str(cost_of(config)) in result.output.replace("\n", " ").replace("  ", " ")
