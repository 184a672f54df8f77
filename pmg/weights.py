"""A trained translator as a folder: `model.safetensors` and `config.yaml`. Nothing is unpickled."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_model, save_model

from pmg.config import Config, load_config
from pmg.model import Translator
from pmg.training import build_modules

__all__ = ["WEIGHTS", "ModelError", "load_translator", "save_translator"]

WEIGHTS = "model.safetensors"
_CONFIG = "config.yaml"


class ModelError(ValueError):
    """A folder that holds no trained model, or one that does not fit its configuration."""


def save_translator(model: Translator, config: Config, folder: Path) -> None:
    """Write the model so that a reader sees the old one or the new one, never a mixture."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, write in (
        (_CONFIG, lambda path: path.write_text(config.to_yaml())),
        (WEIGHTS, lambda path: save_model(model, str(path))),
    ):
        temporary = folder / f".{name}.partial"
        write(temporary)
        temporary.rename(folder / name)


def load_translator(folder: Path, device: torch.device) -> tuple[Translator, Config]:
    """The model in evaluation mode and the configuration it was trained with.

    Raises ModelError naming the folder and what is missing or does not fit.
    """
    for name in (WEIGHTS, _CONFIG):
        if not (folder / name).is_file():
            raise ModelError(f"model {folder}: {name} is missing; expected a folder that pmg train wrote")
    config = load_config(folder / _CONFIG)
    model, _ = build_modules(config)
    try:
        load_model(model, str(folder / WEIGHTS))
    except Exception as error:  # safetensors raises its own type and RuntimeError by turns
        raise ModelError(f"model {folder / WEIGHTS}: does not fit {_CONFIG}: {error}") from error
    return model.to(device).eval(), config
