"""What goes wrong with files of a store, on a disk or on an object store, behind its back."""

from __future__ import annotations

import obstore

from storage.place import LocalPlace, Place
from storage.s3 import S3Place


def files(place: Place, folder: str = "") -> list[str]:
    """All files of a place; not the lock, which holds no data."""
    found: list[str] = []
    for name in place.list(folder):
        found += files(place, name.rstrip("/")) if name.endswith("/") else [name]
    return sorted(name for name in found if not name.startswith("lock"))


def read(place: Place, name: str) -> bytes:
    return place.read(name, limit=2**40)


def overwrite(place: Place, name: str, data: bytes) -> None:
    """In place, as a failing disk does it: not by renaming."""
    if isinstance(place, LocalPlace):
        (place.root / name).write_bytes(data)
    else:
        place.replace(name, data)


def delete(place: Place, name: str) -> None:
    if isinstance(place, LocalPlace):
        (place.root / name).unlink()
    else:
        assert isinstance(place, S3Place)
        obstore.delete(place._server, name)


def flip(place: Place, name: str, position: int, bits: int = 4) -> None:
    data = bytearray(read(place, name))
    data[position % len(data)] ^= bits
    overwrite(place, name, bytes(data))
