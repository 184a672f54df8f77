"""An object store that does not answer for a while is waited for, and one that stays away is said
to be."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest
from s3_server import s3_server

import storage.s3
from storage.errors import StoreError
from storage.place import Place


@pytest.fixture
def server() -> Iterator[tuple[Place, psutil.Process]]:
    """A place on a server of its own, and the server's process."""
    before = {child.pid for child in psutil.Process().children()}
    with s3_server() as bucket:
        (own,) = (c for c in psutil.Process().children() if c.pid not in before)
        place = Place.of(f"{bucket}/outage")
        place.replace("f", b"content")
        yield place, own
        with suppress(psutil.NoSuchProcess):
            own.resume()  # or it could not be ended


def test_a_server_that_stands_still_is_waited_for(server: tuple[Place, psutil.Process]) -> None:
    place, process = server
    process.suspend()
    resumed = threading.Timer(3, process.resume)
    resumed.start()
    assert place.read("f") == b"content"
    assert resumed.finished.is_set()


def test_a_server_that_is_restarted_is_asked_again(server: tuple[Place, psutil.Process]) -> None:
    place, process = server
    command = process.cmdline()
    process.kill()
    process.wait()
    restarted: list[subprocess.Popen[bytes]] = []

    def restart() -> None:
        quiet = subprocess.DEVNULL
        restarted.append(subprocess.Popen(command, stdout=quiet, stderr=quiet))

    later = threading.Timer(2, restart)
    later.start()
    try:
        # It answers: moto keeps its buckets in memory.
        with pytest.raises(StoreError, match="there is no bucket"):
            Place.of(place.address).read("f")
    finally:
        later.join()
        restarted[0].kill()
        restarted[0].wait()


def test_a_server_that_stays_away_is_named_when_the_time_for_retries_is_over(
    server: tuple[Place, psutil.Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, process = server
    process.kill()
    process.wait()
    monkeypatch.setattr(storage.s3, "_RETRY_S", 3.0)
    with pytest.raises(StoreError, match=r"outage/f: .*no answer"):
        Place.of(place.address).read("f")
