"""Which code a run was made by: a digest of the sources that train."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

__all__ = ["source_digest"]

_PACKAGES = ("storage", "pmg", "launch")


@cache
def source_digest() -> str:
    """SHA-256 over the packages' modules, sixteen digits: there is no commit in an installed copy
    or in a Ray job's working directory."""
    root = Path(__file__).parents[1]
    sha = hashlib.sha256()
    for file in sorted(f for package in _PACKAGES for f in (root / package).rglob("*.py")):
        sha.update(f"{file.relative_to(root)} {file.stat().st_size}\n".encode())
        sha.update(file.read_bytes())
    return sha.hexdigest()[:16]
