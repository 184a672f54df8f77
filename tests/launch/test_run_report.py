"""A run's folder as somebody reads it who was not there."""

from __future__ import annotations

import base64
import re

import matplotlib.image
import numpy as np
import pytest
from small_run import small_config

from launch.run_folder import RunFolder
from launch.run_report import write_guide, write_run_report
from pmg.patch_panel import PatchView, write_panel


@pytest.fixture
def run(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path / "liver")
    folder.root.mkdir()
    return folder


def record(step: int) -> dict[str, float]:
    terms = ("vae{}.reconstruction", "vae{}.kl", "cycle{}.reconstruction", "gan{}.generator")
    values = {t.format(i): 1 / step for t in (*terms, "gan{}.discriminator") for i in (1, 2)}
    rates = {"steps_per_s": 2.0, "images_per_s": 16.0, "data_wait": 0.25}
    return {
        **{"step": step, "unix_s": 1_700_000_000.0 + step, "memory_bytes": 3 << 29},
        **{"prior.effective_components": 2.5},
        **rates,
        **values,
    }


def test_the_guide_names_every_place_of_the_folder_and_how_to_go_on(run):
    write_guide(run, small_config("s3://bucket/store"), "Architecture pmg: 1 k parameters.")
    text = run.guide.read_text()
    places = (
        *(run.config, run.environment, run.metrics, run.checkpoints, run.model, run.report),
        *(run.failure, run.panel(0).parent, run.log(0).parent),
    )
    for place in places:
        assert f"`{place.name}" in text
    assert "Store: s3://bucket/store. 12 steps of 4 patch pairs, seed 3" in text
    assert "pmg train --run liver --config liver/config.yaml" in text
    assert "{" not in text


def test_the_report_has_the_last_history_the_starts_and_the_newest_panel(run):
    for step in (2, 4, 6, 4, 6, 8):  # resumed once
        run.append_metrics(record(step))
    run.add_start({"started_unix_s": 1_700_000_000.0, "from_step": 0, "backend": "gloo"})
    run.add_start({"started_unix_s": 1_700_000_100.0, "from_step": 2, "backend": "gloo"})
    for step in (4, 8):
        grey = np.full((8, 8), 10.0 * step)
        write_panel([PatchView(1, grey, grey, grey, np.ones((1, 2, 2)))], run.panel(step), "x")
    write_run_report(run, small_config("s3://bucket/store"))
    page = run.report.read_text()
    assert "8 of 12" in page
    assert "2023-11-14 22:13:20 UTC" in page
    assert "1.50 GiB" in page
    assert page.count("from_step") == 2
    losses, panel = re.findall(r"base64,([^\"]+)", page)
    assert base64.b64decode(panel) == run.panel(8).read_bytes()
    (run.root / "losses.png").write_bytes(base64.b64decode(losses))
    assert matplotlib.image.imread(run.root / "losses.png").std() > 0.05


def test_a_run_without_records_has_no_report(run):
    write_run_report(run, small_config("s3://bucket/store"))
    assert not run.report.exists()
