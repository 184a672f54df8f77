"""Checkpoints: complete or absent, and never a damaged one."""

import logging

import pytest

from launch import checkpoint


def write(folder, step, text="weights"):
    partial = checkpoint.partial_folder(folder, step)
    (partial / "translator").mkdir(parents=True)
    (partial / "translator" / "shard").write_text(f"{text} {step}")
    return checkpoint.commit(partial, {"step": step})


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "no manifest", "cut manifest"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(tmp_path, caplog, damage):
    before, newest = write(tmp_path, 10), write(tmp_path, 20)
    assert checkpoint.newest(tmp_path) == newest
    shard, manifest = newest / "translator" / "shard", newest / "manifest.json"
    if damage == "flip":
        content = bytearray(shard.read_bytes())
        content[3] ^= 1
        shard.write_bytes(content)
    elif damage == "truncate":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "remove":
        shard.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text()[:-5])
    with caplog.at_level(logging.WARNING):
        assert checkpoint.newest(tmp_path) == before
    assert str(newest) in caplog.text


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew_unasked(tmp_path):
    for folder in (write(tmp_path, 10), write(tmp_path, 20)):
        (folder / "translator" / "shard").unlink()
    with pytest.raises(checkpoint.CheckpointError, match="translator/shard is missing"):
        checkpoint.newest(tmp_path)


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path):
    write(tmp_path, 10)
    damaged = write(tmp_path, 20)
    (damaged / "manifest.json").unlink()
    assert write(tmp_path, 20, "new weights") == damaged == checkpoint.newest(tmp_path)
    assert (damaged / "translator" / "shard").read_text() == "new weights 20"


def test_what_was_not_committed_does_not_count(tmp_path):
    whole = write(tmp_path, 10)
    partial = checkpoint.partial_folder(tmp_path, 20)
    (partial / "translator").mkdir(parents=True)
    (partial / "translator" / "shard").write_text("half")
    assert checkpoint.newest(tmp_path) == whole
    checkpoint.prune(tmp_path, keep=2)
    assert [p.name for p in tmp_path.iterdir()] == [whole.name]


def test_only_the_newest_are_kept(tmp_path):
    for step in (10, 20, 30, 40):
        write(tmp_path, step)
    checkpoint.prune(tmp_path, keep=2)
    assert sorted(checkpoint.read_state(p)["step"] for p in tmp_path.iterdir()) == [30, 40]
