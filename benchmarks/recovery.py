"""How long a run stands still after one of its workers was killed, and where that time goes.

    python -m benchmarks.recovery [--kills 4] [--width 24]

`launch.train` trains on 2 workers of this machine, of which now one and now the other is killed.
The moments are those of the workers' processes and of what rank 0 logs.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from benchmarks.cohort import make_cohort
from benchmarks.overhead import WORKERS, config_of, workers_of
from launch.run_folder import RunFolder

__all__ = ["recoveries"]

_LIMIT_S = 180
_BETWEEN = 15  # steps, of which every fifth is saved
_LOGGED = re.compile(r"^(\S+ \S+) INFO launch.worker: (?:rank 0 of|from step)(.*)$", re.M)
_WHOLE = "from the kill to the end of the next step"


def recoveries(source: Path, run: Path, kills: int) -> list[dict[str, float]]:
    """By kill the seconds of each part."""
    folder = RunFolder(run)
    command = [sys.executable, "-m", "launch.train", "--config", str(source), "--run", str(run)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as driver:
        try:
            return [_recovery(driver, folder, kill % WORKERS) for kill in range(kills)]
        finally:
            driver.terminate()


def _recovery(driver: subprocess.Popen[bytes], folder: RunFolder, victim: int) -> dict[str, float]:
    def until(found: Callable[[], bool]) -> float:
        deadline = time.monotonic() + _LIMIT_S
        while not found():
            if driver.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"run {folder.root} does not go on; see its logs")
            time.sleep(0.02)
        return time.time()

    def started() -> list[tuple[str, str]]:
        return _LOGGED.findall(folder.log(0).read_bytes()[logged:].decode())

    def taken(since: float) -> list[float]:
        return [r["unix_s"] for r in folder.read_metrics() if r["unix_s"] > since]

    now = time.time()
    until(lambda: len(taken(now)) >= _BETWEEN)
    group, logged = workers_of(driver.pid), folder.log(0).stat().st_size
    killed = time.time()
    group[victim].kill()
    noticed = until(lambda: not any(one.is_running() for one in group))
    until(lambda: len(started()) == 2)
    (up, _), (resumed, said) = started()
    resumed_s = datetime.fromisoformat(resumed).timestamp()
    until(lambda: bool(taken(resumed_s)))
    laps = {name: float(seconds) for name, seconds in re.findall(r"(\w+) ([\d.]+) s\b", said)}
    entered = datetime.fromisoformat(up).timestamp() - laps["imports"]
    parts = {
        "Ray notices, and ends the other worker": noticed - killed,
        "Ray starts processes, imports torch, joins them in a group": entered - noticed,
        "imports: DeepSpeed and the worker's own": laps["imports"],
        "networks and engines": laps["engines"],
        "the checkpoint: found, verified, loaded": laps["resume"],
    }
    whole = taken(resumed_s)[0] - killed
    rest = whole - sum(parts.values())
    return parts | {"the store, the first batch, the first step": rest, _WHOLE: whole}


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--width", type=int, default=24)
    arguments = parser.parse_args(given)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        make_cohort(work, 4, (48, 160, 160))
        config = config_of(work / "store", arguments.width, 1, 1_000_000)
        train = {"log_every": 1, "checkpoint_every": 5}
        config = config.model_copy(
            update={
                "train": config.train.model_copy(update=train),
                "launch": config.launch.model_copy(update={"max_failures": arguments.kills}),
            }
        )
        source = work / "run.yaml"
        source.write_text(config.to_yaml(), encoding="utf-8")
        found = recoveries(source, work / "run", arguments.kills)
    print(f"{WORKERS} workers, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}\n")
    print(f"| s | median of {len(found)} | range |\n|---|---|---|")
    for part in found[0]:
        seconds = [one[part] for one in found]
        print(
            f"| {part} | {statistics.median(seconds):.1f} | "
            f"{min(seconds):.1f} to {max(seconds):.1f} |"
        )


if __name__ == "__main__":
    main()
