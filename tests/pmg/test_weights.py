"""A trained model as a folder: what is saved translates the same, what is broken is refused."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import patches, places, shaken, tiny_config

from pmg.config import ConfigError
from pmg.model import Translator
from pmg.weights import ModelError, load_translator, save_translator

CPU = torch.device("cpu")


def saved(folder: Path, **sections) -> Translator:
    config = tiny_config(**sections)
    model = shaken(Translator(config))
    save_translator(model, config, folder)
    return model


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"model": {"shared_blocks": 0, "norm": "group"}},
        {"prior": {"components": 1, "learned": False}},
        {"data": {"patch": (8, 8, 8)}, "translate": {"tile": (8, 8, 8)}},
    ],
)
def test_a_loaded_model_gives_the_same_outputs(tmp_path, sections):
    model = saved(tmp_path / "model", **sections)
    loaded, config = load_translator(tmp_path / "model", CPU)
    assert config == tiny_config(**sections)
    assert not loaded.training
    x, where = patches(2, 1, *config.data.patch), places(2)
    for source in (1, 2):
        expected, q = model.translate(source, x, where)
        translated, q_loaded = loaded.translate(source, x, where)
        assert torch.equal(translated, expected)
        assert torch.equal(q_loaded.log_var, q.log_var)
    assert torch.equal(loaded.prior.mixture().mean, model.prior.mixture().mean)


def test_shared_blocks_are_stored_once_and_shared_again_after_loading(tmp_path):
    model = saved(tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert sum(t.numel() for t in stored.values()) == sum(p.numel() for p in model.parameters())
    loaded, _ = load_translator(tmp_path / "model", CPU)
    assert loaded.encoders[0].tail is loaded.encoders[1].tail


def test_saving_again_replaces_the_model_and_leaves_nothing_else_behind(tmp_path):
    folder = tmp_path / "deep" / "model"
    saved(folder)
    save_translator(Translator(tiny_config()), tiny_config(train={"seed": 9}), folder)
    _, config = load_translator(folder, CPU)
    assert config.train.seed == 9
    assert sorted(p.name for p in folder.iterdir()) == ["config.yaml", "model.safetensors"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml"])
def test_a_missing_file_is_named(tmp_path, name):
    saved(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ModelError, match=f"model {tmp_path}: {name} is missing"):
        load_translator(tmp_path, CPU)


@pytest.mark.parametrize(
    "other",
    [
        {"model": {"width": 8}},
        {"model": {"blocks": 1}},
        {"model": {"blocks": 3}},
        {"prior": {"components": 5}},
    ],
)
def test_weights_of_another_shape_are_refused_by_file(tmp_path, other):
    saved(tmp_path)
    (tmp_path / "config.yaml").write_text(tiny_config(**other).to_yaml())
    with pytest.raises(ModelError) as caught:
        load_translator(tmp_path, CPU)
    assert str(caught.value).startswith(f"model {tmp_path / 'model.safetensors'}: does not fit")


def test_a_file_cut_short_is_refused_by_file(tmp_path):
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=str(path)):
        load_translator(tmp_path, CPU)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    saved(tmp_path)
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="encoders"):
        load_translator(tmp_path, CPU)


def test_a_configuration_with_a_wrong_field_is_refused(tmp_path):
    saved(tmp_path)
    (tmp_path / "config.yaml").write_text("model: {widht: 4}\n")
    with pytest.raises(ConfigError, match=r"did you mean model\.width"):
        load_translator(tmp_path, CPU)


class Trap:
    """A pickle of it writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self):
        return (exec, (f"open({str(self._path)!r}, 'w').close()",))


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_is_refused_and_not_executed(tmp_path, how):
    folder, sprung = tmp_path / "model", tmp_path / "sprung"
    saved(folder)
    buffer = io.BytesIO()
    (pickle.dump if how == "pickle" else torch.save)({"weight": Trap(sprung)}, buffer)
    path = folder / "model.safetensors"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ModelError, match=str(path)):
        load_translator(folder, CPU)
    assert not sprung.exists()

    buffer.seek(0)
    pickle.load(buffer) if how == "pickle" else torch.load(buffer, weights_only=False)
    assert sprung.exists()  # it was a trap
