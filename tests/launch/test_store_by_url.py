"""A run's workers, which are other processes, find the store wherever it lies."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import make_store, small_config

from launch.train import with_store
from storage.place import LocalPlace, Place
from storage.stream import open_stream

WORKER = """
import hashlib, json, sys
from pmg.config import Config
from storage.store import Store
from storage.stream import open_stream
config = Config.model_validate(json.loads(sys.argv[1]))
with open_stream(Store.open(config.data.store), config.data, seed=3, rank=0, world_size=1,
                 global_batch=4) as stream:
    print(hashlib.sha256(next(stream).hu1.tobytes()).hexdigest())
"""


def test_the_driver_hands_over_an_address_that_every_worker_can_open(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(place)
    address = str(place)
    if isinstance(place, LocalPlace):  # given relative to where the driver runs
        monkeypatch.chdir(place.root.parent)
        address = place.root.name
    config, catalogue = with_store(small_config(address))
    assert catalogue == store.digest
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", WORKER, json.dumps(config.model_dump(mode="json"))],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    with open_stream(store, config.data, seed=3, rank=0, world_size=1, global_batch=4) as stream:
        batch = next(stream).hu1
    assert done.stdout.strip() == hashlib.sha256(batch.tobytes()).hexdigest()
