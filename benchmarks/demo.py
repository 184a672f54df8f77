"""Time and memory of `pmg demo` against its limits: python -m benchmarks.demo [--out FOLDER].

Memory is the largest sum over all processes of the demo (driver, Ray's daemons, workers) of the
proportional set size, in which a page that n processes share counts 1/n; sampled every 5 s.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from pathlib import Path

import psutil

LIMIT_S = 15 * 60
LIMIT_BYTES = 8 * 1024**3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    arguments, demo_arguments = parser.parse_known_args()
    command = [str(Path(sys.executable).parent / "pmg"), "demo", "--out", str(arguments.out)]
    started = time.monotonic()
    process = subprocess.Popen([*command, *demo_arguments])
    peak = 0
    while process.poll() is None:
        peak = max(peak, _resident_bytes(process.pid))
        time.sleep(5)
    seconds = time.monotonic() - started
    print(f"time    {seconds / 60:5.1f} min   {seconds / LIMIT_S:.2f} of the limit of 15 min")
    print(f"memory  {peak / 1024**3:5.1f} GiB   {peak / LIMIT_BYTES:.2f} of the limit of 8 GiB")
    sys.exit(process.returncode)


def _resident_bytes(pid: int) -> int:
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for one in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += one.memory_full_info().pss
    return total


if __name__ == "__main__":
    main()
