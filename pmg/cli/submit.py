"""`pmg submit`"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pmg.cli import refusals
from pmg.cli.job import address_option, connected, follow

_COMMANDS = ("train", "ingest", "tune", "translate", "evaluate")


@click.command(
    name="submit",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@address_option
@click.option(
    "--working-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="sent to the cluster as the job's current folder, without what its .gitignore names",
)
@click.option(
    "--runtime-env",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="YAML in Ray's format: env_vars, pip, ...; secrets are refused",
)
@click.option("--id", "job_id", help="of the job; by default Ray makes one up")
@click.option("--detach", is_flag=True, help="print the job's id and do not wait for it")
@click.argument("command_name", metavar="COMMAND", type=click.Choice(_COMMANDS))
@click.argument("arguments", nargs=-1, metavar="ARGUMENTS...", type=click.UNPROCESSED)
def command(
    address: str | None,
    working_dir: Path | None,
    runtime_env: Path | None,
    job_id: str | None,
    detach: bool,
    command_name: str,
    arguments: tuple[str, ...],
) -> None:
    """Run COMMAND (train, ingest, tune, translate, evaluate) as a job of a Ray cluster.

    ARGUMENTS are those of `python -m launch.COMMAND` there; its paths are the cluster's. What the
    job prints is shown until it ends; Ctrl-C leaves it running, and `pmg job` goes on with it.

    \b
    pmg submit --working-dir . train --config run.yaml --run /shared/run

    The cluster's token is read from the file that RAY_AUTH_TOKEN_PATH names. Ends with 0 when the
    job succeeded, 1 when it failed or was stopped.
    """
    with refusals():
        jobs = connected(address)
        submitted = jobs.submit(
            command_name,
            arguments,
            working_dir=working_dir,
            runtime_env=runtime_env,
            job_id=job_id,
        )
        click.echo(f"job {submitted} on {jobs.address}")
        if not detach:
            sys.exit(follow(jobs, submitted))
