"""A trained translator as a folder: `model.safetensors` and `config.yaml`. Nothing is unpickled."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from pmg.config import Config, load_config
from pmg.model import Translator
from pmg.training import build_modules

__all__ = ["WEIGHTS", "ModelError", "load_translator", "model_folder", "save_translator"]

WEIGHTS = "model.safetensors"
_CONFIG = "config.yaml"


class ModelError(ValueError):
    """A folder that holds no trained model, or one that does not fit its configuration."""


def model_folder(run_or_model: Path) -> Path:
    """The model's folder of a run, or the folder itself where it is a model's."""
    inner = run_or_model / "model"
    return inner if inner.is_dir() else run_or_model


def save_translator(model: Translator, config: Config, folder: Path) -> None:
    """Write the model; a file of an earlier one is replaced whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    config_partial, weights_partial = (folder / f".{name}.partial" for name in (_CONFIG, WEIGHTS))
    config_partial.write_text(config.to_yaml(), encoding="utf-8")
    save_model(model, str(weights_partial))
    config_partial.rename(folder / _CONFIG)
    weights_partial.rename(folder / WEIGHTS)


def load_translator(folder: Path, device: torch.device) -> tuple[Translator, Config]:
    """The model in evaluation mode and the configuration it was trained with.

    Raises ModelError naming the folder and what is missing or does not fit.
    """
    for name in (WEIGHTS, _CONFIG):
        if not (folder / name).is_file():
            raise ModelError(
                f"model {folder}: {name} is missing; expected a folder that pmg train wrote"
            )
    config = load_config(folder / _CONFIG)
    model, _ = build_modules(config)
    try:
        load_model(model, str(folder / WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        raise ModelError(f"model {folder / WEIGHTS}: does not fit {_CONFIG}: {error}") from error
    return model.to(device).eval(), config
