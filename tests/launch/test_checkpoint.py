"""Checkpoints: complete or absent, and never a damaged one, on a disk and on an object store."""

from __future__ import annotations

import json
import logging
import random

import pytest
import torch

from launch import checkpoint
from storage.place import LocalPlace

FILE = "translator-00000-000.safetensors"


def weights(step: int) -> dict[str, torch.Tensor]:
    return {"a": torch.full((40,), float(step)), "b/exp_avg": torch.arange(step, step + 9)}


def write(place, step, **state):
    digest = checkpoint.write(place, step, FILE, weights(step))
    return checkpoint.seal(place, {"step": step} | state, {FILE: digest})


def names(place):
    return sorted(name.rstrip("/") for name in place.list())


def assert_is(found, step):
    assert found.step == step
    tensors = dict(found.tensors("translator"))
    assert tensors.keys() == weights(step).keys()
    assert all(torch.equal(tensors[name], value) for name, value in weights(step).items())


def test_what_was_sealed_is_found_again_with_all_its_tensors(place):
    assert checkpoint.newest(place) is None
    write(place, 10, note="first")
    write(place, 20, note="second")
    found = checkpoint.newest(place)
    assert_is(found, 20)
    assert found.state["note"] == "second"
    assert str(found) == f"{place}/step_00000020"


def damage(place, name, kind):
    data = bytearray(place.read(name))
    if kind == "flip":
        data[len(data) // 2] ^= 1
    elif kind == "cut":
        del data[-1:]
    elif kind == "empty":
        data.clear()
    place.replace(name, bytes(data))


@pytest.mark.parametrize("file", [FILE, "state.json", "manifest.json"])
@pytest.mark.parametrize("kind", ["flip", "cut", "empty"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(place, caplog, file, kind):
    write(place, 10)
    write(place, 20)
    damage(place, f"step_00000020/{file}", kind)
    with caplog.at_level(logging.WARNING):
        assert_is(checkpoint.newest(place), 10)
    assert f"{place}/step_00000020 is damaged" in caplog.text


def test_a_checkpoint_that_lacks_a_file_is_damaged(tmp_path, caplog):
    place = LocalPlace(tmp_path)
    write(place, 10)
    write(place, 20)
    (tmp_path / "step_00000020" / FILE).unlink()
    assert_is(checkpoint.newest(place), 10)
    assert "the file is missing" in caplog.text


def test_a_checkpoint_of_another_step_under_this_name_is_damaged(tmp_path, caplog):
    place = LocalPlace(tmp_path)
    write(place, 10)
    write(place, 20)
    (tmp_path / "step_00000020").rename(tmp_path / "step_00000030")
    assert_is(checkpoint.newest(place), 10)
    assert "state.json is of step 20" in caplog.text


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew_unasked(place):
    for step in (10, 20):
        write(place, step)
        damage(place, f"step_{step:08d}/{FILE}", "flip")
    with pytest.raises(checkpoint.CheckpointError, match="all are damaged, the oldest because"):
        checkpoint.newest(place)


def test_what_was_not_sealed_does_not_count_and_is_cleared_away(place):
    write(place, 10)
    checkpoint.write(place, 20, FILE, weights(20))
    assert_is(checkpoint.newest(place), 10)
    checkpoint.prune(place, keep=2)
    assert names(place) == ["step_00000010"]


def test_a_file_that_changes_after_it_was_found_is_not_loaded(tmp_path):
    place = LocalPlace(tmp_path)
    found = write(place, 10)
    damage(place, f"step_00000010/{FILE}", "flip")
    with pytest.raises(checkpoint.CheckpointError, match="changed while it was read"):
        dict(found.tensors("translator"))


def test_a_step_that_comes_again_replaces_what_was_damaged(place):
    write(place, 10)
    write(place, 20)
    damage(place, f"step_00000020/{FILE}", "cut")
    checkpoint.discard_after(place, 10)
    assert names(place) == ["step_00000010"]
    write(place, 20)
    assert_is(checkpoint.newest(place), 20)


def test_the_newest_are_kept_and_the_one_where_a_metric_was_least(place):
    for step, total in ((10, 3.0), (20, 1.0), (30, None), (40, 2.0), (50, 4.0)):
        write(place, step, metrics={"total": total})
    checkpoint.prune(place, keep=2, keep_best="total")
    assert names(place) == ["step_00000020", "step_00000040", "step_00000050"]
    checkpoint.prune(place, keep=1)
    assert names(place) == ["step_00000050"]


def test_two_hundred_tears_never_give_a_wrong_load(tmp_path):
    place = LocalPlace(tmp_path)
    chance = random.Random(7)
    for _ in range(200):
        for step in (10, 20):
            write(place, step)
        folder = tmp_path / f"step_{chance.choice([10, 20, 20, 20]):08d}"
        file = folder / chance.choice([FILE, "state.json", "manifest.json"])
        data = bytearray(file.read_bytes())
        at = chance.randrange(len(data))
        kind = chance.choice(["flip", "cut", "zeros", "gone", "mixed"])
        if kind == "flip":
            data[at] ^= 1 << chance.randrange(8)
        elif kind == "cut":
            del data[at:]
        elif kind == "zeros":  # as a disk gives back what was never flushed
            data[at:] = bytes(len(data) - at)
        elif kind == "mixed":  # half of it another checkpoint's
            other = tmp_path / ("step_00000010" if "20" in folder.name else "step_00000020")
            data[at:] = (other / file.name).read_bytes()[at:]
        if kind == "gone":
            file.unlink()
        else:
            file.write_bytes(data)
        found = checkpoint.newest(place)
        assert found is not None
        assert_is(found, found.step)
        checkpoint.discard_after(place, -1)


def test_a_pickle_in_a_tensors_place_is_not_executed(tmp_path):
    """Even one that the manifest vouches for."""
    place = LocalPlace(tmp_path)
    write(place, 10)
    planted = tmp_path / "ran"
    pickle = b"cos\nsystem\n(S'touch " + str(planted).encode() + b"'\ntR."
    target = tmp_path / "step_00000010"
    (target / FILE).write_bytes(pickle)
    manifest = json.loads((target / "manifest.json").read_text())
    manifest[FILE] = checkpoint._digest(pickle)
    (target / "manifest.json").write_text(json.dumps(manifest))
    found = checkpoint.newest(place)
    with pytest.raises(checkpoint.CheckpointError, match=FILE):
        dict(found.tensors("translator"))
    assert not planted.exists()


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../outside"])
def test_a_manifest_that_points_out_of_its_folder_is_damaged(tmp_path, name, caplog):
    (tmp_path / "outside").write_text("somebody else's")
    place = LocalPlace(tmp_path / "checkpoints")
    write(place, 10)
    write(place, 20)
    manifest = tmp_path / "checkpoints" / "step_00000020" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {name: "00"}))
    assert_is(checkpoint.newest(place), 10)
    assert "leads out of the store" in caplog.text
