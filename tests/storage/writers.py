"""What the tests' other processes do, and waiting until a lock is free."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event

from make_cohort import SHAPE, body_hu, stage

from storage.errors import StoreError
from storage.place import Place
from storage.store import Store


@contextmanager
def locked_within(place: Place, seconds: float) -> Iterator[None]:
    """The lock as soon as it is free."""
    deadline = time.monotonic() + seconds
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(place.locked())
                break
            except StoreError:
                assert time.monotonic() < deadline, "the lock did not become free"
                time.sleep(0.2)
        yield


def lock_once(place: Place) -> str:
    try:
        with place.locked():
            return "locked"
    except StoreError as error:
        return str(error)


def lock_for_ever(place: Place, pipe: Connection) -> None:
    with place.locked():
        pipe.send("locked")
        time.sleep(600)


def lock_and_replace(place: Place, version: str, pipe: Connection) -> None:
    with place.locked():
        pipe.send("locked")
        time.sleep(1)  # asleep when it is stopped, and over it when it goes on
        try:
            pipe.send(place.replace("catalogue", b"of the first writer", expected=version))
        except StoreError as error:
            pipe.send(str(error))


def read_or_refuse(place: Place) -> str:
    try:
        return str(place.read("f"))
    except StoreError as error:
        return str(error)


def stage_and_wait(place: Place, pipe: Connection) -> None:
    """Stage a volume, tell its array's path, and commit it when told so."""
    with Store.open(place).writer() as writer:
        row = stage(writer, body_hu(SHAPE, 5))
        pipe.send(row.array_path)
        pipe.recv()
        try:
            writer.commit([row])
            pipe.send("committed")
        except StoreError as error:
            pipe.send(str(error))


def add_volumes(place: Place, names: list[str], started: Event, pipe: Connection) -> None:
    """Stage and commit one volume after the other, telling of each that is committed."""
    started.wait()
    try:
        with Store.open(place).writer() as writer:
            for name in names:
                writer.commit([stage(writer, body_hu((20, 30, 40), len(name)), name)])
                pipe.send(name)
        pipe.send("done")
    except StoreError as error:
        pipe.send(str(error))
