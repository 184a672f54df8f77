"""A worker that no longer takes steps ends itself, and leaves the stacks of all its threads."""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["watchdog"]

_FIRST_STEP = 5  # times as long: kernels are chosen, compiled and loaded then


@contextmanager
def watchdog(stacks: Path, limit_s: float) -> Iterator[Callable[[], None]]:
    """Yields what is to be called after every step.

    After limit_s seconds without a call this process writes the stacks of its threads to the file
    and ends with exit code 1, so that Ray starts the workers anew. The clock is a thread of C: it
    runs also while one of Python's holds the interpreter's lock. When one rank hangs, the others
    wait for it in a collective and end likewise.
    """
    with stacks.open("a", encoding="utf-8") as file:
        file.write(f"watched from unix second {time.time():.0f} on, limit {limit_s:g} s\n")
        file.flush()
        armed = 0.0

        def alive() -> None:
            nonlocal armed
            now = time.monotonic()
            if now - armed > limit_s / 100:
                faulthandler.dump_traceback_later(limit_s, exit=True, file=file)
                armed = now

        faulthandler.dump_traceback_later(_FIRST_STEP * limit_s, exit=True, file=file)
        try:
            yield alive
        finally:
            faulthandler.cancel_dump_traceback_later()
