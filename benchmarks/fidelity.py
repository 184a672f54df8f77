"""Baselines and pmg under one budget, against the truth: python -m benchmarks.fidelity --small.

A cohort of phantoms is written and ingested, every contender trained with every seed on it, and all
of them measured on test subjects whose truth is known, as `pmg evaluate` measures. A run is a
folder below --out; what is finished there with the same settings is not done again: the same
command goes on after Ctrl-C or SIGTERM, which end the runs under way. The table and the figure are
written anew after every run, from those that are done. After a change of code take another --out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from benchmarks.fidelity_plan import SIZES, Contender, Size
from benchmarks.fidelity_run import RESULT, Cohort, is_finished, run_contender, run_untrained
from benchmarks.fidelity_table import read_columns, table, verdict, write_figure
from storage.ingest import ingest
from storage.phantom import write_cohort

_RESULTS = Path(__file__).parent / "results"
_PHANTOM_SEED = 2024
_SPACING_MM = (3.0, 2.0, 2.0)
_RECOMMENDED = "pmg-k8"  # as the preset has it
_ABOUT = """\
Written by `python -m benchmarks.fidelity`. {subjects} phantoms a domain to learn from, {tests}
others with truth; the mean over seeds, and in brackets the lowest and highest. "truth and noise" is
the truth with the source's noise: the best of a translation that leaves noise alone. Rows as in
docs/evaluation.md.
"""
_UNTRAINED = {"identity": "identity", "histogram": "histogram", "noise": "truth and noise"}


def main() -> None:
    arguments = _arguments()
    size = SIZES["full" if arguments.full else "small"]
    out: Path = arguments.out or Path(f"fidelity-{size.name}")
    chosen = [c for c in size.contenders if not arguments.only or c.name in arguments.only]
    if arguments.run:  # one run, in a process of its own
        name, seed = arguments.run
        (contender,) = (c for c in size.contenders if c.name == name)
        config = size.config(contender, int(seed), arguments.overrides)
        run_contender(_cohort(out), config, _folder(out, contender, int(seed)))
        return
    started = time.monotonic()
    _prepare(size, out)
    jobs = [(c, seed) for seed in range(1, arguments.seeds + 1) for c in chosen]
    waiting = [
        (c, seed)
        for c, seed in jobs
        if not is_finished(_folder(out, c, seed), size.config(c, seed, arguments.overrides))
    ]
    print(f"{len(jobs)} runs, {len(jobs) - len(waiting)} of them done before", flush=True)
    own = ["--full" if arguments.full else "--small", "--out", str(out)]
    failed = []
    with _Runs(arguments.parallel) as runs:
        for job, code in runs.of(waiting, own, arguments.overrides):
            name = f"{job[0].name}, seed {job[1]}"
            minutes = (time.monotonic() - started) / 60
            print(f"{minutes:6.1f} min  {name}{' FAILED' if code else ''}", flush=True)
            if code:
                failed.append(name)
            _report(size, out, arguments.seeds, arguments.results)
    print(_report(size, out, arguments.seeds, arguments.results))
    if failed:
        sys.exit(f"failed, see log.txt in the run's folder: {'; '.join(failed)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group(required=True)
    for size in SIZES.values():
        which.add_argument(f"--{size.name}", action="store_true", help=size.minutes)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each contender")
    parser.add_argument("--out", type=Path, help="folder of the runs; default fidelity-SIZE")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=sorted(_names()), help=", ".join(_names())
    )
    gpus = torch.cuda.is_available()
    parser.add_argument(
        "--parallel", type=int, default=1 if gpus else os.cpu_count(), help="runs at once"
    )
    parser.add_argument("--results", type=Path, default=_RESULTS, help="folder of the table")
    parser.add_argument(
        "--set",
        dest="overrides",
        nargs="+",
        default=[],
        metavar="SECTION.FIELD=VALUE",
        help="of every contender, for trials; give another --out and --results with it",
    )
    parser.add_argument("--run", nargs=2, metavar=("NAME", "SEED"), help=argparse.SUPPRESS)
    return parser.parse_args()


def _names() -> list[str]:
    return list(dict.fromkeys(c.name for size in SIZES.values() for c in size.contenders))


def _cohort(out: Path) -> Cohort:
    return Cohort(out / "data" / "store", out / "data" / "dicom" / "test")


def _folder(out: Path, contender: Contender, seed: int) -> Path:
    return out / "runs" / f"{contender.name}-{seed}"


def _prepare(size: Size, out: Path) -> None:
    """The phantom, the store and what needs no training, unless they are there."""
    data = out / "data"
    manifest = data / "dicom" / "manifest.csv"
    if not manifest.is_file():  # it is written last
        shutil.rmtree(data, ignore_errors=True)
        write_cohort(data / "dicom", _PHANTOM_SEED, size.subjects, size.tests, size.protocol)
    report = ingest(
        None,
        _cohort(out).store,
        manifest=manifest,
        spacing_mm=_SPACING_MM,
        key_path=data / "pseudonyms.key",
    )
    print(report.table(), flush=True)
    if not all((out / "runs" / name / RESULT).is_file() for name in _UNTRAINED):
        run_untrained(_cohort(out), out / "runs")


class _Runs:
    """Runs in processes of one thread each, some at once; what ends this process ends them."""

    def __init__(self, at_once: int) -> None:
        self._pool = ThreadPoolExecutor(at_once)
        self._children: set[subprocess.Popen[bytes]] = set()

    def __enter__(self) -> Self:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        for child in list(self._children):
            child.terminate()

    def of(
        self, jobs: Sequence[tuple[Contender, int]], own: Sequence[str], overrides: Sequence[str]
    ) -> Iterator[tuple[tuple[Contender, int], int]]:
        """Every job and its exit code, as they end."""
        futures = {self._pool.submit(self._run, own, *job, overrides): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()

    def _run(
        self, own: Sequence[str], contender: Contender, seed: int, overrides: Sequence[str]
    ) -> int:
        folder = _folder(Path(own[-1]), contender, seed)
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "benchmarks.fidelity", *own, "--run", contender.name]
        command += [str(seed), *(["--set", *overrides] if overrides else [])]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with (folder / "log.txt").open("w", encoding="utf-8") as log:
            child = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            self._children.add(child)
            code = child.wait()
            self._children.discard(child)
            return code


def _report(size: Size, out: Path, seeds: int, results: Path) -> str:
    """Write the table and the figure of what is finished; the table's text."""
    runs = out / "runs"
    contenders = {name: (title, [runs / name]) for name, title in _UNTRAINED.items()}
    for one in size.contenders:
        folders = [_folder(out, one, seed) for seed in range(1, seeds + 1)]
        contenders[one.name] = (one.title, folders)
    columns = read_columns(contenders)
    text = "\n".join(
        [
            f"# fidelity --{size.name}\n",
            _ABOUT.format(subjects=size.subjects, tests=size.tests),
            table(list(columns.values())),
            verdict(columns, _RECOMMENDED),
        ]
    )
    results.mkdir(parents=True, exist_ok=True)
    (results / f"fidelity-{size.name}.md").write_text(text, encoding="utf-8")
    first = [(title, folders[0]) for title, folders in contenders.values()]
    shown = [("source", runs / "identity"), ("truth", runs / "truth"), *first[1:2], *first[3:]]
    done = [(t, f) for t, f in shown if (f / RESULT).is_file() or f.name == "truth"]
    write_figure(results / f"fidelity-{size.name}.png", done)
    return text


if __name__ == "__main__":
    main()
