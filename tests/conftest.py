from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from s3_server import s3_server

from storage.place import Place

# Machines are shared: how long an example takes says nothing.
settings.register_profile("pmg", deadline=None)
settings.load_profile("pmg")

_numbers = itertools.count()


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place of each kind: what a test says of one holds for the other."""
    if request.param == "local":
        return Place.of(tmp_path / "place")
    return Place.of(f"{request.getfixturevalue('s3_bucket')}/place-{next(_numbers)}")
