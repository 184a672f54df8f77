"""Files that somebody else may have written: none runs code, none lands outside its folder."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from launch.access import AccessError
from launch.archive import ArchiveReader, files_of, send
from launch.run_folder import RunFolder
from launch.submit import _read_environment
from pmg.assess import read_assessed
from pmg.config import ConfigError, load_config
from pmg.weights import WEIGHTS, ModelError, load_translator


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self._mark),)


@pytest.fixture
def mark(tmp_path):
    """Where a payload would leave its mark; that it can is tried first."""
    probe = tmp_path / "probe"
    pickle.loads(pickle.dumps(Payload(probe)))
    assert probe.exists()
    path = tmp_path / "ran"
    yield path
    assert not path.exists(), "planted code ran"


def evil_yaml(mark: Path) -> str:
    return f"train: !!python/object/apply:os.mkdir ['{mark}']\n"


def test_a_configuration_makes_no_objects(mark, tmp_path):
    (tmp_path / "run.yaml").write_text(evil_yaml(mark))
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(None, [f"train.steps=!!python/object/apply:os.mkdir ['{mark}']"])


def test_a_runtime_environment_makes_no_objects(mark, tmp_path):
    (tmp_path / "env.yaml").write_text(evil_yaml(mark))
    with pytest.raises(AccessError, match="not YAML"):
        _read_environment(tmp_path / "env.yaml")


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_model_is_never_unpickled(mark, tmp_path, kind):
    (tmp_path / "config.yaml").write_text("data: {spacing_mm: [3, 2, 2]}\n")
    if kind == "pickle":
        (tmp_path / WEIGHTS).write_bytes(pickle.dumps(Payload(mark)))
    else:
        torch.save({"state": Payload(mark)}, tmp_path / WEIGHTS)
    with pytest.raises(ModelError, match=WEIGHTS):
        load_translator(tmp_path, torch.device("cpu"))


def test_a_kept_evaluation_is_never_unpickled(mark, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({"name": "a", "subject": "a", "figures": []}))
    titles = np.array(["a"], dtype=str)
    np.savez(tmp_path / "panels.npz", titles=titles, source0=np.array([Payload(mark)], object))
    with pytest.raises(ValueError, match="pickle"):
        read_assessed(tmp_path)


def received(archive: bytes) -> ArchiveReader:
    """As if a job had printed this archive among other lines."""
    reader = ArchiveReader()
    text = f"a log line\npmg-archive:{base64.b64encode(archive).decode()}\nanother\n"
    for start in range(0, len(text), 7):  # lines come in any pieces
        reader.feed(text[start : start + 7])
    return reader


@pytest.mark.parametrize("name", ["../escaped", "a/../../escaped", "/tmp/pmg-escaped"])
def test_a_fetched_archive_writes_below_its_folder_only(tmp_path, name):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for each in ("report.html", name):
            info = tarfile.TarInfo(each)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    reader = received(buffer.getvalue())
    with pytest.raises(AccessError, match=f"{re.escape(name)}: lies outside of"):
        reader.extract(tmp_path / "out")
    assert not (tmp_path / "escaped").exists()
    assert not Path("/tmp/pmg-escaped").exists()
    assert not (tmp_path / "out" / "report.html").exists()


def test_a_fetched_archive_plants_no_link(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        link = tarfile.TarInfo("panels")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(link)
        info = tarfile.TarInfo("panels/escaped")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    assert received(buffer.getvalue()).extract(tmp_path / "out") == [
        tmp_path / "out/panels/escaped"
    ]
    assert not (tmp_path / "escaped").exists()


def test_a_link_out_of_a_run_is_not_followed_when_it_is_sent(tmp_path):
    (tmp_path / "secret").write_text("hunter2")
    run = RunFolder(tmp_path / "run")
    run.panel(1).parent.mkdir(parents=True)
    run.panel(1).write_bytes(b"png")
    (run.root / "report.html").symlink_to(tmp_path / "secret")
    (run.root / "checkpoints").mkdir()
    (run.root / "checkpoints" / "state.json").write_text("{}")
    assert files_of(run.root) == [run.panel(1)]
    out = io.BytesIO()
    send(run.root, out)
    reader = ArchiveReader()
    reader.feed(out.getvalue().decode())
    assert reader.extract(tmp_path / "out") == [tmp_path / "out" / "panels" / run.panel(1).name]
