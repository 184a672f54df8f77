"""A place on an S3-compatible object store: conditional writes, and a lock that is kept alive."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import secrets
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store

from storage.errors import StoreCorrupt, StoreError, StoreMissing
from storage.place import SMALL, Place, checked, refuse_large

if TYPE_CHECKING:
    from obstore.store import ClientConfig
    from zarr.storage import ObjectStore

__all__ = ["LOCK_RENEWED_S", "LOCK_STALE_S", "S3Place"]

# A writer renews its lock object this often; one that was not renewed for so long is taken over.
LOCK_RENEWED_S = 5.0
LOCK_STALE_S = 30.0

_URL = re.compile(r"s3://([a-z0-9][a-z0-9._-]{1,61}[a-z0-9])((?:/[A-Za-z0-9._=+-]+)*)/?")
_LOCK, _CLOCK = "lock", "lock-clock"
_RETRIES = 100  # as many as fit: time is what limits them
_RETRY_S = 60.0  # a server that is restarted, or a node that takes another's place, is back then


class S3Place(Place):
    """A prefix of a bucket. Keys, region and endpoint are those of the usual AWS_* environment.

    Every write is atomic on the server, and one with `expected` is conditional on the ETag. A
    server that ignores such conditions is refused by `locked`.
    """

    def __init__(self, url: str) -> None:
        match = _URL.fullmatch(url)
        parts = match[2].split("/") if match else []
        if match is None or "." in parts or ".." in parts:
            # Not shown: it may hold keys.
            raise StoreError("s3:...: expected s3://bucket/prefix of letters, digits and ._=+-")
        self.url = url.rstrip("/")
        self._bucket, self._prefix = match[1], match[2].strip("/")

    def __str__(self) -> str:
        return self.url

    def __reduce__(self) -> tuple[type[S3Place], tuple[str]]:
        return S3Place, (self.url,)

    @property
    def address(self) -> str:
        return self.url

    @property
    def zarr_store(self) -> ObjectStore[Any]:
        from zarr.storage import ObjectStore  # noqa: PLC0415  as in LocalPlace

        return ObjectStore(self._server, read_only=True)

    def read_version(self, name: str, *, limit: int = SMALL) -> tuple[bytes, str]:
        with self._asking(name):
            answer = obstore.get(self._server, checked(name))
            refuse_large(f"{self}/{name}", answer.meta["size"], limit)
            return bytes(answer.bytes()), str(answer.meta["e_tag"])

    def read_ranges(
        self,
        name: str,
        starts: Sequence[int],
        lengths: Sequence[int],
        scratch: memoryview | None = None,
    ) -> Sequence[obstore.Bytes]:
        with self._asking(name):
            ranges = obstore.get_ranges(self._server, checked(name), starts=starts, lengths=lengths)
        for start, length, data in zip(starts, lengths, ranges, strict=True):
            if len(data) != length:
                raise StoreCorrupt(
                    f"{self}/{name}: truncated; it ends before byte {start + length} "
                    f"({len(data)} of {length} bytes from {start} on are there)"
                )
        return ranges

    def size(self, name: str) -> int:
        with self._asking(name):
            return int(obstore.head(self._server, checked(name))["size"])

    def replace(self, name: str, data: bytes, *, expected: str | None = None) -> str:
        with self._asking(name):
            if expected is None:
                return str(obstore.put(self._server, checked(name), data)["e_tag"])
            version = self._put_if(name, data, expected)
        if version is None:
            raise StoreError(f"{self}/{name}: another process has replaced it; run again")
        return version

    def list(self, folder: str = "") -> Iterator[str]:
        with self._asking(folder):
            found = obstore.list_with_delimiter(self._server, checked(folder) if folder else None)
        yield from (f"{prefix}/" for prefix in found["common_prefixes"])
        yield from (entry["path"] for entry in found["objects"])

    def remove_tree(self, folder: str) -> None:
        with self._asking(folder):
            found = obstore.list(self._server, f"{checked(folder)}/", chunk_size=1000)
            for entries in found:
                obstore.delete(self._server, [entry["path"] for entry in entries])

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The lock is an object that names its owner, renewed every LOCK_RENEWED_S seconds.

        One whose owner died is free after LOCK_STALE_S, by the server's clock. An owner that only
        slept that long may wake up and think that it still has it: what it replaces with `expected`
        is refused then.
        """
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        version: str | None = self._acquire(owner)
        ended = threading.Event()

        def renew() -> None:
            nonlocal version
            while version is not None and not ended.wait(LOCK_RENEWED_S):
                try:
                    version = self._put_if(_LOCK, _lock(owner), version)
                except (BaseError, OSError):
                    continue  # the server is away; whoever wants the lock meets that as well

        keeper = threading.Thread(target=renew, name="store lock", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            keeper.join()
            if version is not None:
                with suppress(BaseError, OSError):  # it goes stale by itself
                    self._put_if(_LOCK, _lock(""), version)

    def _acquire(self, owner: str) -> str:
        """The lock object's version. Raises StoreError while another process has the lock."""
        with self._asking(_LOCK):
            if self._put_if(_CLOCK, secrets.token_bytes(8), '"0"') is not None:
                raise StoreError(
                    f"{self}: this server ignores conditional writes (If-Match), without which two "
                    "writers lose each other's volumes; expected an S3 server that has them"
                )
            version = self._put_if(_LOCK, _lock(owner), None)
            if version is None:
                found = obstore.get(self._server, _LOCK)
                data, meta = bytes(found.bytes()), found.meta
                holder = _owner(data)
                if holder:
                    obstore.put(self._server, _CLOCK, b"")
                    now = obstore.head(self._server, _CLOCK)["last_modified"]
                    age = (now - meta["last_modified"]).total_seconds()
                    if age <= LOCK_STALE_S:
                        raise StoreError(
                            f"{self}: {holder} is writing to this store; run again when it has "
                            f"ended, or {LOCK_STALE_S:.0f} s after it was killed"
                        )
                version = self._put_if(_LOCK, _lock(owner), str(meta["e_tag"]))
        if version is None:
            raise StoreError(f"{self}: another process has just begun to write to this store")
        return version

    def _put_if(self, name: str, data: bytes, expected: str | None) -> str | None:
        """Write if the version there is `expected`, or if there is none; None when it is not."""
        try:
            written = obstore.put(
                self._server,
                checked(name),
                data,
                mode="create" if expected is None else {"e_tag": expected},
                use_multipart=False,
            )
            return str(written["e_tag"])
        except (AlreadyExistsError, PreconditionError):
            # A request that was repeated because its answer got lost meets its own object.
            try:
                found = obstore.get(self._server, name)
                same = found.meta["size"] == len(data) and bytes(found.bytes()) == data
                return str(found.meta["e_tag"]) if same else None
            except FileNotFoundError:
                return None

    @property
    def _server(self) -> S3Store:
        if _first_process() != os.getpid():
            raise StoreError(
                f"{self}: this process was forked from one that had opened an object store, whose "
                "threads stayed behind; start it by spawn"
            )
        return self._client

    @cached_property
    def _client(self) -> S3Store:
        options: ClientConfig = {"timeout": "5 min"}
        if _plain_http():
            options["allow_http"] = True
        return S3Store(
            self._bucket,
            prefix=self._prefix or None,
            client_options=options,
            retry_config={
                "max_retries": _RETRIES,
                "retry_timeout": timedelta(seconds=_RETRY_S),
                "backoff": {"max_backoff": timedelta(seconds=5)},
            },
        )

    @contextmanager
    def _asking(self, name: str) -> Iterator[None]:
        """Say in a line what the server answered.

        The answers themselves are pages long and repeat the request.
        """
        path = f"{self}/{name}" if name else str(self)
        try:
            yield
        except (BaseError, FileNotFoundError) as error:
            text = str(error)
            if "NoSuchBucket" in text:
                raise StoreError(f"{path}: there is no bucket {self._bucket!r}") from None
            if isinstance(error, FileNotFoundError):
                raise StoreMissing(f"{path}: the file is missing") from None
            if "/latest/api/token" in text:  # of the service that gives a machine its role
                raise StoreError(
                    f"{path}: no credentials; expected AWS_ACCESS_KEY_ID and "
                    "AWS_SECRET_ACCESS_KEY, or a role of this machine"
                ) from None
            status = re.search(r"status code: (\d+ [A-Za-z ]+)", text)
            if status is not None and status[1].startswith("416"):
                raise StoreCorrupt(f"{path}: truncated; it ends before what was asked") from None
            code = re.search(r"<Code>(\w+)</Code>", text)
            answer = status[1] if status else "no answer" if "HTTP error" in text else "unusable"
            detail = f" ({code[1]})" if code else "" if status else f" ({type(error).__name__})"
            raise StoreError(f"{path}: the object store's answer: {answer}{detail}") from None


@cache
def _first_process() -> int:
    """The process in which obstore's threads run."""
    return os.getpid()


def _lock(owner: str) -> bytes:
    return json.dumps({"owner": owner, "written": secrets.token_hex(16)}).encode()


def _owner(data: bytes) -> str:
    try:
        return str(json.loads(data)["owner"])
    except (ValueError, KeyError, TypeError):
        return "a process that left no name"


def _plain_http() -> bool:
    """Whether the endpoint is one without TLS that may be used: on this very machine, or where the
    user's AWS_ALLOW_HTTP says so."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    parts = urlsplit(endpoint)
    if parts.scheme != "http":
        return False
    allowed = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")
    if allowed or parts.hostname == "localhost" or _is_loopback(parts.hostname or ""):
        return True
    raise StoreError(
        f"AWS_ENDPOINT_URL: http://{parts.hostname} sends volumes over the network as plain text; "
        "expected https, or AWS_ALLOW_HTTP=true where you trust the network"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
