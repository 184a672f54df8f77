"""What Ray and DeepSpeed cost beside DDP: the same workers, store and step, started three ways.

    python -m benchmarks.overhead [--rounds 3] [--steps 80] [--skip 20] [--width 24] [--zero 1]
                                  [--engines ddp deepspeed ray] [--workers 2] [--start]
                                  [--out results.json]

`ddp` is torchrun with DistributedDataParallel, `deepspeed` torchrun with this program's DeepSpeed
engine, `ray` is `python -m launch.train`. They take turns, in an order that moves from round to
round. Images a second is wall time in steady state, from step `skip` on, the median over rounds; on
a machine that others use too, compare the CPU seconds a step, of all workers together, as well.

--start also measures the time from `pmg submit` to the first step, part by part, on a cluster of
its own with token authentication.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.cohort import make_cohort
from benchmarks.head import head_node
from launch.run_folder import RunFolder
from pmg.config import Config

__all__ = ["WORKERS", "config_of", "workers_of"]

WORKERS = 2
NAMES = {
    "ddp": "torchrun, DDP",
    "deepspeed": "torchrun, DeepSpeed ZeRO {zero}",
    "ray": "Ray, DeepSpeed ZeRO {zero}",
}


def config_of(store: Path, width: int, zero: int, steps: int, workers: int = WORKERS) -> Config:
    """A 2D model whose step takes some tenths of a second on a core."""
    return Config.model_validate(
        {
            "data": {"store": str(store), "patch": (64, 64), "threads": 1},
            "model": {"width": width, "blocks": 2},
            "discriminator": {"width": width, "layers": 3, "scales": 2},
            "prior": {"fit_step": 0, "reseed_every": 0},
            "optim": {"ema": 0.999},
            "train": {"steps": steps, "batch": 4, "log_every": 5, "checkpoint_every": 100_000},
            "launch": {"workers": workers, "zero_stage": zero},
            "track": {"panel_every": 0},
            "translate": {"tile": (64, 64)},
        }
    )


def under_torchrun(
    engine: str, config: Path, workers: int, steps: int, skip: int, out: Path
) -> dict[str, Any]:
    """The figures of `benchmarks.ranks`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(workers), "-m", "benchmarks.ranks", "--engine", engine]
    command += ["--config", str(config), "--steps", str(steps), "--skip", str(skip)]
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
    figures: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return figures


def under_ray(config: Path, workers: int, skip: int, run: Path) -> dict[str, Any]:
    """Of `launch.train`, from what it logs and from its workers' processes."""
    command = [sys.executable, "-m", "launch.train", "--config", str(config), "--run", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    folder = RunFolder(run)
    used: list[tuple[int, float]] = []  # step, CPU seconds of all workers
    found: list[psutil.Process] = []
    while process.poll() is None:
        time.sleep(1)  # seldom, and without a look at all processes: the workers need both cores
        if len(found) < workers:
            found = workers_of(process.pid)
        if last := list(folder.read_metrics())[-1:]:
            used.append((last[0]["step"], sum(map(_cpu_seconds, found))))
    if process.returncode:
        raise RuntimeError(process.stderr.read().decode() if process.stderr else "")
    records = [record for record in folder.read_metrics() if record["step"] > skip]
    seconds = sum((r["step"] - p) / r["steps_per_s"] for p, r in _spans(records, skip))
    steady = [(step, cpu) for step, cpu in used if step >= skip and cpu]
    (first, before), (last_step, after) = steady[0], steady[-1]
    return {
        "images_per_s": records[-1]["images_per_s"]
        / records[-1]["steps_per_s"]
        * (records[-1]["step"] - skip)
        / seconds,
        "cpu_s_per_step": (after - before) / max(1, last_step - first),
    }


def _spans(records: Sequence[Mapping[str, Any]], skip: int) -> list[tuple[int, Mapping[str, Any]]]:
    return list(zip([skip, *(r["step"] for r in records)], records, strict=False))


def workers_of(driver: int) -> list[psutil.Process]:
    """The processes of a run's workers."""
    found = []
    for one in psutil.Process(driver).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(one.cmdline()):
                found.append(one)
        except psutil.Error:
            continue
    return found


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def submit_to_first_step(config: Path, workers: int, run: Path) -> dict[str, float]:
    """Seconds of each part between `pmg submit` and the end of the first step."""
    with head_node(cpus=workers) as head:
        submitted = time.time()
        command = [sys.executable, "-m", "pmg", "submit", "--address", head.address]
        command += ["train", "--config", str(config), "--run", str(run), "train.steps=1"]
        process = subprocess.Popen(
            [*command, "train.log_every=1", "train.checkpoint_every=1"],
            env=head.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        seen = {}
        for line in process.stdout:
            for words in ("job ", "starting "):
                if words in line and words not in seen:
                    seen[words] = time.time()
        if process.wait():
            raise RuntimeError(f"the job failed: {list(run.glob('failure.txt'))}")
    folder = RunFolder(run)
    log = folder.log(0).read_text(encoding="utf-8")
    entered = datetime.fromisoformat(re.findall(r"^(\S+ \S+) INFO.*: rank 0 of", log, re.M)[0])
    (start,) = json.loads(folder.environment.read_text(encoding="utf-8"))
    first = next(iter(folder.read_metrics()))
    marks = {
        "submit: Python, Ray's client, the request": seen["job "],
        "the job's process: Python, torch, the store, the model's cost": seen["starting "],
        "Ray: joining the cluster, workers, process group": entered.timestamp(),
        "workers: DeepSpeed and its engines": start["started_unix_s"],
        "the stream's first batch and the first step": first["unix_s"],
    }
    times = [submitted, *marks.values()]
    return {name: times[n + 1] - times[n] for n, name in enumerate(marks)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--skip", type=int, default=20)
    parser.add_argument("--width", type=int, default=24)
    parser.add_argument("--zero", type=int, choices=range(4), default=1)
    parser.add_argument("--engines", nargs="*", choices=NAMES, default=list(NAMES))
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--start", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.engines}
    parts: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        make_cohort(work, 4, (48, 160, 160))
        config = config_of(
            work / "store", arguments.width, arguments.zero, arguments.steps, arguments.workers
        )
        source = work / "run.yaml"
        source.write_text(config.to_yaml(), encoding="utf-8")
        for number in range(arguments.rounds):
            turn = number % max(1, len(arguments.engines))
            for engine in [*arguments.engines[turn:], *arguments.engines[:turn]]:
                if engine == "ray":
                    figures = under_ray(
                        source, arguments.workers, arguments.skip, work / f"run-{number}"
                    )
                else:
                    figures = under_torchrun(
                        engine,
                        source,
                        arguments.workers,
                        arguments.steps,
                        arguments.skip,
                        work / "figures.json",
                    )
                results[engine].append(figures)
        if arguments.start:
            parts = submit_to_first_step(source, arguments.workers, work / "submitted")
    _print(results, arguments)
    for part, seconds in parts.items():
        print(f"{seconds:6.1f} s  {part}")
    if parts:
        print(f"{sum(parts.values()):6.1f} s  from submit to the first step")
    if arguments.out:
        arguments.out.write_text(
            json.dumps(
                {
                    "command": " ".join(sys.argv[1:]),
                    "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                    "load": os.getloadavg()[1],
                    "rounds": results,
                    "submit_to_first_step_s": parts,
                },
                indent=1,
            ),
            encoding="utf-8",
        )


def _print(results: Mapping[str, Sequence[Mapping[str, Any]]], arguments: Any) -> None:
    print(
        f"{arguments.workers} workers, {arguments.rounds} rounds, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[1]:.1f}"
    )
    medians = {
        engine: [
            statistics.median(one[figure] for one in rounds)
            for figure in ("images_per_s", "cpu_s_per_step")
        ]
        for engine, rounds in results.items()
        if rounds
    }
    for engine, (images, cpu) in medians.items():
        spread = [one["images_per_s"] for one in results[engine]]
        print(
            f"{NAMES[engine].format(zero=arguments.zero):28} {images:7.2f} images/s "
            f"({min(spread):.2f} to {max(spread):.2f})   {cpu:.3f} CPU s a step"
        )
    for engine, base, target in (("ray", "deepspeed", 0.97), ("deepspeed", "ddp", 0.95)):
        if engine in medians and base in medians:
            by_time = medians[engine][0] / medians[base][0]
            by_cpu = medians[base][1] / medians[engine][1]
            print(
                f"{engine} / {base}: {by_time:.1%} of the images a second, "
                f"{by_cpu:.1%} by CPU time; target {target:.0%}"
            )


if __name__ == "__main__":
    main()
