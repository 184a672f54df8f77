"""The typed tree of every setting: defaults, ranges, errors that name the nearest right name."""

from __future__ import annotations

from pmg.config.data import DataConfig
from pmg.config.discriminator import DiscriminatorConfig
from pmg.config.launch import LaunchConfig
from pmg.config.loading import ConfigError, checked, load_config, parsed, preset_names
from pmg.config.loss import LossConfig
from pmg.config.model import ModelConfig
from pmg.config.optim import OptimConfig
from pmg.config.prior import PriorConfig
from pmg.config.section import Section
from pmg.config.track import TrackConfig
from pmg.config.train import TrainConfig
from pmg.config.translate import TranslateConfig
from pmg.config.tree import Config

__all__ = [
    "Config",
    "ConfigError",
    "DataConfig",
    "DiscriminatorConfig",
    "LaunchConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "PriorConfig",
    "Section",
    "TrackConfig",
    "TrainConfig",
    "TranslateConfig",
    "checked",
    "load_config",
    "parsed",
    "preset_names",
]
