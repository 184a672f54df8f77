from __future__ import annotations

import sys
from pathlib import Path

# The small store and configuration of launch's tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "launch"))
from small_run import store

__all__ = ["store"]
