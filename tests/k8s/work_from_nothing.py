"""A job that asks a cluster without a worker for work, and prints which nodes it got, as JSON.

The program's own ways of asking: `launch.ingest`'s actors, and a trial as `tune` starts it, Ray
Train's group of workers within Ray Tune. What they then do takes a moment.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import ray
import ray.train
import ray.tune
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from launch import room
from launch.ingest import RayWorkers
from storage.errors import IngestError
from tune.capacity import CapacityError, make_room_for_trials, trials_at_once
from tune.config import ResourcesConfig
from tune.search import _DRIVER


def groups() -> list[str]:
    """Of the nodes that live, without the head."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return sorted(node["Labels"]["group"] for node in nodes if "group" in node["Labels"])


def ingest(memory_bytes: int) -> dict[str, object]:
    try:
        workers = RayWorkers(2, memory_bytes)
    except IngestError as error:
        return {"refused": str(error)}
    done = [one.result for one in workers.map(len, ["a", "bc", "def"])]
    return {"results": sorted(done), "groups": groups()}


def trial(took: ResourcesConfig, folder: str) -> dict[str, object]:
    try:
        make_room_for_trials(took)
        at_once = trials_at_once(room.living_nodes(), took)
    except CapacityError as error:
        return {"refused": str(error)}

    def work() -> None:
        node = ray.get_runtime_context().get_node_id()
        labels = next(one["Labels"] for one in ray.nodes() if one["NodeID"] == node)
        Path(folder, "ran_on").write_text(labels["group"])

    def start(_: dict[str, object]) -> None:
        DataParallelTrainer(
            work,
            scaling_config=ray.train.ScalingConfig(
                num_workers=took.workers,
                use_gpu=True,
                resources_per_worker={"CPU": took.cpus_per_worker, "GPU": took.gpus_per_worker},
            ),
            run_config=ray.train.RunConfig(storage_path=folder),
        ).fit()

    ray.tune.Tuner(
        ray.tune.with_resources(start, _DRIVER),
        run_config=ray.tune.RunConfig(storage_path=folder),
    ).fit()
    return {"at_once": at_once, "ran_on": Path(folder, "ran_on").read_text(), "groups": groups()}


def left(limit_s: float) -> list[str]:
    """The groups whose nodes are still there when none should be."""
    end = time.monotonic() + limit_s
    while groups() and time.monotonic() < end:
        time.sleep(1)
    return groups()


if __name__ == "__main__":
    took = ResourcesConfig.model_validate_json(sys.argv[1])
    ray.init(log_to_driver=False, logging_level="error")
    told = {"before": groups(), "too_much": ingest(1 << 50)}
    told["ingest"] = ingest(1 << 30)
    told["too_many"] = trial(took.model_copy(update={"workers": 1000}), sys.argv[2])
    room._PATIENCE_S = 10  # not minutes, for a second GPU
    told["trial"] = trial(took, sys.argv[2])
    told["left"] = left(limit_s=240)
    print("TOLD", json.dumps(told))
