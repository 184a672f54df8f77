"""What ranks do together about a step that is not finite and a checkpoint that does not fit."""

from __future__ import annotations

import json
import resource
from dataclasses import replace

import numpy as np
import pytest
import torch
from ranks import run_together, start
from small_run import small_config

from launch import checkpoint
from launch.run_folder import RunFolder
from launch.skipped import SkippedSteps
from storage.store import Store
from storage.stream import open_stream

pytestmark = pytest.mark.slow

BATCH = 4


def stream_of(config, rank, start_step=0):
    return open_stream(
        Store.open(config.data.store),
        config.data,
        seed=config.train.seed,
        rank=rank,
        world_size=2,
        global_batch=BATCH,
        start_step=start_step,
    )


def with_nan(batch):
    hu1 = batch.hu1.astype(np.float32)
    hu1[1, 0, 5, 5] = np.nan
    return replace(batch, hu1=hu1)


def snapshot(training):
    engines = (training.translator, training.critic)
    found = [{n: v.clone() for n, v in e.tensors()} for e in engines]
    return [*found, {n: v.clone() for n, v in training.averaged.named_parameters()}]


def same(one, other):
    return all(torch.equal(a[n], b[n]) for a, b in zip(one, other, strict=True) for n in a)


def _plant(rank, engines, folder, configs):
    for number, config in enumerate(configs):
        training, skipped = start(config, engines), SkippedSteps(total=5, limit=2)
        said, ended = {}, None
        with stream_of(config, rank) as stream:
            for step in range(1, 5):
                batch, before = next(stream), snapshot(training)
                planted = rank == 1 and step in (2, 4)
                outcome = training.advance(with_nan(batch) if planted else batch)
                skipped.add(step, batch, outcome)
                assert same(before, snapshot(training)) == (step in (2, 4))
                if planted:
                    said["volumes"] = batch.volume_ids[1]
                    said["sample"] = int(batch.samples[1])
            said["record"] = skipped.report()
            batch = next(stream)
            for step in (5, 6):
                skipped.add(step, batch, training.advance(with_nan(batch)))
            try:
                skipped.report()
            except FloatingPointError as error:
                ended = str(error)
        (folder / f"{number}-{rank}.json").write_text(json.dumps(said | {"ended": ended}))


def test_a_nan_on_one_rank_skips_the_step_on_all_and_is_named(store, tmp_path):
    configs = [
        small_config(
            store,
            launch={"zero_stage": stage},
            prior={"components": 3, "fit_step": 0, "reseed_every": 0},
        )
        for stage in (0, 1, 2, 3)
    ]
    run_together(_plant, tmp_path, configs)
    for number in range(len(configs)):
        said = [json.loads((tmp_path / f"{number}-{rank}.json").read_text()) for rank in (0, 1)]
        assert said[0]["record"] == said[1]["record"]
        record = said[1]["record"]
        assert (record["skipped"], record["skipped_steps"]) == (7, 2)
        first, second = record["not_finite"]
        assert first.startswith("rank 1, step 2: ")
        assert "vae1.reconstruction" in first
        assert "vae2.reconstruction" not in first
        one, two = said[1]["volumes"]
        assert second.endswith(f"(sample {said[1]['sample']} of volumes {one} and {two})")
        for rank in (0, 1):
            assert said[rank]["ended"].startswith("2 steps in a row were not finite, the last one ")
            assert "step 5: " in said[rank]["ended"]


def _fill(rank, engines, folder, config):
    from launch.saver import Saver  # noqa: PLC0415  which imports DeepSpeed

    training, run = start(config, engines), RunFolder(folder / "run")
    saver = Saver(training, training.translator, training.critic, run, "catalogue")
    saved = []
    saver.on_sealed = saved.append

    def save():
        training.advance(next(stream))
        saver.save({"skipped": 0})
        saver.seal(wait=True)

    with stream_of(config, rank) as stream:
        save()
        # As a full disk, for this process alone: no file may be longer.
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        if rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, unlimited[1]))
        save()
        save()
        if rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        save()
        if rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, unlimited[1]))
        save()
        save()
        with pytest.raises(checkpoint.CheckpointError, match="3 in a row were not written"):
            save()
        with pytest.raises(checkpoint.CheckpointError, match="the last one was not written"):
            saver.finish()
    assert saved == [1, 4]
    (folder / f"{rank}.json").write_text("done")


def test_a_checkpoint_that_does_not_fit_is_left_out_and_three_in_a_row_end_the_run(store, tmp_path):
    run_together(_fill, tmp_path, small_config(store))
    run = RunFolder(tmp_path / "run")
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["step_00000001", "step_00000004"]
    assert checkpoint.newest(run.checkpoints).step == 4
