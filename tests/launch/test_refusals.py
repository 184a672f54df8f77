"""What training refuses before it starts any process."""

from __future__ import annotations

import os

import pytest
import ray
from small_run import make_store, small_config

from launch import checkpoint
from launch.run_folder import RunBusy, RunFolder
from launch.train import train
from pmg.config import ConfigError
from storage.errors import StoreError
from storage.place import Place
from storage.store import Store


@pytest.fixture(autouse=True)
def nothing_was_started():
    yield
    assert not ray.is_initialized()


def with_checkpoint(run, config):
    folder = RunFolder(run)
    catalogue = Store.open(config.data.store).digest
    state = {"step": 8, "identity": checkpoint.identity(config, catalogue)}
    checkpoint.seal(Place.of(folder.checkpoints), state, {})
    return folder


def test_a_missing_store(tmp_path):
    with pytest.raises(StoreError, match="nowhere"):
        train(small_config(tmp_path / "nowhere"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"data\.store"):
        train(small_config(None), tmp_path / "run")


def test_a_store_of_one_domain(store, tmp_path):
    one_sided = make_store(tmp_path / "store")
    with one_sided.writer() as writer:
        writer.commit([], removed=["ct-2-1", "ct-2-2"])
    with pytest.raises(ConfigError, match=r"domain \[1\]; training needs both"):
        train(small_config(one_sided.place.root), tmp_path / "run")


def test_patches_larger_than_the_volumes(store, tmp_path):
    config = small_config(store, data={"patch": (256, 256)})
    with pytest.raises(StoreError, match="256"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("model", "width", 8),
        ("discriminator", "layers", 3),
        ("prior", "components", 5),
        ("optim", "ema", 0.0),
        ("optim", "lr", 0.5),
        ("loss", "lambda_gan", 3.0),
        ("train", "batch", 8),
        ("train", "precision", "bf16"),
    ],
)
def test_a_checkpoint_that_other_settings_wrote(store, tmp_path, section, field, value):
    folder = with_checkpoint(tmp_path / "run", small_config(store))
    folder.config.write_text("what the run began with")
    with pytest.raises(checkpoint.CheckpointError, match=rf"{section}\.{field} is "):
        train(small_config(store, **{section: {field: value}}), folder.root)
    assert folder.config.read_text() == "what the run began with"


def test_a_checkpoint_that_was_trained_on_another_cohort(tmp_path):
    store = make_store(tmp_path / "store")
    folder = with_checkpoint(tmp_path / "run", small_config(store.place.root))
    with store.writer() as writer:
        writer.commit([], removed=["ct-2-1"])
    with pytest.raises(checkpoint.CheckpointError, match=r"data\.store is catalogue \w+ there"):
        train(small_config(store.place.root), folder.root)


def test_a_folder_in_which_another_run_is_under_way(store, tmp_path):
    folder = RunFolder(tmp_path)
    with folder.locked(), pytest.raises(RunBusy, match=str(os.getpid())):
        train(small_config(store), tmp_path)


def test_a_run_that_has_taken_its_steps_has_nothing_left_to_do(store, tmp_path, capsys):
    config = small_config(store, train={"steps": 8})
    folder = with_checkpoint(tmp_path / "run", config)
    assert train(config, folder.root) == folder
    assert "8 steps are done" in capsys.readouterr().out
