"""Exported models: the same HU by other programs, and nothing of a model file is ever run."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from tiny import SPACING_MM, shaken, tiny_config

from pmg.config import Config
from pmg.export import export_model
from pmg.model import Translator
from pmg.weights import ModelError, load_translator, save_translator
from pmg.where import Where
from pmg.window import window_of

_UNIT = {
    "architecture": "unit",
    "latent_channels": 8,
    "posterior": "unit",
    "norm": "instance",
    "skip": False,
    "position": False,
}
KINDS = {
    "2.5D": {"data": {"slices": 3}},
    "3D": {"data": {"patch": (8, 8, 8)}, "translate": {"tile": (8, 8, 8)}},
    "unit": {"model": _UNIT, "prior": {"components": 1, "learned": False}},
}


def saved(folder: Path, **sections) -> tuple[Translator, Config]:
    data = {"spacing_mm": SPACING_MM} | sections.pop("data", {})
    config = tiny_config(data=data, **sections)
    model = shaken(Translator(config), scale=0.1).eval()
    save_translator(model, config, folder)
    return model, config


def patches(config: Config, extents: tuple[int, ...], batch: int) -> tuple[torch.Tensor, ...]:
    hu = torch.rand(batch, config.data.slices, *extents) * 3000 - 1000
    start_mm = torch.rand(batch, 3) * 300 - 150
    return (hu, start_mm) if config.model.position else (hu,)


@torch.inference_mode()
def expected(model: Translator, config: Config, source: int, hu, start_mm=None) -> np.ndarray:
    """By the model and the window themselves."""
    window = window_of(config.data)
    start_mm = torch.zeros(len(hu), 3) if start_mm is None else start_mm
    where = Where(start_mm, SPACING_MM).middle(config.data.slices)
    translated, _ = model.translate(source, window.to_unit(hu), where)
    return window.to_hu(translated).numpy()


def by_torch(path: Path, inputs) -> np.ndarray:
    with torch.no_grad():
        return torch.export.load(path.with_suffix(".pt2")).module()(*inputs).numpy()


def by_onnx(path: Path, inputs) -> np.ndarray:
    session = onnxruntime.InferenceSession(path.with_suffix(".onnx"))
    names = [one.name for one in session.get_inputs()]
    return session.run(None, dict(zip(names, [i.numpy() for i in inputs], strict=True)))[0]


def assert_no_pickled_tensor(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        configs = [name for name in archive.namelist() if name.endswith("_config.json")]
        assert len(configs) == 2  # weights and constants
        for name in configs:
            entries = json.loads(archive.read(name))["config"].values()
            assert not any(entry["use_pickle"] for entry in entries), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "form", "run"),
    [
        ("2.5D", "onnx", by_onnx),
        ("3D", "torch", by_torch),
        ("unit", "torch", by_torch),
    ],
)
def test_both_directions_give_the_models_hu_at_other_extents(tmp_path, kind, form, run):
    model, config = saved(tmp_path / "model", **KINDS[kind])
    written = export_model(tmp_path / "model", tmp_path / "out", form)
    assert [path.stem for path in written] == ["1to2", "2to1", "model"]
    assert sorted(tmp_path.joinpath("out").iterdir()) == sorted(written)
    for path in written:
        if path.suffix == ".pt2":
            assert_no_pickled_tensor(path)
    facts = json.loads((tmp_path / "out" / "model.json").read_text())
    assert facts["spacing_mm"] == list(SPACING_MM)
    extents = (12, 10, 14)[: len(config.data.patch)]
    for source, name in ((1, "1to2"), (2, "2to1")):
        inputs = patches(config, extents, batch=3)
        wanted = expected(model, config, source, *inputs)
        assert np.abs(wanted - inputs[0].numpy()).mean() > 5  # HU: it does something
        np.testing.assert_allclose(
            run(tmp_path / "out" / name, inputs), wanted, atol=0.1, rtol=1e-3
        )


@pytest.mark.slow
def test_a_graph_that_gives_other_hu_is_not_kept(tmp_path, monkeypatch):
    saved(tmp_path / "model")
    program = "pmg.export.torch.export.load"
    monkeypatch.setattr(program, lambda path: type("P", (), {"module": lambda self: _Wrong()})())
    with pytest.raises(ModelError, match="HU off the model"):
        export_model(tmp_path / "model", tmp_path / "out", "torch")
    assert list((tmp_path / "out").iterdir()) == []


class _Wrong(torch.nn.Module):
    def forward(self, hu, start_mm):
        return hu


def test_safetensors_are_the_folder_that_is_loaded(tmp_path):
    model, config = saved(tmp_path / "run" / "model")
    written = export_model(tmp_path / "run", tmp_path / "out", "safetensors")
    assert [path.name for path in written] == ["config.yaml", "model.safetensors"]
    loaded, again = load_translator(tmp_path / "out", torch.device("cpu"))
    assert again == config
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
