"""Finding and reading series in processes that may die, for programs that read strangers' files.

The same as in `storage.series`, within the bounds of `storage.bounds`: what a hostile file does to
its reader ends as a refusal that names the file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path

from pydicom.dataset import Dataset

from storage import series
from storage.errors import IngestError
from storage.series import Finding, Refusal, Source, files_under, group, scan
from storage.volume import Volume
from storage.workers import Executor, Lost, Workers, memory_limit

__all__ = ["find_sources", "read_source", "seen"]

_PORTION = 128  # files, which a worker looks at in a few hundredths of a second

_one_at_a_time = threading.Lock()


def find_sources(
    root: Path, executor: Executor | None = None
) -> tuple[list[Source], list[Refusal]]:
    """`storage.series.find_sources`; headers are read by the executor, or one process of this
    program."""
    if executor is not None:
        return group(seen([files_under(root)], executor).values())
    with _one_at_a_time:
        return find_sources(root, _reader())


def read_source(source: Source) -> tuple[Volume, Sequence[Dataset]]:
    """`storage.series.read_source` in one process of this program, which stays for the next.

    Raises what that raises, IngestError too where the process was lost. A script that calls this
    must do so below `if __name__ == "__main__":`, since processes are spawned.
    """
    with _one_at_a_time:
        (done,) = _reader().map(series.read_source, [source])
    if isinstance(done.result, Lost):
        raise IngestError(done.result.reason)
    return done.result


def seen(
    wanted: Iterable[Sequence[Path]],
    executor: Executor,
    scanned: Callable[[int], None] = lambda _: None,
) -> dict[Path, Finding]:
    """What files are, by `storage.series.scan`: those of each list are looked at together.

    scanned: called with a number of files whenever so many more headers have been read.
    """
    findings: dict[Path, Finding] = {}
    portions = [
        paths[start : start + _PORTION]
        for paths in wanted
        for start in range(0, len(paths), _PORTION)
    ]
    while portions:
        again: list[Sequence[Path]] = []
        with closing(executor.map(scan, portions)) as outcomes:
            for done in outcomes:
                paths = portions[done.index]
                result = done.result
                if not isinstance(result, Lost):
                    findings.update((finding.path, finding) for finding in result)
                    scanned(len(paths))
                elif result.path in paths or len(paths) == 1:
                    bad = result.path if result.path in paths else paths[0]
                    assert bad is not None
                    findings[bad] = Finding(bad, reason=result.reason)
                    again.append([path for path in paths if path != bad])
                else:
                    again += [[path] for path in paths]
        portions = [paths for paths in again if paths]
    return findings


@cache
def _reader() -> Workers:
    """Its process ends with this one."""
    return Workers(1, memory_limit(1))
