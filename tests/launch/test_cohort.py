"""Whole cohorts by real Ray actors: translated and measured, resumed, and no failure fatal."""

from __future__ import annotations

import csv
import io
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import pytest
from rich.console import Console
from small_run import small_config

from launch.cluster import cluster
from launch.cohort import Share, over_cluster
from launch.evaluate import evaluate_on_cluster
from launch.translate import translate_on_cluster
from pmg.config import LaunchConfig
from pmg.training import build_modules
from pmg.weights import save_translator

sys.path.append(str(Path(__file__).parents[1] / "storage"))
from make_cohort import body_hu, write_dicom

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SHARE = Share(workers=2, memory_bytes=1 << 29)
# What a test defines cannot be imported by an actor; Python's own functions can.
EVALUATE = partial(partial, eval)


@pytest.fixture(scope="module", autouse=True)
def ray_cluster():
    with cluster(LaunchConfig(workers=2)):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A model as a run leaves it, untrained."""
    folder = tmp_path_factory.mktemp("run")
    save(folder, seed=3)
    return folder


def save(folder: Path, seed: int) -> None:
    config = small_config("s3://none/none", train={"seed": seed})
    data = config.data.model_copy(update={"spacing_mm": (3.0, 2.0, 2.0), "store": None})
    config = config.model_copy(update={"data": data})
    save_translator(build_modules(config)[0], config, folder / "model")


def quiet() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=100), file


def test_an_item_that_fails_or_ends_its_process_is_told_and_the_others_go_on():
    items = ["1 + 1", "1 / 0", "__import__('os')._exit(3)", "2 + 2"]
    outcomes = {one.index: one for one in over_cluster(EVALUATE, items, SHARE)}
    assert [outcomes[n].result for n in (0, 3)] == [2, 4]
    assert outcomes[1].failure == "ZeroDivisionError: division by zero"
    assert outcomes[2].failure.startswith("its process died")


def test_a_share_that_no_node_has_is_refused_with_what_there_is():
    with pytest.raises(ValueError, match=r"0 GPUs .* one worker needs 1, 2 and"):
        list(over_cluster(EVALUATE, ["1"], Share(gpus=2)))


def test_a_cohort_is_translated_once_and_a_broken_series_costs_only_itself(run, tmp_path):
    sources, out, key = tmp_path / "in", tmp_path / "out", tmp_path / "key"
    for number in range(3):
        write_dicom(
            sources / f"ct{number}", body_hu((12, 48, 56), number), patient=f"Smith{number}"
        )
    (sources / "ct1" / "slice_005.dcm").unlink()

    def translate(**more):
        console, said = quiet()
        outcomes = translate_on_cluster(
            run, sources, out, key_path=key, share=SHARE, console=console, **more
        )
        return outcomes, said.getvalue()

    outcomes, said = translate()
    assert sum(one.failure is None for one in outcomes) == 2
    (failed,) = (one.failure for one in outcomes if one.failure)
    assert "failed  " in said
    assert failed in said
    places = sorted(folder for folder in out.iterdir() if folder.is_dir())
    assert len(places) == 2
    for place in places:
        first = pydicom.dcmread(next((place / "dicom").iterdir()))
        assert "Smith" not in str(first)
        assert (place / "image.nii.gz").is_file()
    verdicts = [row[1] for row in csv.reader((out / "translate-report.csv").open())]
    assert sorted(verdicts) == ["failed", "translated", "translated"]
    assert not list(out.glob(".*"))

    written = {place: (place / "done.json").stat().st_mtime_ns for place in places}
    again, said = translate()
    assert "3 series, 2 of them done" in said
    assert [one.failure for one in again] == [failed]
    assert written == {p: (p / "done.json").stat().st_mtime_ns for p in places}
    (places[0] / "done.json").unlink()  # as after a crash
    assert len(translate()[0]) == 2
    assert is_complete(places[0])


def is_complete(place: Path) -> bool:
    return "by" in json.loads((place / "done.json").read_text())


def test_another_model_or_key_translates_anew_or_is_refused(run, tmp_path):
    sources, out = tmp_path / "in", tmp_path / "out"
    write_dicom(sources / "ct", body_hu((12, 48, 56), 1))
    (tmp_path / "other").mkdir()
    save(tmp_path / "other", seed=4)
    console, _ = quiet()
    for model in (run, tmp_path / "other"):
        (outcome,) = translate_on_cluster(
            model, sources, out, key_path=tmp_path / "key", share=SHARE, console=console
        )
        assert outcome.failure is None
    assert len([folder for folder in out.iterdir() if folder.is_dir()]) == 1


def test_a_stores_volumes_are_measured_once_into_one_report(run, store, tmp_path):
    out = tmp_path / "out"

    def evaluate():
        console, said = quiet()
        rows, failed = evaluate_on_cluster(run, out, store=str(store), share=SHARE, console=console)
        assert failed == 0
        return rows, said.getvalue()

    rows, said = evaluate()
    assert "[2/2" in said
    by_name = {row.name: row for row in rows}
    assert by_name["cycle error"].translated.subjects == 2
    assert by_name["gradient correlation with the source"].identity.value == pytest.approx(1)
    assert {"ct-1-1", "ct-1-2"} == {
        row["case"] for row in csv.DictReader((out / "cases.csv").open())
    }
    assert (out / "report.html").stat().st_size > 10_000
    again, said = evaluate()
    assert "2 to evaluate, 2 of them done" in said
    assert again == rows
    assert np.isfinite(by_name["cycle error"].translated.value)
