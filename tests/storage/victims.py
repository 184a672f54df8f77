"""Ingests that tests kill; little is imported here, since each of them starts anew."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from storage import ingest as module
from storage import workers
from storage.ingest import Step, ingest


@dataclass
class Victim:
    """A process that ingests, the leader of a process group that its workers belong to."""

    process: Any
    pipe: Connection

    def wait_until(self, series: int) -> None:
        """Until its workers have read headers, and so many series are done; or until it ends."""
        with suppress(EOFError):
            while self.pipe.recv() < series:
                pass


def start(
    cohort: Path, store: Path, *, commit_every_s: float = 0.0, method: str = "spawn"
) -> Victim:
    """Ingest the cohort in another process.

    It comes from a process that has imported everything. method: how it starts its workers; by fork
    they are there at once, which is safe while it has no threads.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module.__name__, "pytest"])
    pipe, theirs = context.Pipe(duplex=False)
    arguments = (cohort, store, commit_every_s, method, theirs)
    process = context.Process(target=_victim, args=arguments)
    process.start()
    theirs.close()
    return Victim(process, pipe)


def _victim(
    cohort: Path, store: Path, commit_every_s: float, method: str, pipe: Connection
) -> None:
    os.setsid()
    module._COMMIT_EVERY_S = commit_every_s
    workers._CONTEXT = multiprocessing.get_context(method)  # type: ignore[assignment]
    run(cohort, store, progress=lambda step: pipe.send(step.series))


def run(
    cohort: Path,
    store: Path,
    executor: workers.Workers | None = None,
    progress: Callable[[Step], None] | None = None,
) -> None:
    ingest(
        None,
        store,
        manifest=cohort / "m.csv",
        key_path=cohort / "key",
        executor=executor,
        progress=progress,
    )
