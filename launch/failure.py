"""How runs fail: a worker's record of what no restart will cure, and the one line for the user."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray.train
from ray.exceptions import RayError

from launch.run_folder import RunFolder

__all__ = ["EndForGood", "cause", "recorded", "worker_log"]

# A lost peer, a time-out, a full device, a file system that hesitates: Ray restarts the workers.
# Ray's own errors too: who waits in a report when a peer dies loses the actor that it waits for.
# All else (a damaged store, losses that are not finite, a wrong setting) would come again.
_TRANSIENT = (RuntimeError, OSError, RayError)
_log = logging.getLogger(__name__)


@contextmanager
def worker_log(folder: RunFolder, rank: int) -> Iterator[None]:
    """Send what this process logs, and its Python warnings, to the rank's file."""
    path = folder.log(rank)
    path.parent.mkdir(exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    for package in ("launch", "pmg", "storage"):
        logging.getLogger(package).setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


@contextmanager
def recorded(folder: RunFolder, rank: int) -> Iterator[None]:
    """Log an error of this rank; one that would come again also ends the run for good.

    The first rank's error is kept: those of its peers, whom it leaves waiting, follow from it.
    """
    try:
        yield
    except Exception as error:
        _log.exception("rank %d failed", rank)
        if not isinstance(error, _TRANSIENT):
            try:
                with folder.failure.open("x", encoding="utf-8") as file:
                    file.write(f"{_line(error)}\n\n{traceback.format_exc()}")
            except FileExistsError:
                pass
        raise


class EndForGood(ray.train.UserCallback):  # type: ignore[misc]  # Ray has no types
    """Ends a run where Ray's controller would start workers anew into a recorded error.

    What a callback raises ends the run with its workers (ray 2.60), so that the driver ends after
    them, when nothing waits for the cluster any more: a driver that left it while another of its
    threads waited there once ended with a segmentation fault.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def after_exception(
        self, run_context: Any, worker_exceptions: Mapping[int, BaseException]
    ) -> None:
        # Ranks that wait for a failed one don't leave their process group: no half a minute for it.
        os.environ["TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S"] = "3"
        if self._folder.failure.exists():
            raise RuntimeError(f"no restart cures {self._folder.failure}")


def cause(error: BaseException) -> str:
    """What Ray Train's error of a worker group comes from, in one line."""
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", None) or {}
    for rank, failure in sorted(failures.items()):
        if hasattr(failure, "health_check_failure"):
            return f"rank {rank}: its process died; killed, out of memory, or crashed in a library"
    # Those that lost a peer come last: they follow from what happened to it.
    for rank, failure in sorted(failures.items(), key=lambda item: "peer" in str(item[1])):
        return f"rank {rank}: {_line(failure)}"
    return _line(error)


def _line(error: BaseException) -> str:
    """The first line of the error's message; the last where it carries a traceback."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1 if "Traceback" in text else 0]
