"""A store and a configuration small enough to train in seconds; `store` is one for all tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmg.config import Config
from storage.body import FrameOrigin
from storage.place import Place
from storage.store import Store
from storage.volume import Volume

SPACING_MM = (3.0, 2.0, 2.0)

_SMALL: dict[str, dict[str, Any]] = {
    "data": {"patch": (32, 32), "threads": 1},
    "model": {"width": 4, "blocks": 1, "latent_channels": 4},
    "discriminator": {"width": 4, "layers": 2, "scales": 1},
    "prior": {"components": 3, "fit_step": 3, "reseed_every": 0},
    "optim": {"schedule": "constant", "lr": 1e-3, "lr_discriminator": 1e-3, "ema": 0.9},
    "train": {"batch": 4, "steps": 12, "log_every": 2, "checkpoint_every": 4, "seed": 3},
    "translate": {"tile": (64, 64)},
}


def small_config(store: Path | str, **sections: dict[str, Any]) -> Config:
    """The small tree with some fields of some sections changed."""
    names = _SMALL.keys() | sections.keys()
    tree = {name: _SMALL.get(name, {}) | sections.get(name, {}) for name in names}
    tree["data"]["store"] = store
    return Config.model_validate(tree)


def make_store(path: Path | Place) -> Store:
    """Two volumes per domain: an elliptic body in air, with a vessel that is bright in domain 2."""
    store = Store.create(path, SPACING_MM)
    with store.writer() as writer:
        rows = []
        for domain in (1, 2):
            for number in (1, 2):
                hu, body = _subject(domain, seed=10 * domain + number)
                rows.append(
                    writer.stage(
                        Volume(hu, _affine()),
                        body,
                        FrameOrigin((4, 24, 24), "middle of the body"),
                        volume_id=f"ct-{domain}-{number}",
                        patient=f"patient-{domain}-{number}",
                        domain=domain,
                        phase=("non_contrast", "arterial")[domain - 1],
                        source_digest="00",
                        ingest_version=1,
                        provenance={},
                    )
                )
        writer.commit(rows)
    return Store.open(path)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For tests that only read it."""
    path = tmp_path_factory.mktemp("small") / "store"
    make_store(path)
    return path


def _subject(domain: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    _, y, x = np.indices((8, 48, 48)) - np.array([4, 24, 24]).reshape(3, 1, 1, 1)
    body = (y / 17) ** 2 + (x / 21) ** 2 < 1
    vessel = (y - 4) ** 2 + x**2 < 16
    hu = np.where(body, 50, -1000) + vessel * (0, 0, 250)[domain]
    return np.round(hu + rng.normal(0, 10, hu.shape)).astype(np.int16), body


def _affine() -> np.ndarray:
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = (*SPACING_MM, 1)
    return affine
