"""How a job over a cohort ends: its exit code, and the cause in one line."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

__all__ = ["job_exit"]


@contextmanager
def job_exit() -> Iterator[None]:
    """Exit with 130 after Ctrl-C, 143 after SIGTERM, and 1 with its message after an error.

    SIGTERM, which a scheduler sends before it takes a machine away, is let through as an exit, so
    that the work under way is put away on the way out.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except (ValueError, OSError, RuntimeError) as error:
        raise click.ClickException(str(error)) from error
