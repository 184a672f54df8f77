"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["FOLDER", "OUT_FOLDER", "config_option", "device_option", "overrides_argument"]

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
OUT_FOLDER = click.Path(file_okay=False, path_type=Path)

config_option = click.option(
    "--config", "source", metavar="FILE|PRESET", help="a YAML file, or the name of a preset"
)
overrides_argument = click.argument("overrides", nargs=-1, metavar="[SECTION.FIELD=VALUE]...")
device_option = click.option(
    "--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, or the best there is"
)
