"""The stream and zarr with obstore, both reading from an S3 server on loopback."""

from __future__ import annotations

import http.client
import itertools
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import numpy as np
import obstore
import zarr
from obstore.store import S3Store
from zarr.storage import ObjectStore

from benchmarks.cohort import Cohort, add_format
from benchmarks.readers import BATCH, stream_batches
from storage.layout import Index
from storage.store import Store

__all__ = ["report_remote"]

_KEYS = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark-secret"}
_BUCKET = "cohort"
_PATCH = (32, 64, 64)


def report_remote(cohort: Cohort, seconds: float, rounds: int) -> None:
    """A table of patches per second; the server is nanio's, moto's where that is not installed."""
    print(f"## S3 on loopback, {'x'.join(map(str, _PATCH))}\n")
    name = next((name for name in ("nanio", "moto") if find_spec(name)), None)
    if name is None:
        print("- not measured: neither nanio nor moto is installed; pip install 'pmg[bench]'\n")
        return
    add_format(cohort, "zarr")
    with _server(name, cohort.folder / "s3"):
        bucket = S3Store(_BUCKET, client_options={"allow_http": True})
        for folder in ("store", "0.zarr", "1.zarr"):
            for file in sorted((cohort.folder / folder).rglob("*")):
                if file.is_file() and file.name != "lock":
                    key = str(file.relative_to(cohort.folder))
                    obstore.put(bucket, key, file.read_bytes(), use_multipart=False)
        readers: dict[str, Callable[[], Iterator[int]]] = {
            "zarr + obstore": lambda: _zarr_boxes(bucket, cohort.shape),
            "direct reader, each patch alone": lambda: _direct_boxes(cohort.shape),
            "stream, 2 threads": _stream,
        }
        running = {label: opened() for label, opened in readers.items()}
        rates: dict[str, list[float]] = {label: [] for label in readers}
        for _ in range(rounds):
            for label, batches in running.items():
                rates[label].append(_rate(batches, seconds))
        for batches in running.values():
            batches.close()  # type: ignore[attr-defined]
    print(f"| reader ({name}'s server) | patches/s | of zarr + obstore |")
    print("|---|---|---|")
    base = rates["zarr + obstore"]
    for label, found in rates.items():
        ratio = statistics.median(a / b for a, b in zip(found, base, strict=True))
        print(f"| {label} | {statistics.median(found):.0f} | x{ratio:.1f} |")
    print("\n- asked of the stream: 3 times zarr + obstore\n", flush=True)


def _places(shape: Index) -> Iterator[list[int]]:
    rng = np.random.default_rng(0)
    starts = rng.integers(0, np.subtract(shape, _PATCH) + 1, size=(4096, 3)).tolist()
    return itertools.cycle(starts)


def _zarr_boxes(bucket: S3Store, shape: Index) -> Iterator[int]:
    store = ObjectStore(bucket, read_only=True)
    arrays = [zarr.open_array(store, path=f"{number}.zarr", mode="r") for number in (0, 1)]
    out = np.empty(_PATCH, np.int16)
    for number, start in enumerate(_places(shape)):
        z, y, x = (slice(a, a + n) for a, n in zip(start, _PATCH, strict=True))
        out[...] = arrays[number % 2][z, y, x]
        yield 1


def _direct_boxes(shape: Index) -> Iterator[int]:
    store = Store.open(f"s3://{_BUCKET}/store")
    for number, start in enumerate(_places(shape)):
        store.read_box(f"v{number % 2}", start, _PATCH)
        yield 1


def _stream() -> Iterator[int]:
    store = Store.open(f"s3://{_BUCKET}/store")
    for _ in stream_batches(store, _PATCH, 0, memory_bytes=0, threads=2):
        yield BATCH


def _rate(batches: Iterator[int], seconds: float) -> float:
    for _ in range(8):
        next(batches)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        count += next(batches)
    return count / (time.perf_counter() - started)


@contextmanager
def _server(name: str, folder: Path) -> Iterator[None]:
    """A server in a process of its own, which this process's environment then points to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    commands: dict[str, Sequence[str]] = {
        "nanio": ("nanio", "serve", "--data-dir", str(folder), "--host", "127.0.0.1"),
        "moto": ("moto.server", "-H", "127.0.0.1"),
    }
    keys = {"NANIO_ACCESS_KEY": _KEYS["AWS_ACCESS_KEY_ID"]}
    keys |= {"NANIO_SECRET_KEY": _KEYS["AWS_SECRET_ACCESS_KEY"]}
    flag = "--port" if name == "nanio" else "-p"
    process = subprocess.Popen(
        [sys.executable, "-m", *commands[name], flag, port],
        env=os.environ | keys,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(int(port), process)
        endpoint = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_REGION": "us-east-1"}
        with mock.patch.dict(os.environ, endpoint | _KEYS):
            (folder / _BUCKET).mkdir(parents=True, exist_ok=True)
            if name == "moto":
                connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=10)
                connection.request("PUT", f"/{_BUCKET}")
                connection.getresponse()
            yield
    finally:
        process.terminate()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError("the S3 server did not start within 30 s")
