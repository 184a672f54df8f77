from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import s3_server

from storage.place import Place

_numbers = itertools.count()


# First, since xdist takes the groups when its turn comes.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Which tests one process of pytest-xdist runs: those of a file, which share its fixtures; all
    that start Ray, so that there is one cluster at a time."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        heavy = any(item.get_closest_marker(name) for name in ("slow", "long"))
        ray = heavy and folder not in ("pmg", "storage")
        item.add_marker(pytest.mark.xdist_group("ray" if ray else item.path.name))


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
