"""Pseudonyms: the keyed hashes that stand in the store where names, ids and UIDs stood."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from pydicom.config import IGNORE
from pydicom.multival import MultiValue
from pydicom.uid import UID as DicomUID

from storage.dicom_file import read_file
from storage.errors import StoreError

__all__ = ["KEY_BYTES", "Pseudonyms", "load_key", "scrub", "text_values", "throwaway_key"]

KEY_BYTES = 32

# A UID in full (four components and more, or 2.25 and a UUID), or shortened as "1.2.840...17".
_UID = re.compile(r"(?<![\w.])(?:\d+(?:\.\d+){3,}|2\.25\.\d+|\d+(?:\.\d+)+(?:\.{3}|…)\d+)(?!\w)")


# Value representations that hold binary numbers and no text, and numbers as text.
_NUMBERS = frozenset(["AT", "FD", "FL", "SL", "SQ", "SS", "SV", "UL", "US", "UV"])
_DECIMALS = frozenset(["DS", "IS"])
_DECIMAL = re.compile(r" *[-+]?[0-9]*\.?[0-9]*([eE][-+]?[0-9]+)? *")
_LONG = 40  # characters; messages cut longer values off
_MOST = 256  # bytes of a binary value that could be quoted
_WORD = 5  # characters from which a value is searched for within words too

# Words of the standard that say what an object is and nothing of whom it shows.
_DEFINED_TERMS = frozenset(
    [
        "SEG",
        "RTSTRUCT",
        "RTDOSE",
        "RTPLAN",
        "MONOCHROME1",
        "MONOCHROME2",
        "RGB",
        "YBR_FULL",
        "YBR_FULL_422",
        "ORIGINAL",
        "DERIVED",
        "PRIMARY",
        "SECONDARY",
        "AXIAL",
        "LOCALIZER",
        "HELICAL",
    ]
)


@dataclass(frozen=True)
class Pseudonyms:
    """HMAC-SHA256 under one key; a value keeps its pseudonym for as long as the key lives.

    Without the key a pseudonym can be neither reversed nor confirmed by hashing guesses, which a
    plain hash of a patient id would allow.
    """

    key: bytes = field(repr=False)

    def digest(self, kind: str, *parts: str | bytes) -> bytes:
        """32 bytes. `kind` and the length of every part are hashed too: ("ab", "c") is not
        ("a", "bc"), and a patient id that equals a series UID has another pseudonym."""
        mac = hmac.new(self.key, digestmod=hashlib.sha256)
        for part in (kind, *parts):
            data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
            mac.update(len(data).to_bytes(8, "little") + data)
        return mac.digest()

    def of(self, kind: str, *parts: str | bytes) -> str:
        """`kind-` and 16 letters and digits (80 bits), e.g. `series-c5h2kd7vq3m4x2ba`."""
        code = base64.b32encode(self.digest(kind, *parts)[:10]).decode().lower()
        return f"{kind}-{code}"

    def uid(self, uid: str) -> str:
        """The UID that stands for `uid`: 2.25 and a UUID as an integer (PS3.5 B.2)."""
        return f"2.25.{UUID(bytes=self.digest('UID', uid)[:16], version=4).int}"


def load_key(path: Path, folder: Path) -> Pseudonyms:
    """The key at `path`, made there (32 random bytes, mode 0600) when there is none.

    folder: the store or other folder that pseudonyms are written to. Raises StoreError when the
    key lies inside of it, is readable by others, or is not KEY_BYTES long.
    """
    if path.resolve().is_relative_to(folder.resolve()):
        raise StoreError(
            f"key file {path} lies inside {folder}: whoever copies the folder would copy the key "
            "to its pseudonyms; expected a path outside it"
        )
    if not path.exists():
        _create_key(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    # The group may read: Kubernetes mounts a secret as 0440 for a container that is not root.
    if mode & 0o027:
        raise StoreError(
            f"key file {path} has mode {mode:04o}: others may use it; expected 0600 "
            f"(chmod 600 {path})"
        )
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise StoreError(f"key file {path} holds {len(key)} bytes; expected {KEY_BYTES}")
    return Pseudonyms(key)


def throwaway_key() -> Pseudonyms:
    """A key that nobody keeps: what is written under it is linked to nothing else."""
    return Pseudonyms(secrets.token_bytes(KEY_BYTES))


def _create_key(path: Path) -> None:
    """Whole or absent, even when killed; of two processes at once the first one's key stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
    finally:
        temporary.unlink()


def text_values(path: Path) -> set[str]:
    """Every text in a DICOM header, nested and private elements included, but defined terms.

    Multiple values and the parts of a person's name are there one by one and as a whole. Raises
    IngestError or whatever pydicom raises for a malformed file.
    """
    found: set[str] = set()
    for element in read_file(path).header.iterall():
        if element.VR in _NUMBERS:
            continue
        value = element.value
        several = value if isinstance(value, MultiValue) else [value]
        texts = [_as_text(one) for one in several]
        if element.VR in _DECIMALS and all(_DECIMAL.fullmatch(text) for text in texts):
            continue
        for text in ("\\".join(texts), *texts):
            found.update((text, repr(text)[1:-1], *re.split(r"[\^=]", text)))
    stripped = {text.strip("\0 ") for text in found}
    return {text for text in stripped if len(text) > 2 and text not in _DEFINED_TERMS}


def _as_text(value: object) -> str:
    """Bytes as Latin 1, so that their very bytes are found again in whatever quotes them."""
    return value[:_MOST].decode("latin-1") if isinstance(value, bytes) else str(value)


def scrub(text: str, names: Pseudonyms, private: Iterable[str], files: Sequence[Path] = ()) -> str:
    """`text` with UIDs and every `private` value replaced by pseudonyms, paths by "file 3 of 40".

    private: the longest first; short ones as whole words, a long one also where it was cut off.
    files: the files of the series. UIDs that DICOM itself defines become their names.
    """
    values = {value for value in private if len(value) > 2 and not _UID.fullmatch(value)}
    replacements = {value: names.of("text", value) for value in values}
    for index, file in enumerate(files, start=1):
        label = f"file {index} of {len(files)}"
        replacements |= {one: label for one in (file.stem, file.name, str(file)) if len(one) > 2}
        for folder in (folder for folder in file.parents if len(folder.parts) > 1):
            replacements.setdefault(str(folder), names.of("path", str(folder)))
    # In one pass, so that no replacement is searched for what another one would replace.
    patterns = [_pattern(value) for value in _longest_first(replacements)]
    long = (value for value in _longest_first(values) if len(value) > _LONG)
    patterns += [rf"{re.escape(value[:_LONG])}[^;]*" for value in long]

    def replaced(match: re.Match[str]) -> str:
        found = match[0]
        if found in replacements:
            return replacements[found]
        if _UID.fullmatch(found):
            known = DicomUID(found, validation_mode=IGNORE).name
            return names.of("uid", found) if known == found else known
        return names.of("text", found)

    return re.sub("|".join([*patterns, _UID.pattern]), replaced, text)


def _pattern(value: str) -> str:
    return re.escape(value) if len(value) >= _WORD else rf"(?<!\w){re.escape(value)}(?!\w)"


def _longest_first(values: Iterable[str]) -> list[str]:
    return sorted(values, key=len, reverse=True)
