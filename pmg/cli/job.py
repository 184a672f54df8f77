"""`pmg job`: what was submitted to a Ray cluster."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pmg.cli import refusals
from pmg.cli.options import OUT_FOLDER

if TYPE_CHECKING:
    from launch.submit import Job, Jobs

__all__ = ["address_option", "connected", "follow"]

address_option = click.option(
    "--address",
    metavar="URL",
    help="of the cluster's job server; default: RAY_ADDRESS, then http://127.0.0.1:8265",
)
_id_argument = click.argument("job_id", metavar="ID")


@click.group(name="job")
def command() -> None:
    """List, follow, stop and fetch the jobs of a Ray cluster.

    The cluster's token is read from the file that RAY_AUTH_TOKEN_PATH names.
    """


@command.command(name="list")
@address_option
def list_(address: str | None) -> None:
    """All submitted jobs, the newest first."""
    from rich.console import Console
    from rich.table import Table

    with refusals():
        table = Table("id", "status", "started", "took", "command")
        for job in connected(address).all():
            table.add_row(job.id, job.status, _started(job), _took(job), job.command)
    Console().print(table)


@command.command()
@address_option
@_id_argument
def status(address: str | None, job_id: str) -> None:
    """One job: how it is, since when, and what it ended with."""
    with refusals():
        job = connected(address).job(job_id)
    click.echo(f"{job.id}: {job.status}, started {_started(job)}, took {_took(job)}")
    click.echo(job.command)
    if job.results:
        click.echo(f"results on the cluster: {job.results}")
    if job.message:
        click.echo(job.message)


@command.command()
@address_option
@click.option("--follow", "-f", "wait", is_flag=True, help="until the job ends; Ctrl-C leaves it")
@_id_argument
def logs(address: str | None, wait: bool, job_id: str) -> None:
    """What a job has printed."""
    with refusals():
        jobs = connected(address)
        if wait:
            sys.exit(follow(jobs, job_id))
        click.echo(jobs.logs(job_id), nl=False)


@command.command()
@address_option
@_id_argument
def stop(address: str | None, job_id: str) -> None:
    """Ask a job to end. Training saves a checkpoint; the same command goes on from it."""
    with refusals():
        asked = connected(address).stop(job_id)
    click.echo(f"{job_id} {'is asked to stop' if asked else 'had ended already'}")


@command.command()
@address_option
@click.option("--out", type=OUT_FOLDER, required=True, help="a folder here")
@_id_argument
def fetch(address: str | None, out: Path, job_id: str) -> None:
    """Copy a job's report, tables, panels and model here; not its checkpoints or images."""
    with refusals():
        files = connected(address).fetch(job_id, out)
    for file in files:
        click.echo(file)


def follow(jobs: Jobs, job_id: str) -> int:
    """Show what a job prints until it ends, or until Ctrl-C. Returns the exit status for it."""
    try:
        job = jobs.follow(job_id, lambda text: click.echo(text, nl=False))
    except KeyboardInterrupt:
        where = f"--address {jobs.address} {job_id}"
        click.echo(f"\n{job_id} goes on without this terminal")
        click.echo(f"back to it:  pmg job logs --follow {where}")
        click.echo(f"end it:      pmg job stop {where}")
        return 0
    if job.status == "SUCCEEDED":
        click.echo(f"job {job_id} succeeded after {_took(job)}")
        return 0
    click.echo(f"job {job_id} {job.status.lower()}: {job.message}", err=True)
    return 1


def connected(address: str | None) -> Jobs:
    from launch.submit import Jobs

    jobs = Jobs(address)
    if jobs.open_to_all:
        click.echo(
            f"cluster {jobs.address} asks for no token: whoever reaches it can run code there; "
            f"see docs/cluster.md",
            err=True,
        )
    return jobs


def _started(job: Job) -> str:
    if job.started_unix_s is None:
        return "not yet"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started_unix_s))


def _took(job: Job) -> str:
    if job.started_unix_s is None:
        return ""
    seconds = (job.ended_unix_s or time.time()) - job.started_unix_s
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
