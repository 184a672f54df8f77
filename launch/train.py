"""Start a training run: `python -m launch.train --config run.yaml`, alone or as a Ray job."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click
import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from rich.console import Console

from launch import checkpoint
from launch.cluster import cluster
from launch.entry import enter
from launch.failure import EndForGood, cause
from launch.progress import follow
from launch.run_folder import MetricsTail, RunBusy, RunFolder
from pmg.config import Config, ConfigError, LaunchConfig, load_config
from pmg.cost import cost_of
from storage.place import Place
from storage.store import Store
from storage.stream import open_stream

if TYPE_CHECKING:
    from launch.worker import Observer

__all__ = ["InThread", "Stopped", "TrainingFailed", "train", "trainer", "with_store"]


class Stopped(KeyboardInterrupt):
    """A run that was asked to stop. code: what shells expect of a program that this signal ended,
    130 for Ctrl-C and 143 for SIGTERM."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.strsignal(signum))
        self.code = 128 + signum


class TrainingFailed(RuntimeError):
    """A run that ended early; the message is the error that ended it, and where to read more."""


def train(
    config: Config, run: Path, *, console: Console | None = None, force: bool = False
) -> RunFolder:
    """Train to the last step, or go on from the run folder's newest checkpoint.

    Ctrl-C, or SIGTERM as a scheduler sends it before it takes a machine away, asks the workers to
    save and stop after the current steps, then raises Stopped, a KeyboardInterrupt; before the
    first step, and the second time, it does so at once.

    With `force` it also goes on from checkpoints that other settings or another catalogue wrote.

    Raises before anything is started ConfigError and StoreError if the store does not fit,
    CheckpointError if the folder's checkpoints are of another run, RunBusy if another process
    trains there; and TrainingFailed when an error came that no restart cures, or the workers died
    more often than launch.max_failures.
    """
    # Late, for a search's trials import this module too, each in a process that needs no figures.
    from launch.run_report import write_guide, write_run_report  # noqa: PLC0415

    console = console or Console()
    config, catalogue = with_store(config)
    folder = RunFolder(run.resolve())
    folder.root.mkdir(parents=True, exist_ok=True)
    with folder.locked():
        found = checkpoint.newest(checkpoint.place_of(config, folder))
        if found is not None:
            if not force:
                checkpoint.refuse_other(found, checkpoint.identity(config, catalogue))
            if found.step >= config.train.steps:
                console.print(f"run {folder.root}: {found.step} steps are done", soft_wrap=True)
                return folder
            console.print(f"resuming from {found}", soft_wrap=True)
        for stale in (folder.stop_request, folder.failure):
            stale.unlink(missing_ok=True)
        folder.config.write_text(config.to_yaml(), encoding="utf-8")
        cost = cost_of(config)
        write_guide(folder, config, f"Architecture {config.model.architecture}: {cost}.")
        console.print(f"model: {cost}", soft_wrap=True)
        console.print(
            f"run {folder.root}: starting {config.launch.workers} workers", soft_wrap=True
        )
        with cluster(config.launch):
            try:
                _fit(config, folder, console, force=force)
            finally:
                write_run_report(folder, config)
    return folder


def _fit(config: Config, folder: RunFolder, console: Console, *, force: bool) -> None:
    """Run the workers to their end, showing what they report."""
    nodes = sum(node["Alive"] for node in ray.nodes())
    console.print(
        f"{_backend(config)} between the workers, {nodes} {'node' if nodes == 1 else 'nodes'}"
    )
    tail = MetricsTail(folder)
    fit = InThread(trainer(config, folder, force=force).fit)
    with _stop_on_interrupt(folder, tail, console):
        follow(tail.new, config.train.steps, fit.is_alive, console)
        told = (
            folder.stop_request.read_text(encoding="utf-8")
            if folder.stop_request.exists()
            else None
        )
    if folder.failure.exists():
        # The cause in its first line, then the worker's traceback.
        text = folder.failure.read_text(encoding="utf-8").rstrip()
        raise TrainingFailed(f"{text}\n\nthe same is in {folder.failure}")
    if fit.error is not None:
        raise TrainingFailed(
            f"{cause(fit.error)}\nthe workers' logs are in {folder.log(0).parent}"
        ) from fit.error
    if told is not None:
        console.print("stopped; the same command goes on from the checkpoint")
        raise Stopped(int(told or signal.SIGINT))


def with_store(config: Config) -> tuple[Config, str]:
    """The configuration with the store's absolute address and spacing, and the store's digest."""
    data = config.data
    if data.store is None:
        raise ConfigError("config data.store: missing; expected the store that pmg ingest wrote")
    store = Store.open(data.store)
    domains = set(store.rows.column("domain").tolist())
    if domains != {1, 2}:
        raise ConfigError(
            f"config data.store: {data.store} holds volumes of domain "
            f"{sorted(domains) or 'none'}; training needs both 1 and 2"
        )
    # Opened to be refused here, where no pair of patches can be drawn, and not by every worker.
    open_stream(
        store, data, seed=config.train.seed, rank=0, world_size=1, global_batch=config.train.batch
    ).close()
    spacing = store.spacing_mm or store.rows.get(0, "spacing_mm")[0]
    found = {"store": store.place.address, "spacing_mm": tuple(spacing)}
    data, train = data.model_copy(update=found), config.train
    if train.checkpoints is not None:
        lie = {"checkpoints": Place.of(train.checkpoints).address}
        train = train.model_copy(update=lie)
    return config.model_copy(update={"data": data, "train": train}), store.digest


def trainer(
    config: Config, folder: RunFolder, observer: Observer | None = None, *, force: bool = False
) -> TorchTrainer:
    """Ray Train's trainer of a run whose folder holds its configuration; `fit` starts workers.

    config: as `with_store` gives it.
    """
    launch = config.launch
    # Ray looks after its workers every 2 s else, of which a killed one costs half; sent along with
    # the run to whatever cluster it uses.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
    if isinstance(_workers(launch), tuple):
        # After a node's death Ray counts its room for a while, and waits 60 s for that to come.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    resources = {"CPU": launch.cpus_per_worker}
    if launch.gpus_per_worker:
        resources["GPU"] = launch.gpus_per_worker
    return TorchTrainer(
        enter,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "run": str(folder.root),
            "observer": observer,
            "force": force,
            "asked_unix_s": time.time(),
        },
        torch_config=TorchConfig(backend=_backend(config)),
        scaling_config=ray.train.ScalingConfig(
            num_workers=_workers(launch),
            use_gpu=launch.gpus_per_worker > 0,
            resources_per_worker=resources,
            placement_strategy=launch.placement,
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=str(folder.root),
            failure_config=ray.train.FailureConfig(max_failures=launch.max_failures),
            callbacks=[EndForGood(folder)],
        ),
    )


def _workers(launch: LaunchConfig) -> int | tuple[int, int]:
    """As many as asked for, or the fewest and the most between which Ray chooses by what is free.

    It starts the group anew, from the newest checkpoint, when it loses a node or gains one.
    """
    fewest = launch.workers if launch.min_workers is None else launch.min_workers
    return launch.workers if fewest == launch.workers else (fewest, launch.workers)


def _backend(config: Config) -> str:
    """NCCL knows GPUs only."""
    return "nccl" if config.launch.gpus_per_worker else "gloo"


class InThread(threading.Thread):
    """A call on another thread, which leaves this one free for progress and Ctrl-C."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self.error = error


@contextmanager
def _stop_on_interrupt(folder: RunFolder, tail: MetricsTail, console: Console) -> Iterator[None]:
    def request_stop(signum: int, frame: FrameType | None) -> None:
        if folder.stop_request.exists() or tail.empty:  # told twice, or nothing to save
            raise Stopped(signum)
        folder.stop_request.write_text(str(signum), encoding="utf-8")
        console.print("stopping: saving a checkpoint first (Ctrl-C again to end at once)")

    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    before = {s: signal.signal(s, request_stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        folder.stop_request.unlink(missing_ok=True)


@click.command()
@click.option("--config", "source", help="a YAML file or the name of a preset")
@click.option("--run", type=click.Path(path_type=Path), required=True, help="folder of the run")
@click.option("--force", is_flag=True, help="go on from checkpoints of other settings or data")
@click.argument("overrides", nargs=-1)
def main(source: str | None, run: Path, force: bool, overrides: Sequence[str]) -> None:
    """Train on the store at data.store; OVERRIDES are section.field=value.

    Ends with 0 when all steps are taken, 1 when it failed, 130 when Ctrl-C stopped it and 143 when
    SIGTERM did.
    """
    try:
        train(load_config(source, overrides), run, force=force)
    except Stopped as stopped:
        sys.exit(stopped.code)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except (ValueError, OSError, TrainingFailed, RunBusy) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
