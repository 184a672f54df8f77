"""Who may talk to a Ray cluster: whoever has its token, which lies where nobody else can read it.

Ray's interfaces run the code that they are sent. Ray 2.60 itself writes its token readable by
everybody on the machine, and asks for none where `RAY_AUTH_MODE` is not set.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

import click

__all__ = [
    "AccessError",
    "closed_by_default",
    "have_token",
    "refuse_secrets",
    "refuse_shared_token",
    "token_file",
]

_MODE = "RAY_AUTH_MODE"
_TOKEN, _PATH = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_SECRET = re.compile(r"secret|token|password|passwd|credential|(access|private|api)_?key", re.I)
_NAMES_A_FILE = re.compile(r"(_PATH|_FILE|_DIR)$", re.I)


class AccessError(RuntimeError):
    """A cluster that does not answer or refuses a token, or a secret that others could read."""


def closed_by_default() -> None:
    """Turn token authentication on for this process and its children, unless it was set otherwise.

    Call it before Ray is imported, which looks once.
    """
    os.environ.setdefault(_MODE, "token")


def refuse_shared_token() -> None:
    """Raise AccessError if the token that Ray would read lies in a file that others can read.

    Where Ray itself made the file, in the home directory, the mode is set right instead.
    """
    if _TOKEN not in os.environ and (path := _path()).exists():
        _refuse_shared(path)


def have_token() -> bool:
    """Whether there is a token for Ray to send."""
    return _TOKEN in os.environ or _path().exists()


def token_file() -> Path:
    """The file that Ray reads its token from: RAY_AUTH_TOKEN_PATH, or Ray's in the home directory.

    Where there is none a new token is written, with mode 0600. Raises AccessError for a file that
    others can read.
    """
    path = _path()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Never there with another mode, not even for a moment.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    _refuse_shared(path)
    return path


def refuse_secrets(variables: Mapping[str, str], where: str) -> None:
    """Raise AccessError for an environment variable whose name says that it is a secret.

    Ray keeps a job's environment in its tables and shows it on its dashboard. Variables that name
    a file are no secrets.
    """
    for name in variables:
        if _SECRET.search(name) and not _NAMES_A_FILE.search(name):
            raise AccessError(
                f"{where}: {name} looks like a secret, which Ray would store and show to everybody "
                f"who may see the job; give it to the nodes as a file or a Kubernetes secret"
            )


def _path() -> Path:
    named = os.environ.get(_PATH)
    return Path(named) if named else Path.home() / ".ray" / "auth_token"


def _refuse_shared(path: Path) -> None:
    status = path.stat()
    own = status.st_uid == os.getuid()
    # A secret that Kubernetes mounts belongs to root and is shared with the pod's group.
    if not status.st_mode & (0o077 if own else 0o007):
        return
    if own and _PATH not in os.environ:  # where Ray writes it, with what mode the umask leaves
        path.chmod(0o600)
        return
    raise AccessError(
        f"token {path}: its mode is {stat.S_IMODE(status.st_mode):04o}, so others can read it; "
        f"chmod 600 {path}, and make a new token if this machine is not yours alone"
    )


@click.command()
def main() -> None:
    """Make the token of a cluster, with mode 0600, and print its file; keep one that is there.

    For `ray start --head`, with RAY_AUTH_MODE=token: Ray would make one that everybody can read.
    """
    try:
        click.echo(token_file())
    except (AccessError, OSError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
