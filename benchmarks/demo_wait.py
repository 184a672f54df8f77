"""Share of a training step's time in which it waits for its data, with the demo's networks."""

from __future__ import annotations

import time
from contextlib import closing

import torch

from benchmarks.cohort import Cohort
from pmg.config import load_config
from pmg.patches import on_device
from pmg.training import Training, build_modules, torch_engines
from storage.store import Store
from storage.stream import open_stream

__all__ = ["report_wait"]

_STEPS, _WARM_UP = 40, 5


def report_wait(cohort: Cohort) -> None:
    """Steps of the `demo` preset in this process, its patches read from disk: see `Meter`."""
    config = load_config("demo", data={"memory_bytes": 0, "threads": 1})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    modules = [module.to(device) for module in build_modules(config)]
    training = Training(config, *torch_engines(*modules, config), device=device)
    with (
        open_stream(
            Store.open(cohort.folder / "store"),
            config.data,
            seed=0,
            rank=0,
            world_size=1,
            global_batch=config.train.batch,
        ) as stream,
        closing(on_device(stream, device)) as batches,
    ):
        waited = 0.0
        for step in range(_WARM_UP + _STEPS):
            if step == _WARM_UP:
                waited, began = 0.0, time.perf_counter()
            before = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - before
            training.advance(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    print("## Waiting for data\n")
    print(
        f"- demo preset on {device}, batch {config.train.batch} of {config.data.patch}: "
        f"{_STEPS / seconds:.1f} steps/s, {waited / seconds:.2%} of the time waiting "
        "(asked: less than 2 %)\n"
    )
