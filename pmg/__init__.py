"""Unpaired, patch-based medical image translation with a shared Gaussian-mixture latent.

from pmg import load_model, read_volume
model = load_model("run")
translated = model.translate(read_volume("series"))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pmg.use import load_model, read_volume, write_volume

__all__ = ["load_model", "read_volume", "write_volume"]


def __getattr__(name: str) -> Any:
    """What a model's user needs, imported when asked for: `import pmg` alone takes no time."""
    if name in __all__:
        return getattr(importlib.import_module("pmg.use"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
