"""Trackers that fail, hang or are missing cost a run nothing; panels show what the model makes."""

from __future__ import annotations

import logging
import threading
import time
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
import torch

from launch.run_folder import RunFolder
from launch.tracking import MlflowTracker, TensorBoardTracker, Tracking
from pmg.config import Config
from pmg.model import Translator
from pmg.patch_panel import PatchView, look, tissue_colours, write_panel
from pmg.step import Pair
from pmg.where import Where
from pmg.window import window_of


class Kept:
    """A tracker that keeps what it is given."""

    def __init__(self) -> None:
        self.steps, self.closed = [], False

    def log(self, record) -> None:
        self.steps.append(record["step"])

    def picture(self, step, path) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class Failing(Kept):
    def log(self, record) -> None:
        super().log(record)
        raise ConnectionError("no route to host")


def test_a_failing_tracker_is_said_once_and_the_others_get_every_record(tmp_path, caplog):
    good, bad = Kept(), Failing()

    def missing():
        raise ImportError("No module named 'mlflow'")

    tracking = Tracking(
        {"MLflow": missing, "bad": lambda: bad, "good": lambda: good}, RunFolder(tmp_path)
    )
    with caplog.at_level(logging.WARNING):
        for step in range(5):
            tracking.log({"step": step})
        tracking.close()
    assert good.steps == bad.steps == [0, 1, 2, 3, 4]
    assert good.closed
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if "no route to host" in line] == [
        "bad: ConnectionError: no route to host; training goes on"
    ]
    assert any("pip install 'pmg[tracking]'" in line for line in said)


def test_a_tracker_that_hangs_holds_up_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr("launch.tracking._CLOSE_S", 0.2)
    release = threading.Event()

    class Hanging(Kept):
        def log(self, record) -> None:
            release.wait(60)

    tracking = Tracking({"hanging": Hanging}, RunFolder(tmp_path))
    started = time.thread_time()
    for step in range(1000):  # far more than the queue holds
        tracking.log({"step": step})
    tracking.close()
    assert time.thread_time() - started < 5
    release.set()


def test_ranks_without_a_folder_report_nothing_and_start_no_thread(tmp_path):
    before = threading.active_count()
    tracking = Tracking({"none": Failing})
    tracking.log({"step": 1})
    tracking.close()
    assert threading.active_count() == before


def test_tensorboard_gets_every_term_and_a_resume_voids_what_it_repeats(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first, steps in ((0, (2, 4, 6)), (4, (6, 8))):
        tracker = TensorBoardTracker(tmp_path, first)
        for step in steps:
            tracker.log({"step": step, "unix_s": 1.0, "vae1.kl": step + first / 10})
        tracker.close()
        time.sleep(1.1)  # files are named by the second
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    values = {event.step: event.value for event in events.Scalars("vae1/kl")}
    assert values == pytest.approx({2: 2.0, 4: 4.0, 6: 6.4, 8: 8.4})


def test_mlflow_gets_one_run_over_a_resume(tmp_path):
    pytest.importorskip("mlflow")
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()
    config = Config.model_validate({"track": {"mlflow": f"file:{tmp_path / 'mlruns'}"}})
    for step in (2, 4):
        tracker = MlflowTracker(config, folder)
        tracker.log({"step": step, "unix_s": 1.7e9 + step, "total": float(step)})
        tracker.close()
    (file,) = (tmp_path / "mlruns").glob("*/*/metrics/total")
    assert [line.split()[1:] for line in file.read_text().splitlines()] == [
        ["2.0", "2"],
        ["4.0", "4"],
    ]
    (lr,) = (tmp_path / "mlruns").glob("*/*/params/optim.lr")
    assert lr.read_text() == "0.0001"


def test_a_view_is_of_the_first_patches_of_both_domains_through_the_model_and_back():
    config = Config.model_validate(
        {
            "data": {"patch": (32, 32)},
            "model": {"width": 4, "blocks": 1, "latent_channels": 16},
            "discriminator": {"width": 4, "layers": 2, "scales": 1},
            "prior": {"components": 3},
            "translate": {"tile": (32, 32)},
        }
    )
    window = window_of(config.data)
    torch.manual_seed(0)
    hu = {i: torch.full((3, 1, 32, 32), 40.0 * i) + 5 * torch.randn(3, 1, 32, 32) for i in (1, 2)}
    where = Where(torch.zeros(3, 3), (3.0, 1.5, 1.5))
    pair = Pair(
        {i: window.to_unit(hu[i]) for i in (1, 2)},
        {1: where, 2: where},
        torch.zeros(4, 3, 16, 8, 8),
    )
    views = look(Translator(config), pair, window, count=2)
    assert [view.domain for view in views] == [1, 1, 2, 2]
    assert np.allclose(views[1].source, hu[1][1, 0].numpy(), atol=0.5)
    # The linear path makes a fresh model the identity, there and back.
    assert np.allclose(views[0].translation, views[0].source, atol=2)
    assert np.allclose(views[0].cycle, views[0].source, atol=4)
    assert views[0].shares.shape == (3, 8, 8)
    assert np.allclose(views[0].shares.sum(axis=0), 1, atol=1e-5)


def test_a_panel_shows_each_picture_in_its_place(tmp_path):
    dark, bright = np.full((8, 8), -140.0), np.full((8, 8), 260.0)
    shares = np.zeros((2, 2, 2))
    shares[0, :, 0] = shares[1, :, 1] = 1
    view = PatchView(1, dark, bright, dark, shares)
    write_panel([view], tmp_path / "panels" / "p.png", "step 4")
    image = matplotlib.image.imread(tmp_path / "panels" / "p.png")[..., :3]
    middle = image[int(0.6 * len(image))]
    fields = np.array_split(middle[int(0.05 * len(middle)) :], 4)
    source, translation, cycle = (np.median(field, axis=0) for field in fields[:3])
    assert np.allclose(source, 0, atol=0.05)
    assert np.allclose(translation, 1, atol=0.05)
    assert np.allclose(cycle, 0, atol=0.05)
    palette = tissue_colours(shares)[0]
    for colour in palette:
        assert (np.abs(fields[3] - colour).max(axis=1) < 0.03).any()


def test_a_mixed_responsibility_has_a_mixed_colour():
    shares = np.array([[[1.0, 0.5, 0.0]], [[0.0, 0.5, 1.0]]])
    first, mixed, second = tissue_colours(shares)[0]
    assert np.allclose(mixed, (first + second) / 2)
    assert not np.allclose(first, second)


def test_a_panel_is_due_every_so_many_steps_and_is_drawn_on_the_thread(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("launch.tracking.look", lambda *_: "views")
    monkeypatch.setattr("launch.tracking.to_pair", lambda *_: None)
    monkeypatch.setattr(
        "launch.tracking.write_panel",
        lambda views, path, title: drawn.append((path.name, threading.current_thread().name)),
    )
    config = Config.model_validate({"track": {"panel_every": 3}})

    class Whole:
        def whole(self):
            return memoryview(b"")  # a context that does nothing

    tracking = Tracking({}, RunFolder(tmp_path))
    for step in range(1, 8):
        training = SimpleNamespace(
            config=config, step=step, translator=Whole(), translating_model=None, device="cpu"
        )
        tracking.panel(training, None)
    tracking.close()
    assert drawn == [("step_00000003.png", "tracking"), ("step_00000006.png", "tracking")]
