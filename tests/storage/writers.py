"""What the tests' other processes do; little is imported here, since each of them starts anew."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection

from storage.errors import StoreError
from storage.place import Place


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
