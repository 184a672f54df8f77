"""Where the seconds of a process go: each name's sum, on one clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Laps"]


class Laps:
    """Sums of seconds by name, from `asked_unix_s`, when another process asked for this one."""

    def __init__(self, asked_unix_s: float) -> None:
        self._asked_unix_s = asked_unix_s
        self._sums: dict[str, float] = {"start": time.time() - asked_unix_s}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.add(name, time.monotonic() - started)

    def add(self, name: str, seconds: float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + seconds

    def seconds(self) -> dict[str, float]:
        """So far; `rest` is what no name was given to."""
        rest = time.time() - self._asked_unix_s - sum(self._sums.values())
        return self._sums | {"rest": max(rest, 0.0)}
