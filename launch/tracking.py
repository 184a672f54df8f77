"""What shows a run to people while it goes on: Prometheus, TensorBoard, MLflow, panels.

All of it happens on one thread of rank 0, behind a short queue. A tracker that is slow or fails
costs its own records and a line in the log, never a step; metrics.jsonl, which training itself
writes, has them all.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch.distributed as dist

from launch.run_folder import RunFolder
from pmg.patch_panel import look, write_panel
from pmg.patches import PatchBatch, to_pair
from pmg.training import Training
from pmg.window import window_of

if TYPE_CHECKING:
    from pmg.config import Config

__all__ = ["MlflowTracker", "TensorBoardTracker", "Tracker", "Tracking", "tracking"]

_WAITING = 32  # records; more than that and the trackers have stopped
_CLOSE_S = 20.0
_PATCHES = 2  # of each domain on a panel
_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Something that shows records and pictures; may be slow and may raise."""

    def log(self, record: Mapping[str, Any]) -> None: ...

    def picture(self, step: int, path: Path) -> None: ...

    def close(self) -> None: ...


Start = Callable[[], Tracker]


class Tracking:
    """Hands on what a rank reports; without a folder, on the ranks that report nothing.

    start: by name, what makes each tracker; called on the thread, for a server may let it wait.
    `panel` must be called by all ranks, since ZeRO 3 gathers the model for it.
    """

    def __init__(self, start: Mapping[str, Start], folder: RunFolder | None = None) -> None:
        self._start, self._folder = start, folder
        self._trackers: dict[str, Tracker] = {}
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(_WAITING)
        self._silenced: set[str] = set()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        if folder is not None:
            self._thread.start()

    def log(self, record: Mapping[str, Any]) -> None:
        """Show one record of the metrics."""
        self._enqueue(lambda: self._ask_all(lambda tracker: tracker.log(record)))

    def saved(self, step: int) -> None:
        """A checkpoint has been written."""
        self.log({"step": step, "checkpoint_unix_s": time.time()})

    def panel(self, training: Training, batch: PatchBatch) -> None:
        """Every track.panel_every steps, a picture of what the model makes of this batch."""
        every = training.config.track.panel_every
        if not every or training.step % every:
            return
        with training.translator.whole():
            if self._folder is None:
                return
            pair = to_pair(batch, training.config, training.device)
            window = window_of(training.config.data)
            views = look(training.translating_model, pair, window, _PATCHES)
        step, path = training.step, self._folder.panel(training.step)

        def draw() -> None:
            write_panel(views, path, f"step {step}")
            self._ask_all(lambda tracker: tracker.picture(step, path))

        self._enqueue(draw)

    def close(self) -> None:
        """Give the trackers a moment to end; one that hangs is left behind."""
        if not self._thread.is_alive():
            return
        try:
            self._waiting.put(None, timeout=_CLOSE_S)
        except queue.Full:
            return
        self._thread.join(_CLOSE_S)

    def _enqueue(self, call: Callable[[], None]) -> None:
        if self._folder is None:
            return
        try:
            self._waiting.put_nowait(call)
        except queue.Full:
            self._say_once("queue", "the trackers are behind; records are left out there")

    def _work(self) -> None:
        for name, start in self._start.items():
            try:
                self._trackers[name] = start()
            except ImportError as error:
                self._say_once(name, f"{name}: {error}; pip install 'pmg[tracking]'")
            except Exception as error:  # whatever a server or its client comes up with
                self._say_once(name, f"{name}: {type(error).__name__}: {error}; not used")
        while (call := self._waiting.get()) is not None:
            try:
                call()
            except Exception as error:
                self._say_once("panel", f"panel: {type(error).__name__}: {error}")
        self._ask_all(lambda tracker: tracker.close())

    def _ask_all(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in self._trackers.items():
            try:
                call(tracker)
            except Exception as error:
                self._say_once(name, f"{name}: {type(error).__name__}: {error}; training goes on")

    def _say_once(self, what: str, text: str) -> None:
        if what not in self._silenced:
            self._silenced.add(what)
            _log.warning("%s", text)


class TensorBoardTracker:
    """The run's tensorboard folder. first_step: later records of an earlier attempt are void."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  an extra

        self._writer: Any = SummaryWriter(str(folder), purge_step=first_step + 1)

    def log(self, record: Mapping[str, Any]) -> None:
        for name, value in _figures(record):
            self._writer.add_scalar(name.replace(".", "/"), value, record["step"])
        self._writer.flush()

    def picture(self, step: int, path: Path) -> None:
        from matplotlib.image import imread  # noqa: PLC0415

        self._writer.add_image("panel", imread(path), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class MlflowTracker:
    """A run of MLflow's, the same one after a resume: its id is kept in the run's folder."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        # MLflow 3 reports its use to its makers unless told not to.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # A folder needs no server and no database: whoever names one wants it.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.entities import Metric  # noqa: PLC0415  an extra
        from mlflow.tracking import MlflowClient  # noqa: PLC0415

        self._metric = Metric
        self._client: Any = MlflowClient(tracking_uri=config.track.mlflow)
        if folder.mlflow_run.exists():
            self._run = folder.mlflow_run.read_text(encoding="utf-8")
            return
        experiment = self._client.get_experiment_by_name(config.track.experiment)
        number = (
            experiment.experiment_id
            if experiment is not None
            else self._client.create_experiment(config.track.experiment)
        )
        self._run = self._client.create_run(number, run_name=folder.root.name).info.run_id
        for section, fields in config.model_dump(mode="json").items():
            for name, value in fields.items():
                self._client.log_param(self._run, f"{section}.{name}", value)
        folder.mlflow_run.write_text(self._run, encoding="utf-8")

    def log(self, record: Mapping[str, Any]) -> None:
        now = int(1000 * record.get("unix_s", time.time()))
        figures = [self._metric(n, v, now, record["step"]) for n, v in _figures(record)]
        self._client.log_batch(self._run, metrics=figures)

    def picture(self, step: int, path: Path) -> None:
        self._client.log_artifact(self._run, str(path), "panels")

    def close(self) -> None:
        self._client.set_terminated(self._run)


@contextmanager
def tracking(config: Config, folder: RunFolder, first_step: int) -> Iterator[Tracking]:
    """What the configuration asks for, on rank 0; nothing on the other ranks."""
    if dist.get_rank() != 0:
        yield Tracking({})
        return
    one = Tracking(_wanted(config, folder, first_step), folder)
    try:
        yield one
    finally:
        one.close()


def _wanted(config: Config, folder: RunFolder, first_step: int) -> dict[str, Start]:
    from launch.gauges import Gauges  # noqa: PLC0415  the others need no Ray

    wanted: dict[str, Start] = {"Prometheus": lambda: Gauges(folder.root.name)}
    if config.track.tensorboard:
        wanted["TensorBoard"] = lambda: TensorBoardTracker(folder.tensorboard, first_step)
    if config.track.mlflow:
        wanted["MLflow"] = lambda: MlflowTracker(config, folder)
    return wanted


def _figures(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if name not in ("step", "unix_s", "checkpoint_unix_s") and isinstance(value, int | float):
            yield name, float(value)
