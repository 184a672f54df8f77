"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from storage.pseudonym import Pseudonyms

__all__ = [
    "FOLDER",
    "OUT_FOLDER",
    "config_option",
    "device_option",
    "identity_options",
    "overrides_argument",
    "pseudonyms_of",
]

F = TypeVar("F", bound=Callable[..., Any])

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
OUT_FOLDER = click.Path(file_okay=False, path_type=Path)

# A store's address stays text: a Path would make s3:/bucket of s3://bucket.
store_argument = click.argument("store", metavar="STORE")
store_option = partial(click.option, "--store", metavar="FOLDER|s3://BUCKET/PREFIX")

config_option = click.option(
    "--config", "source", metavar="FILE|PRESET", help="a YAML file, or the name of a preset"
)
overrides_argument = click.argument("overrides", nargs=-1, metavar="[SECTION.FIELD=VALUE]...")
device_option = click.option(
    "--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, or the best there is"
)


def identity_options(command: F) -> F:
    """--key and --keep-identity, of commands that write DICOM derived from a patient's."""
    keep = click.option(
        "--keep-identity",
        is_flag=True,
        help="write the source's patient, study, dates and UIDs, to be filed where it came from",
    )
    key = click.option(
        "--key",
        type=click.Path(dir_okay=False, path_type=Path),
        help="file with the secret key of the pseudonyms, such as the ingest's: the same patient "
        "and study then get the same ones every time; without it nothing links them",
    )
    return key(keep(command))


def pseudonyms_of(key: Path | None, keep_identity: bool, out: Path) -> Pseudonyms | None:
    """What the identity options ask for; None where the identity is kept.

    out: the folder that is written, in which the key may not lie. Raises StoreError for an unusable
    key, click.UsageError for both options at once.
    """
    from storage.pseudonym import load_key, throwaway_key

    if keep_identity and key is not None:
        raise click.UsageError("--keep-identity makes no pseudonyms; leave out --key")
    if keep_identity:
        return None
    return throwaway_key() if key is None else load_key(key, out)
