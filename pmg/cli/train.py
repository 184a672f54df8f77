"""`pmg train`"""

from __future__ import annotations

from pathlib import Path

import click

from pmg.cli import refusals
from pmg.cli.options import OUT_FOLDER, config_option, overrides_argument, store_option


@click.command(name="train")
@store_option(help="what pmg ingest wrote; or data.store in the config")
@click.option(
    "--run", type=OUT_FOLDER, required=True, help="folder of the run; resumed if it exists"
)
@click.option("--force", is_flag=True, help="go on from checkpoints of other settings or data")
@config_option
@overrides_argument
def command(
    store: str | None, run: Path, force: bool, source: str | None, overrides: tuple[str, ...]
) -> None:
    """Train a translator on a store, with Ray and DeepSpeed.

    Settings come from the defaults, then --config, then overrides such as prior.components=8 or
    train.steps=2000; `pmg train --run RUN --config RUN/config.yaml` goes on with a run. Ctrl-C
    saves a checkpoint and stops; the same command resumes from it.
    """
    with refusals():
        from pmg.config import load_config

        config = load_config(source, overrides, **({"data": {"store": store}} if store else {}))

        from launch.train import train

        folder = train(config, run, force=force)
    click.echo(f"next: pmg translate --model {folder.root} SERIES --out OUT")
