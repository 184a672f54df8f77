"""The command line: one module a command, imported when asked for, so that help is instant."""

from __future__ import annotations

import difflib
import importlib
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

__all__ = ["main", "refusals"]

_INTERRUPTED = 128 + signal.SIGINT  # what shells expect of a program that Ctrl-C ended

_COMMANDS = {
    "phantom": "Write a cohort of synthetic CT series in DICOM, with truth for the test cases.",
    "ingest": "Bring DICOM series or NIfTI files of two domains into a store.",
    "info": "Tell what a store holds: counts, spacing, HU, size.",
    "verify": "Read every volume of a store and compare its BLAKE3.",
    "train": "Train a translator on a store, with Ray and DeepSpeed.",
    "tune": "Search the mixture's size and the loss weights, with Ray Tune and Optuna.",
    "translate": "Translate series to the other domain; DICOM, NIfTI or OME-Zarr out.",
    "evaluate": "Translate cases, measure them, and write the report.",
    "downstream": "Judge a translation by what a segmentation trained on contrast finds in it.",
    "export": "Write a store's volumes, or a model as safetensors, torch.export or ONNX.",
    "submit": "Run train, ingest, tune, translate or evaluate as a job of a Ray cluster.",
    "job": "List, follow, stop and fetch the jobs of a Ray cluster.",
    "demo": "The whole line on the phantom or on your own series, from DICOM to the report.",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"pmg.cli.{name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _COMMANDS:
            near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(_COMMANDS)}"
            ctx.fail(f"no command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)


@contextmanager
def refusals() -> Iterator[None]:
    """Show what the program refuses as one message, without a traceback.

    The program's own refusals are ValueErrors and RuntimeErrors of named types; everything else is
    a defect and keeps its traceback.
    """
    try:
        yield
    except KeyboardInterrupt as stopped:
        sys.exit(getattr(stopped, "code", _INTERRUPTED))  # training's says which signal it was
    except (ValueError, RuntimeError, OSError) as error:
        if type(error) in (ValueError, RuntimeError):
            raise
        raise click.ClickException(str(error)) from error


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pmg")
def main() -> None:
    """Unpaired, patch-based translation of CT between contrast phases.

    \b
    A first run:    pmg demo --out demo
    Your own data:  pmg ingest --manifest series.csv --store store --key ~/pmg.key
                    pmg train --store store --run run
                    pmg translate --model run SERIES_FOLDER --out translated
    """
