"""One run of `benchmarks.fidelity`: train a contender in this process, translate, measure.

The run is a folder: config.yaml and model.safetensors as `pmg train` writes them, losses.csv,
crops.npz for the figure, and result.json, which is written last: where it is, the run is finished.
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pmg.arrays import HU
from pmg.cases import Case, Truth, find_cases, read_truth
from pmg.config import Config, load_config
from pmg.cost import cost_of
from pmg.evaluate import CaseResult, measure
from pmg.histogram import match_histogram
from pmg.patches import on_device
from pmg.plaques import Plaque
from pmg.summary import summarise
from pmg.targets import read_targets
from pmg.training import Training, averaged_copy, build_modules, torch_engines
from pmg.translate import VolumeTranslator
from pmg.weights import save_translator
from storage.body import body_mask
from storage.grid import canonical
from storage.nifti import read_nifti
from storage.series import find_sources, read_source
from storage.store import Store
from storage.stream import open_stream
from storage.volume import Volume

__all__ = [
    "CROPS",
    "RESULT",
    "Cohort",
    "is_finished",
    "read_result",
    "run_contender",
    "run_untrained",
]

RESULT = "result.json"
CROPS = "crops.npz"
_LOG_EVERY = 50
_CROP_MM = 56.0
_SHOWN = ((1.5, 0), (2.5, 1), (3.5, 2))  # a plaque of about so many mm, in the n-th case


@dataclass(frozen=True)
class Cohort:
    """Where the training store and the test cases lie."""

    store: Path
    cases: Path

    def sources(self) -> Iterator[tuple[Case, Volume]]:
        """Every test case and its series, on canonical axes."""
        for case in find_cases(self.cases):
            (source,), _ = find_sources(case.source)
            yield case, canonical(read_source(source)[0])


def read_result(run: Path) -> dict[str, Any] | None:
    """`facts` and `figures` of a finished run, None of another."""
    path = run / RESULT
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def is_finished(run: Path, config: Config) -> bool:
    """Whether the run is finished and was one with these settings, wherever its store lies."""
    if not (run / RESULT).is_file():
        return False
    there = load_config(run / "config.yaml")
    place = {"store": there.data.store, "spacing_mm": there.data.spacing_mm}
    data = config.data.model_copy(update=place)
    return bool(there == config.model_copy(update={"data": data}))


def run_contender(cohort: Cohort, config: Config, run: Path) -> None:
    """Train with this configuration on one thread or the GPU, and measure on all cases."""
    run.mkdir(parents=True, exist_ok=True)
    (run / RESULT).unlink(missing_ok=True)  # of other settings
    store = Store.open(cohort.store)
    found = {"store": str(cohort.store), "spacing_mm": tuple(store.rows.get(0, "spacing_mm")[0])}
    config = config.model_copy(update={"data": config.data.model_copy(update=found)})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wall, cpu = time.monotonic(), time.process_time()
    training = _train(config, store, run, device)
    facts = {
        "steps": config.train.steps,
        "voxels": config.train.steps * config.train.batch * math.prod(config.data.patch),
        "train_s": time.monotonic() - wall,
        "train_cpu_s": time.process_time() - cpu,
        "cost": str(cost_of(config)),
    }
    save_translator(training.translating_model, config, run)
    translator = VolumeTranslator.open(run, 1, device.type)
    results, crops = [], {}
    for number, (case, source) in enumerate(cohort.sources()):
        translated = translator.translate(source)
        results.append(measure(case, source, {"translated": translated}))
        crops |= _crops(number, case, source, translated.hu)
    np.savez_compressed(run / CROPS, **crops)
    facts["evaluate_s"] = time.monotonic() - wall - facts["train_s"]
    _finish(run, {"facts": facts, "figures": _figures(results, "translated")})


def run_untrained(cohort: Cohort, out: Path) -> None:
    """What needs no training, a run each: the source, its histogram matched, and the source's noise
    upon the truth, which is the best that a translation reaches that leaves noise alone.
    """
    spacing_mm = tuple(Store.open(cohort.store).rows.get(0, "spacing_mm")[0])
    real = read_targets(str(cohort.store), 2, spacing_mm)
    results: dict[str, list[CaseResult]] = {"identity": [], "histogram": [], "noise": []}
    crops: dict[str, dict[str, HU]] = {name: {} for name in (*results, "truth")}
    for number, (case, source) in enumerate(cohort.sources()):
        assert case.truth is not None
        truth = read_truth(case.truth, source)
        bare = canonical(read_nifti(case.truth / "source.nii.gz"))
        hu: dict[str, HU] = {
            "identity": source.hu,
            "histogram": match_histogram(source.hu, body_mask(source), real.histogram),
            "noise": truth.target + (source.hu.astype(np.float32) - bare.hu),
        }
        for name, values in hu.items():
            candidate = replace(source, hu=values)
            results[name].append(measure(case, source, {"translated": candidate}))
        for name, values in (hu | {"truth": truth.target}).items():
            crops[name] |= _crops(number, case, source, values)
    for name, some in crops.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        np.savez_compressed(out / name / CROPS, **some)  # type: ignore[arg-type]
    for name, measured in results.items():
        _finish(out / name, {"facts": {"steps": 0}, "figures": _figures(measured, "translated")})


def _train(config: Config, store: Store, run: Path, device: torch.device) -> Training:
    translator, critic = (module.to(device) for module in build_modules(config))
    averaged = averaged_copy(translator, config)
    engines = torch_engines(translator, critic, config)
    training = Training(config, *engines, device=device, averaged=averaged)
    stream = open_stream(
        store,
        config.data,
        seed=config.train.seed,
        rank=0,
        world_size=1,
        global_batch=config.train.batch,
    )
    with (
        stream,
        closing(on_device(stream, device)) as batches,
        (run / "losses.csv").open("w", newline="", encoding="utf-8") as file,
    ):
        table, sums = csv.writer(file), {}
        while training.step < config.train.steps:
            for name, value in training.advance(next(batches)).terms.items():
                sums[name] = sums[name] + value if name in sums else value
            if training.step % _LOG_EVERY == 0:
                if training.step == _LOG_EVERY:
                    table.writerow(["step", "cpu_s", *sums])
                means = [f"{value.item() / _LOG_EVERY:.4g}" for value in sums.values()]
                table.writerow([training.step, f"{time.process_time():.1f}", *means])
                file.flush()
                sums = {}
    return training


def _figures(results: list[CaseResult], name: str) -> Mapping[str, Any]:
    rows = ((row, getattr(row, name)) for row in summarise(results))
    return {
        row.name: {"value": value.value, "unit": row.unit, "note": row.note}
        for row, value in rows
        if value is not None
    }


def _crops(number: int, case: Case, source: Volume, hu: HU) -> dict[str, NDArray[np.int16]]:
    """A square round one plaque of the case, by its title, if the case is one of those shown."""
    crops = {}
    for diameter_mm, shown in _SHOWN:
        if shown != number or case.truth is None:
            continue
        plaque = _nearest(read_truth(case.truth, source), diameter_mm)
        z, y, x = (round(i) for i in plaque.centre)
        half = round(0.5 * _CROP_MM / source.spacing_mm[1])
        square = hu[z, max(y - half, 0) : y + half, max(x - half, 0) : x + half]
        crops[f"{case.name}, {plaque.diameter_mm:.1f} mm"] = square.astype(np.int16)
    return crops


def _nearest(truth: Truth, diameter_mm: float) -> Plaque:
    """Of the plaques whose centre the scan shows the one of the nearest size."""
    slices = len(truth.target)
    inside = [plaque for plaque in truth.plaques if 0 <= round(plaque.centre[0]) < slices]
    return min(inside, key=lambda plaque: abs(plaque.diameter_mm - diameter_mm))


def _finish(run: Path, result: Mapping[str, Any]) -> None:
    partial = run / f".{RESULT}.partial"
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.rename(run / RESULT)
