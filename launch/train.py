"""Start a training run: `python -m launch.train --config run.yaml`, alone or as a Ray job."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click
import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from rich.console import Console

from launch import checkpoint
from launch.progress import follow
from launch.run_folder import RunFolder
from pmg.config import Config, ConfigError, load_config
from storage.store import Store

__all__ = ["TrainingFailed", "train"]

# The workers exchange tensors by gloo or NCCL, not through Ray's object store.
_OBJECT_STORE_BYTES = 200 * 1024**2


class TrainingFailed(RuntimeError):
    """A run that ended early; the message is the first worker's error."""


def train(config: Config, run: Path, *, console: Console | None = None) -> RunFolder:
    """Train to the last step, or go on from the run folder's newest checkpoint.

    Ctrl-C asks the workers to save and stop after the current steps; a second one ends at once.
    Raises ConfigError before anything is started if the store does not fit, TrainingFailed with
    the cause if the workers died more often than launch.max_failures.
    """
    console = console or Console()
    config = _with_grid(config)
    folder = RunFolder(run.resolve())
    folder.root.mkdir(parents=True, exist_ok=True)
    folder.stop_request.unlink(missing_ok=True)
    folder.config.write_text(config.to_yaml())
    resumed = checkpoint.newest(folder.checkpoints)
    if resumed is not None:
        if checkpoint.read_state(resumed)["step"] >= config.train.steps:
            console.print(f"run {folder.root} has taken its {config.train.steps} steps already")
            return folder
        console.print(f"resuming from {resumed}", soft_wrap=True)
    with _cluster(config):
        trainer = _trainer(config, folder)
        console.print(f"run: {folder.root} (starting {config.launch.workers} workers)")
        fit = _InThread(trainer.fit)
        with _stop_on_interrupt(folder, console):
            follow(folder, config.train.steps, fit.is_alive, console)
        if fit.error is not None:
            raise TrainingFailed(_cause(fit.error)) from fit.error
    return folder


def _with_grid(config: Config) -> Config:
    """The configuration with the store's absolute path and spacing."""
    if config.data.store is None:
        raise ConfigError("config data.store: missing; expected the folder that pmg ingest wrote")
    store = Store.open(config.data.store)
    domains = {row.domain for row in store.rows}
    if domains != {1, 2}:
        raise ConfigError(
            f"config data.store: {config.data.store} holds volumes of domain "
            f"{sorted(domains) or 'none'}; training needs both 1 and 2"
        )
    spacing = store.spacing_mm or store.rows[0].spacing_mm
    data = config.data.model_copy(
        update={"store": config.data.store.resolve(), "spacing_mm": tuple(spacing)}
    )
    return config.model_copy(update={"data": data})


@contextmanager
def _cluster(config: Config) -> Iterator[None]:
    """The cluster at launch.address, the one a Ray job runs in, or a local one for this run."""
    if ray.is_initialized():
        yield
        return
    address = config.launch.address or os.environ.get("RAY_ADDRESS")
    local = {} if address else _local_resources(config)
    ray.init(
        address=address,
        log_to_driver=False,
        logging_level="error",
        **local,
    )
    try:
        yield
    finally:
        ray.shutdown()


def _local_resources(config: Config) -> dict[str, Any]:
    launch = config.launch
    return {
        # As many as asked for, on however few cores: a laptop can run what a cluster will.
        "num_cpus": max(os.cpu_count() or 1, int(launch.workers * launch.cpus_per_worker)),
        "object_store_memory": _OBJECT_STORE_BYTES,
        "dashboard_host": "127.0.0.1",
        "include_dashboard": True,  # without it Ray Train 2.60 warns every second
    }


def _trainer(config: Config, folder: RunFolder) -> TorchTrainer:
    launch = config.launch
    resources = {"CPU": launch.cpus_per_worker}
    if launch.gpus_per_worker:
        resources["GPU"] = launch.gpus_per_worker
    return TorchTrainer(
        _work,
        train_loop_config={"config": config.model_dump(mode="json"), "run": str(folder.root)},
        torch_config=TorchConfig(backend="nccl" if launch.gpus_per_worker else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=launch.workers,
            use_gpu=launch.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=str(folder.root),
            failure_config=ray.train.FailureConfig(max_failures=launch.max_failures),
            worker_runtime_env={"env_vars": _worker_environment(config)},
        ),
    )


def _work(arguments: dict[str, Any]) -> None:
    from launch.worker import train_worker  # noqa: PLC0415  DeepSpeed is for the workers alone

    train_worker(arguments)


def _worker_environment(config: Config) -> dict[str, str]:
    """Threads as granted, and a path to the tools that DeepSpeed compiles its CPU op with."""
    environment = {
        "OMP_NUM_THREADS": str(max(1, int(config.launch.cpus_per_worker))),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    if not config.launch.gpus_per_worker:
        environment["DS_ACCELERATOR"] = "cpu"
    return environment


class _InThread(threading.Thread):
    """A call on another thread, which leaves the main one free for progress and Ctrl-C."""

    def __init__(self, call: Any) -> None:
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
def _stop_on_interrupt(folder: RunFolder, console: Console) -> Iterator[None]:
    def request_stop(signum: int, frame: FrameType | None) -> None:
        if folder.stop_request.exists():
            raise KeyboardInterrupt
        folder.stop_request.touch()
        console.print("stopping: saving a checkpoint first (Ctrl-C again to end at once)")

    before = signal.signal(signal.SIGINT, request_stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        folder.stop_request.unlink(missing_ok=True)


def _cause(error: BaseException) -> str:
    """The innermost error of Ray's wrapping, in one line."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        error = next(iter(failures.values()))
    while getattr(error, "cause", None) is not None:
        error = error.cause  # type: ignore[attr-defined]
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


@click.command()
@click.option("--config", "source", help="a YAML file or the name of a preset")
@click.option("--run", type=click.Path(path_type=Path), required=True, help="folder of the run")
@click.argument("overrides", nargs=-1)
def main(source: str | None, run: Path, overrides: Sequence[str]) -> None:
    """Train on the store at data.store; OVERRIDES are section.field=value."""
    try:
        train(load_config(source, overrides), run)
    except (ValueError, TrainingFailed) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
