"""Time and memory until a large cohort's catalogue is open and its first sample is known."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from storage.body import FrameOrigin
from storage.catalogue import Catalogue
from storage.store import Store
from storage.volume import Volume

__all__ = ["make_catalogue", "report_start_up", "start_up"]

_FIRST = """
import sys, time
began = time.perf_counter()
from storage.sampling import PairSampler, split_patients
from storage.store import Store
training, _ = split_patients(Store.open(sys.argv[1]).rows, float(sys.argv[2]), 0)
PairSampler(training, seed=0, patch_shape=(1, 128, 128)).pair(0)
seconds = time.perf_counter() - began
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(seconds, 1024 * int(status["VmHWM"].split()[0]))  # getrusage counts the parent's as well
"""


def report_start_up(folder: Path, count: int) -> None:
    make_catalogue(folder, count)
    print(f"## Start-up with {count} volumes, in a fresh process\n")
    for held_out in (0.0, 0.1):
        runs = [start_up(folder, held_out) for _ in range(3)]
        seconds, peak = min(runs)
        print(
            f"- {held_out:.0%} of the patients held out: first sample after {seconds:.2f} s with "
            f"imports (asked: 2), {peak / 1e6:.0f} MB (asked: 500); best of {len(runs)}"
        )
    print(flush=True)


def start_up(folder: Path, held_out: float) -> tuple[float, int]:
    """(seconds, largest resident bytes) until the first sample of a store in `folder` is known."""
    command = [sys.executable, "-c", _FIRST, str(folder), str(held_out)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds, peak = out.split()
    return float(seconds), int(peak)


def make_catalogue(folder: Path, count: int) -> Store:
    """A store whose catalogue names `count` volumes, each of a patient of its own; without arrays
    but for two."""
    store = Store.create(folder, (2.0, 1.0, 1.0))
    shape = (160, 256, 256)
    z, y, x = np.ogrid[-1:1:160j, -1:1:256j, -1:1:256j]
    body = z**2 / 1.2 + y**2 / 0.6 + x**2 < 0.9
    affine = np.diag([1.0, 1.0, 2.0, 1.0])[:, [2, 1, 0, 3]]
    with store.writer() as writer:
        rows = [
            writer.stage(
                Volume(np.zeros(shape, np.int16), affine),
                body,
                FrameOrigin((80, 128, 128), "middle of the body"),
                volume_id=f"v{domain}",
                patient=f"p{domain}",
                domain=domain,
                phase=("non_contrast", "arterial")[domain - 1],
                source_digest=secrets.token_hex(32),
                ingest_version=1,
                provenance={"steps": ["resampled to 2.0 x 1.0 x 1.0 mm", "table removed"] * 4},
            )
            for domain in (1, 2)
        ]
        table = Catalogue.of(rows).table.take(pa.array(np.arange(count) % 2))
        rng = np.random.default_rng(0)
        cells = len(rows[0].body_cells)
        own = {
            "volume_id": [f"v{number:07d}" for number in range(count)],
            "patient": [secrets.token_hex(8) for _ in range(count)],
            "digest": [secrets.token_hex(32) for _ in range(count)],
            "metadata_digest": [secrets.token_hex(32) for _ in range(count)],
            "source_digest": [secrets.token_hex(32) for _ in range(count)],
            "array_path": [f"volumes/v{n:07d}-{secrets.token_hex(8)}" for n in range(count)],
            "body_cells": [
                (rng.integers(0, 256, cells) | np.frombuffer(rows[0].body_cells, np.uint8))
                .astype(np.uint8)
                .tobytes()
                for _ in range(count)
            ],
        }
        for name, values in own.items():
            at = table.column_names.index(name)
            field = table.schema.field(name)
            table = table.set_column(at, field, pa.array(values, field.type))
        writer.commit(Catalogue(table))
    return Store.open(folder)
