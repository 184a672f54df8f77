"""Which of several ranks' errors is told, and which end a run for good."""

from __future__ import annotations

import logging
import warnings

import pytest
from ray.exceptions import ActorDiedError

from launch.failure import cause, recorded, worker_log
from launch.run_folder import RunFolder


class GroupError(Exception):
    """As Ray Train's: the failures by rank."""

    def __init__(self, **failures: Exception) -> None:
        super().__init__("Training failed due to worker errors:\nmany\nlines")
        self.worker_failures = {int(rank[1:]): error for rank, error in failures.items()}


class Died(Exception):
    """As Ray Train's for a process that no longer answers."""

    health_check_failure = RuntimeError("The actor died unexpectedly")


def test_a_death_is_told_before_what_it_did_to_the_others():
    peer = RuntimeError("[pair.cc:537] Read error: Connection reset by peer. GLHF!")
    assert cause(GroupError(r0=peer, r1=Died())).startswith("rank 1: its process died")


def test_an_error_is_told_before_what_it_did_to_the_others():
    peer = RuntimeError("Connection closed by peer [127.0.0.1]:57249")
    own = RuntimeError("CUDA out of memory\n  tried to allocate 80 GiB")
    assert cause(GroupError(r0=peer, r1=own)) == "rank 1: CUDA out of memory"
    assert cause(GroupError(r0=peer)) == f"rank 0: {peer}"


def test_an_error_of_rays_own_is_told_by_its_last_line():
    assert cause(RuntimeError("Traceback ...\n\nValueError: no such bucket\n")).endswith("bucket")
    assert cause(RuntimeError()) == "RuntimeError"


def test_the_first_error_that_would_come_again_is_kept(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(ValueError, match="first"), recorded(folder, 1):
        raise ValueError("first")
    with pytest.raises(ValueError, match="second"), recorded(folder, 0):
        raise ValueError("second")
    line, _, trace = folder.failure.read_text().partition("\n")
    assert line == "first"
    assert 'raise ValueError("first")' in trace


@pytest.mark.parametrize(
    "error", [RuntimeError("NCCL timed out"), OSError("stale file handle"), ActorDiedError()]
)
def test_an_error_that_a_restart_may_cure_is_left_to_ray(tmp_path, error):
    folder = RunFolder(tmp_path)
    with pytest.raises(type(error)), recorded(folder, 0):
        raise error
    assert not folder.failure.exists()


def test_a_ranks_log_has_its_messages_warnings_and_tracebacks(tmp_path):
    folder = RunFolder(tmp_path)
    with worker_log(folder, 3):
        logging.getLogger("launch.worker").info("from step 0")
        warnings.warn("deprecated", FutureWarning, stacklevel=1)
        with pytest.raises(RuntimeError), recorded(folder, 3):
            raise RuntimeError("lost")
    text = folder.log(3).read_text()
    assert all(part in text for part in ("from step 0", "deprecated", "Traceback", "lost"))
