"""The settings' tree: errors that help, overrides, presets, and the way to YAML and back."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from tiny import tiny_config

from pmg.config import Config, ConfigError, load_config, preset_names
from pmg.training import build_modules


def refusal(*overrides: str, source: Path | str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("loss.lambda_cycl=1", "loss.lambda_cycle"),
        ("model.widht=8", "model.width"),
        ("optim.learning_decay=0", "optim.weight_decay"),
        ("prior.component=3", "prior.components"),
        ("tarin.steps=3", "train"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_right_one(wrong, right):
    name = wrong.split("=")[0] if not wrong.startswith("tarin") else "tarin"
    assert refusal(wrong) == f"config {name}: unknown field; did you mean {right}?"


def test_a_field_like_no_other_is_refused_with_all_that_there_are():
    known = "tile, margin, overlap, batch, denoise"
    assert refusal("translate.qqqq=1") == f"config translate.qqqq: unknown field; known: {known}"


@pytest.mark.parametrize(
    ("override", "name", "value", "allowed"),
    [
        ("optim.lr=-1", "optim.lr", "-1", "greater than 0"),
        ("model.downsamplings=9", "model.downsamplings", "9", "less than or equal to 5"),
        ("model.downsamplings=0", "model.downsamplings", "0", "greater than or equal to 1"),
        ("model.norm=batch", "model.norm", "'batch'", "'none', 'group' or 'instance'"),
        ("prior.min_std=1", "prior.min_std", "1", "less than 1"),
        ("train.seed=9223372036854775808", "train.seed", "9223372036854775808", "less than"),
        ("data.low_hu=.nan", "data.low_hu", "nan", "finite number"),
        ("optim.lr=.inf", "optim.lr", "inf", "finite number"),
        ("launch.zero_stage=4", "launch.zero_stage", "4", "0, 1, 2 or 3"),
        ("train.steps=many", "train.steps", "'many'", "valid integer"),
        ("model.width=2.5", "model.width", "2.5", "valid integer"),
        ("data.patch=[8, 0]", "data.patch.1", "0", "greater than or equal to 1"),
        ("loss.kl=null", "loss.kl", "None", "'bound', 'monte_carlo', 'vade' or 'min'"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name_with_what_is_allowed(
    override, name, value, allowed
):
    message = refusal(override)
    assert message.startswith(f"config {name}: {value} is not allowed")
    assert allowed in message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.low_hu=100", "data.high_hu=50"], "low_hu 100.0 must be below high_hu 50.0"),
        (["model.shared_blocks=5"], "shared_blocks 5 must be at most blocks 4"),
        (["data.patch=[64, 66]"], r"data.patch [64, 66] must be multiples of 4"),
        (["translate.tile=[128, 126]"], r"translate.tile [128, 126] must be multiples of 4"),
        (["data.patch=[64, 64, 64]"], "both be 2D or both 3D"),
        (["data.patch=[64, 32]"], "data.patch [64, 32] must be at least 64 along each axis"),
        (["prior.components=100", "prior.min_weight=0.01"], "0.01 times components 100"),
        (["data.slices=2"], "slices 2 must be odd"),
        (["data.slices=3", "data.patch=[64, 64, 64]"], "slices 3 needs a 2D patch"),
        (["model.architecture=unit"], "latent_channels 16 must be 256 in architecture unit"),
        (["train.compile=true", "launch.zero_stage=3"], "train.compile true needs launch.zero"),
        (["loss.r1=5", "launch.zero_stage=3"], "loss.r1 5.0 needs launch.zero_stage 0, 1 or 2"),
        (
            ["translate.denoise=true", "prior.learned=false"],
            "denoise true needs a mixture that learns",
        ),
        (
            ["translate.denoise=true", "loss.lambda_kl=0", "loss.lambda_cycle_kl=0"],
            "denoise true needs a mixture that learns",
        ),
        (["train.batch=15"], "train.batch 15 must be a multiple of launch.workers 2"),
        (["train.log_every=7"], "checkpoint_every 500 must be a multiple of log_every 7"),
    ],
)
def test_values_that_do_not_go_together_are_refused_with_both_numbers(overrides, words):
    message = refusal(*overrides)
    assert words in message
    assert not message.startswith("config config")


def test_all_mistakes_are_told_at_once():
    message = refusal("optim.lr=0", "loss.lambda_gam=1")
    assert [line.split(":")[0] for line in message.splitlines()] == [
        "config loss.lambda_gam",
        "config optim.lr",
    ]


def test_overrides_are_yaml_and_win_over_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("train: {steps: 10, seed: 3}\nmodel: {width: 8}\n")
    overrides = ["train.steps=20", "data.patch=[64, 128]", "model.skip=false", "optim.lr=2e-4"]
    config = load_config(path, overrides)
    assert (config.train.steps, config.train.seed, config.model.width) == (20, 3, 8)
    assert config.data.patch == (64, 128)
    assert config.model.skip is False
    assert config.optim.lr == 2e-4


def test_a_section_without_fields_has_its_defaults(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("train:\nmodel:\n  # width: 8\n")
    assert load_config(path) == Config()
    assert load_config(path, ["train.seed=1"], train={"keep": 3}).train.keep == 3


def test_of_two_overrides_of_a_field_the_last_one_counts():
    assert load_config(None, ["train.seed=1", "train.seed=2"]).train.seed == 2


def test_sections_by_keyword_are_laid_over_the_file_and_under_the_overrides(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("train: {steps: 10, seed: 3}\n")
    config = load_config(path, ["train.steps=30"], train={"steps": 20, "keep": 5})
    assert (config.train.steps, config.train.seed, config.train.keep) == (30, 3, 5)


@pytest.mark.parametrize("wrong", ["train.steps", "steps=3", "=3", "train.steps 3"])
def test_an_override_of_another_form_is_refused(wrong):
    assert refusal(wrong) == f"override {wrong!r}: expected section.field=value"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: [1, 2", "not YAML"),
        ("- train\n", "expected sections of settings, got list"),
        ("train: 3\n", "config train: 3 is not a section of settings"),
        (b"train: \xff\xfe\x00", "not YAML"),
    ],
)
def test_a_file_that_is_no_tree_is_refused_by_its_name(tmp_path, text, words):
    path = tmp_path / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    message = refusal("train.steps=1", source=path)
    assert words in message
    assert "config train" in message or str(path) in message


def test_a_missing_file_is_refused_with_the_presets_there_are(tmp_path):
    message = refusal(source=tmp_path / "none.yaml")
    assert message.startswith(f"config {tmp_path / 'none.yaml'}: no such file, nor a preset (")
    assert all(name in message for name in preset_names())


def test_there_are_presets():
    assert "unit" in preset_names()


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_valid_tree(name):
    assert load_config(name).to_yaml() != Config().to_yaml()


def test_a_preset_can_be_overridden():
    config = load_config("unit", ["model.width=4", "model.latent_channels=16"])
    assert (config.prior.components, config.model.posterior, config.model.width) == (1, "unit", 4)


def test_a_file_is_laid_over_the_preset_that_it_names(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("preset: unit\ntrain: {steps: 7}\noptim: {lr: 2.0e-4}\n")
    config = load_config(path, ["train.seed=3"])
    assert config == load_config("unit", ["train.steps=7", "optim.lr=2e-4", "train.seed=3"])


@pytest.mark.parametrize("name", ["unti", "3", "[unit]"])
def test_a_preset_that_there_is_not_is_refused_with_those_there_are(tmp_path, name):
    path = tmp_path / "run.yaml"
    path.write_text(f"preset: {name}\n")
    message = refusal(source=path)
    assert message.startswith("config preset: ")
    assert "demo, faithful, recommended, unit" in message


def test_options_that_the_paper_does_not_have_are_off_in_its_presets():
    for name in ("faithful", "unit"):
        config = load_config(name)
        loss, model = config.loss, config.model
        assert (loss.lambda_change, loss.lambda_gradient, loss.r1) == (0, 0, 0)
        assert (loss.calcium_weight, loss.free_bits, loss.kl_warmup_steps) == (1, 0, 0)
        assert (model.skip, model.position) == (False, False)
        assert config.discriminator.spectral_norm is False


def test_the_preset_of_unit_is_its_latent():
    config = load_config(
        "unit", ["model.width=2", "model.latent_channels=8", "discriminator.width=2"]
    )
    translator, _ = build_modules(config)
    prior = translator.prior.mixture()
    assert prior.mean.abs().max() == 0
    assert prior.log_var.abs().max() == 0
    assert not translator.prior.mean.requires_grad


@pytest.mark.parametrize("config", [Config(), tiny_config(), load_config("unit")])
def test_a_tree_goes_to_yaml_and_back_unchanged(config, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert load_config(path) == config


def test_paths_and_tuples_survive_yaml(tmp_path):
    config = tiny_config(data={"patch": (16, 16), "store": "/a/store", "spacing_mm": (3, 2, 2)})
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    again = load_config(path)
    assert again.data.store == "/a/store"
    assert again.data.spacing_mm == (3.0, 2.0, 2.0)


def test_settings_cannot_be_changed_after_the_fact():
    with pytest.raises(ValidationError, match="frozen"):
        Config().train.steps = 3
