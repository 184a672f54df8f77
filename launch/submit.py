"""Jobs of a Ray cluster: submit a module's command line, follow it, stop it, fetch what it made.

Everything goes through the cluster's job server, by HTTP and with its token: nothing else of the
cluster has to be reachable from where one sits.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from launch.access import (
    AccessError,
    closed_by_default,
    have_token,
    refuse_secrets,
    refuse_shared_token,
)
from launch.archive import ArchiveReader

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

__all__ = ["MODULES", "Job", "Jobs"]

# What a job may run, by the name of the command.
MODULES = {
    "train": "launch.train",
    "ingest": "launch.ingest",
    "tune": "tune.search",
    "translate": "launch.translate",
    "evaluate": "launch.evaluate",
}
# Where a command's results lie, by the option that says so.
_RESULTS = {"train": "--run", "tune": "--out", "translate": "--out", "evaluate": "--out"}

_DASHBOARD = "http://127.0.0.1:8265"
_STOP_WAIT_S = 300
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Job:
    """What the cluster says of a job. results: the folder on the cluster that it writes."""

    id: str
    status: str
    command: str
    message: str
    results: str | None
    started_unix_s: float | None
    ended_unix_s: float | None

    @property
    def ended(self) -> bool:
        return self.status in _ENDED


class Jobs:
    """The job server of one cluster."""

    def __init__(self, address: str | None = None) -> None:
        """address: such as http://127.0.0.1:8265; None: RAY_ADDRESS, or that port of this machine.

        Raises AccessError if nothing answers there, or it refuses the token.
        """
        closed_by_default()
        refuse_shared_token()
        self.address = address or os.environ.get("RAY_ADDRESS") or _DASHBOARD
        from ray.job_submission import JobSubmissionClient  # noqa: PLC0415  after the mode is set

        # Which file it packs and which socket it closes is not what the user is here for.
        for name in ("ray.dashboard.modules", "ray._private.runtime_env"):
            logging.getLogger(name).setLevel(logging.WARNING)
        with _explained(self.address), _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            self._client: JobSubmissionClient = JobSubmissionClient(self.address)
            self.address = self._client.get_address()
        # It answered, and no token was sent.
        self.open_to_all = not have_token()

    def submit(
        self,
        command: str,
        arguments: Sequence[str],
        *,
        working_dir: Path | None = None,
        runtime_env: Path | None = None,
        job_id: str | None = None,
    ) -> str:
        """Start one of MODULES with its arguments on the cluster. Returns the job's id.

        working_dir: sent there (without what .gitignore names) and the job's current folder.
        runtime_env: a YAML file in Ray's format. Raises AccessError for secrets among its
        variables, which Ray would show.
        """
        environment = _read_environment(runtime_env)
        refuse_secrets(environment.get("env_vars", {}), f"runtime environment {runtime_env}")
        # Ray kills a job 3 s after it asked it to stop; training saves a checkpoint first.
        waits = {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S)}
        environment["env_vars"] = waits | environment.get("env_vars", {})
        if working_dir is not None:
            environment["working_dir"] = str(working_dir)
        results = _results(command, arguments)
        with _explained(self.address):
            submitted: str = self._client.submit_job(
                entrypoint=shlex.join(["python", "-m", MODULES[command], *arguments]),
                runtime_env=environment,
                submission_id=job_id,
                metadata={"results": results} if results else {},
            )
        return submitted

    def job(self, job_id: str) -> Job:
        with _explained(self.address):
            return _job(self._client.get_job_info(job_id))

    def all(self) -> list[Job]:
        """The jobs that were submitted, the newest first."""
        with _explained(self.address):
            found = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(map(_job, found), key=lambda job: -(job.started_unix_s or 0))

    def follow(self, job_id: str, show: Callable[[str], object]) -> Job:
        """Show what the job prints, from its first line, until it ends."""

        async def every() -> None:
            async for text in self._printed(job_id):
                show(text)

        with _explained(self.address):
            asyncio.run(every())
        return self.job(job_id)

    def logs(self, job_id: str) -> str:
        """What the job has printed so far."""
        with _explained(self.address):
            text: str = self._client.get_job_logs(job_id)
        return text

    def stop(self, job_id: str) -> bool:
        """Ask the job to end, as SIGTERM does: training saves a checkpoint. False if it has."""
        with _explained(self.address):
            asked: bool = self._client.stop_job(job_id)
        return asked

    def fetch(self, job_id: str, out: Path) -> list[Path]:
        """Copy a job's report, model, metrics and panels below `out`; not its checkpoints.

        A second job sends them through its log, for the folder may lie where only the cluster sees
        it. Raises AccessError if the job names no folder or nothing could be read there.
        """
        results = self.job(job_id).results
        if results is None:
            raise AccessError(f"job {job_id}: it was not submitted by pmg, or leaves no folder")
        with _explained(self.address):
            sending = self._client.submit_job(
                entrypoint=shlex.join(["python", "-m", "launch.archive", results]),
                # The package itself may have come with the first job's working directory.
                runtime_env=_sent_with(self._client.get_job_info(job_id)),
            )

        async def received() -> ArchiveReader:
            reader = ArchiveReader()
            async for text in self._printed(sending):
                reader.feed(text)
            return reader

        with _explained(self.address):
            reader = asyncio.run(received())
        ended = self.job(sending)
        if ended.status != "SUCCEEDED":
            raise AccessError(f"job {job_id}: {results} could not be sent: {ended.message}")
        return reader.extract(out)

    def _printed(self, job_id: str) -> AsyncIterator[str]:
        texts: AsyncIterator[str] = self._client.tail_job_logs(job_id)
        return texts


def _read_environment(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        environment = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise AccessError(f"runtime environment {path}: not YAML: {error}") from None
    if not isinstance(environment, dict) or not isinstance(environment.get("env_vars", {}), dict):
        raise AccessError(f"runtime environment {path}: expected fields such as env_vars: {{...}}")
    return environment


def _sent_with(info: JobDetails) -> dict[str, Any]:
    """The environment of a job whose working directory the cluster has already."""
    sent: Mapping[str, Any] = info.runtime_env or {}
    return {k: sent[k] for k in ("working_dir", "py_modules", "env_vars") if sent.get(k)}


def _results(command: str, arguments: Sequence[str]) -> str | None:
    option = _RESULTS.get(command)
    for number, argument in enumerate(arguments):
        if argument == option and number + 1 < len(arguments):
            return arguments[number + 1]
        if option is not None and argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return None


def _job(info: JobDetails) -> Job:
    return Job(
        id=info.submission_id,
        status=str(info.status.value),
        command=info.entrypoint,
        message=_cause(info.message or ""),
        results=(info.metadata or {}).get("results"),
        started_unix_s=info.start_time / 1000 if info.start_time else None,
        ended_unix_s=info.end_time / 1000 if info.end_time else None,
    )


def _cause(message: str) -> str:
    """The line that our own commands begin an error with, where Ray quotes it; else the last."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    own = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
    return own[-1] if own else (lines or [""])[-1]


@contextmanager
def _without(*variables: str) -> Iterator[None]:
    """Ray lets these win over the address that it is given."""
    held = {name: os.environ.pop(name) for name in variables if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(held)


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Ray's errors of connection and authentication as one line."""
    from ray.exceptions import AuthenticationError  # noqa: PLC0415
    from requests import RequestException  # noqa: PLC0415

    try:
        yield
    except AuthenticationError as error:
        said = str(error).partition("\n")[0]
        raise AccessError(
            f"cluster {address}: {said}; expected its token in RAY_AUTH_TOKEN_PATH, a file of mode "
            f"0600"
        ) from None
    except (ConnectionError, RequestException) as error:
        raise AccessError(
            f"cluster {address}: no answer ({type(error).__name__}); is it the address of the "
            f"job server, such as {_DASHBOARD}, and its port forwarded?"
        ) from None
    except RuntimeError as error:
        if type(error) is not RuntimeError:
            raise
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise AccessError(f"cluster {address}: {lines[-1] if lines else error}") from error
