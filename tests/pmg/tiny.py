"""A run small enough for a test: its configuration, its patches, and weights that all matter."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from pmg.config import Config
from pmg.where import Where
from storage.stream import Batch

M = TypeVar("M", bound=nn.Module)

SPACING_MM = (3.0, 2.0, 2.0)

_TINY: dict[str, dict[str, Any]] = {
    "data": {"patch": (16, 16)},
    "model": {
        "width": 4,
        "downsamplings": 1,
        "blocks": 2,
        "shared_blocks": 1,
        "latent_channels": 4,
    },
    "discriminator": {"width": 4, "layers": 2, "scales": 2},
    "prior": {"components": 3, "fit_step": 0, "reseed_every": 0},
    "train": {"batch": 2, "seed": 5},
    "translate": {"tile": (16, 16)},
}


def tiny_config(**sections: dict[str, Any]) -> Config:
    """The tiny tree with some fields of some sections changed."""
    names = _TINY.keys() | sections.keys()
    return Config.model_validate(
        {name: _TINY.get(name, {}) | sections.get(name, {}) for name in names}
    )


def shaken(module: M, seed: int = 0, scale: float = 0.2) -> M:
    """The module with noise on every parameter, for fresh layers that are zero hide the others."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module


def patches(*shape: int, seed: int = 0) -> torch.Tensor:
    """Intensities in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator) * 2 - 1


def places(batch: int, seed: int = 0) -> Where:
    generator = torch.Generator().manual_seed(seed)
    return Where(torch.rand(batch, 3, generator=generator) * 200 - 100, SPACING_MM)


def stream_batch(config: Config, first_sample: int = 0) -> Batch:
    """What the stream yields: soft tissue and bone in HU, another in each sample."""
    size, patch = config.train.batch, config.data.patch
    stack = () if len(patch) == 3 else (config.data.slices,)
    rng = np.random.default_rng(first_sample)
    shape = (size, *stack, *patch)
    return Batch(
        hu1=rng.normal(40, 60, shape).round().astype(np.int16),
        hu2=rng.normal(120, 90, shape).round().astype(np.int16),
        position_mm=rng.uniform(-100, 100, (size, 2, 3)).astype(np.float32),
        samples=np.arange(first_sample, first_sample + size),
        spacing_mm=SPACING_MM,
        volume_ids=(("a", "b"),) * size,
    )
