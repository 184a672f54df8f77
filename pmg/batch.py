"""A batch of series through one model: finished ones are skipped, failed ones do not stop the rest.

Every series has a folder of its own, `001` and so on, which appears when it is complete. A second
run into the same place finds it by what it was made of: the source's bytes, the model's, and the
settings. A report tells what became of each.
"""

from __future__ import annotations

import csv
import hashlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from pmg.done import finishing, is_done, made_by
from pmg.model import Domain
from pmg.output import TranslationFormat, write_translation
from pmg.tiles import Progress
from pmg.translate import VolumeTranslator, Wanted
from storage.bounded import read_source
from storage.durable import replace_file
from storage.pseudonym import Pseudonyms
from storage.series import Source

__all__ = ["REPORT", "Order", "SeriesOutcome", "translate_series", "write_report_of"]

REPORT = "translate-report.csv"
_FAILURES = (ValueError, OSError, RuntimeError, MemoryError)


@dataclass(frozen=True)
class Order:
    """What is asked of every series of a batch.

    model: the folder that it was opened from. identity: what the pseudonyms come from, a word or
    the key's fingerprint, so that another key makes other results.
    """

    model: Path
    direction: Domain
    description: str
    identity: str
    formats: tuple[TranslationFormat, ...] = ("dicom", "nifti")
    wanted: Wanted = field(default_factory=Wanted)

    def made(self, source: Source) -> str:
        """A digest of all that decides what is written for a source."""
        return made_by(
            self.model,
            source=_content(source),
            direction=self.direction,
            description=self.description,
            identity=self.identity,
            formats=sorted(self.formats),
            version=version("pmg"),
            **asdict(self.wanted),
        )


@dataclass(frozen=True)
class SeriesOutcome:
    """What became of one series. error: only of a failed one. seconds: of this run."""

    source: Source
    folder: Path | None
    verdict: Literal["translated", "there already", "failed"]
    written: tuple[Path, ...] = ()
    error: Exception | None = None
    seconds: float = 0.0


def translate_series(
    translator: VolumeTranslator,
    sources: Sequence[Source],
    out: Path,
    order: Order,
    names: Pseudonyms | None,
    progress: Callable[[int], Progress] | None = None,
) -> Iterator[SeriesOutcome]:
    """Translate and write the series, one after another; yields what became of each.

    progress: gives, for the number of a series, what is called with its tiles done and in all.
    names: as of `write_translation`.
    """
    out.mkdir(parents=True, exist_ok=True)
    for number, source in enumerate(sources):
        began = time.monotonic()
        try:
            made = order.made(source)
            folder = _found(out, made)
            if folder is not None:
                yield SeriesOutcome(source, folder, "there already")
                continue
            volume, headers = read_source(source)
            bar = None if progress is None else progress(number)
            result = translator.predict(volume, order.wanted, bar)
            folder = _free(out, number + 1)
            with finishing(folder, made) as partial:
                paths = write_translation(
                    result, source, headers, partial, order.description, names, order.formats
                )
        except _FAILURES as error:
            seconds = time.monotonic() - began
            yield SeriesOutcome(source, None, "failed", error=error, seconds=seconds)
            continue
        written = tuple(folder / path.relative_to(partial) for path in paths)
        seconds = time.monotonic() - began
        yield SeriesOutcome(source, folder, "translated", written, seconds=seconds)


def write_report_of(outcomes: Sequence[SeriesOutcome], out: Path) -> Path:
    """`translate-report.csv`: folder, verdict, kind of error, files, seconds.

    Without paths and reasons, which may name a patient: what is written may be de-identified.
    """
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(("series", "folder", "verdict", "error", "files", "seconds"))
    for number, one in enumerate(outcomes, 1):
        error = type(one.error).__name__ if one.error else ""
        folder = one.folder.name if one.folder else ""
        files = len(one.source.files)
        table.writerow((number, folder, one.verdict, error, files, f"{one.seconds:.1f}"))
    path = out / REPORT
    replace_file(path, text.getvalue().encode())
    return path


def _content(source: Source) -> str:
    """Of the source's files' bytes, whatever their names and order."""
    digests = []
    for path in source.files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def _found(out: Path, made: str) -> Path | None:
    return next((p for p in sorted(out.glob("[0-9]*")) if is_done(p, made)), None)


def _free(out: Path, number: int) -> Path:
    """The folder of that number, or the first free one after it: nothing is written over."""
    while (folder := out / f"{number:03d}").exists():
        number += 1
    return folder
