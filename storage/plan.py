"""What an ingest has to do: the series below a manifest's lines, unchanged or to be looked at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from storage.bounded import seen
from storage.errors import IngestError
from storage.ingest_series import Cohort, Job, file_stat, place_of, stat_digest
from storage.manifest import Entry
from storage.series import Finding, Source, files_under, group
from storage.workers import Executor

__all__ = ["Known", "Line", "Planner", "listed"]

# Lines of a manifest are planned together until they hold so many files: enough to keep all workers
# busy, and few enough to be held in memory.
_BLOCK_FILES = 100_000


@dataclass(frozen=True)
class Known:
    """A volume that the store has, made by this version of the ingest."""

    volume_id: str
    source_digest: str
    source_stat: str
    domain: int
    phase: str


@dataclass
class Line:
    """A line of the manifest and the files below it, or why there are none.

    unchanged: by volume id, files that are all that the store's volume was made of. unknown: the
    others, whose headers must be seen.
    """

    entry: Entry
    files: tuple[Path, ...]
    error: str = ""
    unchanged: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    unknown: list[Path] = field(default_factory=list)


def listed(entries: Iterable[Entry]) -> Iterator[list[Line]]:
    """The lines in their order, as many at a time as hold _BLOCK_FILES files and at least one."""
    lines: list[Line] = []
    count = 0
    for entry in entries:
        try:
            line = Line(entry, tuple(files_under(entry.path)))
        except (IngestError, OSError) as error:
            line = Line(entry, (), str(error))
        if lines and count + len(line.files) > _BLOCK_FILES:
            yield lines
            lines, count = [], 0
        lines.append(line)
        count += len(line.files)
    if lines:
        yield lines


class Planner:
    """Finds the series below lines; headers are read by the executor.

    known: the store's volumes by their ids. scanned: called with a number of files whenever so many
    more headers have been seen.
    """

    def __init__(
        self,
        cohort: Cohort,
        known: Mapping[str, Known],
        executor: Executor,
        scanned: Callable[[int], None],
    ) -> None:
        self._cohort = cohort
        self._known = known
        self._by_stat = {one.source_stat: one for one in known.values() if one.source_stat}
        self._executor = executor
        self._scanned = scanned

    def jobs(self, lines: Iterable[Line]) -> list[Job]:
        """One for each series, and one for each file that is medical data but no image."""
        lines = list(lines)
        for line in lines:
            self._recognise(line)
        findings: dict[Path, Finding] = {}
        self._see(findings, [line.unknown for line in lines])
        for line in lines:
            # Files that came to a series, in another folder, make it another one.
            for source in self._grouped(line, findings)[0]:
                line.unknown += line.unchanged.pop(self._volume_id(source, line.entry), ())
        self._see(findings, [line.unknown for line in lines])
        return [job for line in lines for job in self._jobs(line, findings)]

    def _recognise(self, line: Line) -> None:
        """Tell what is unchanged from what is unknown: a folder that holds just the files that a
        volume was made of, or a file that is all of one."""
        stats: dict[Path, str] = {}
        folders: dict[Path, list[Path]] = defaultdict(list)
        for path in line.files if self._by_stat else ():
            try:
                stats[path] = file_stat(path, line.entry)
                folders[path.parent].append(path)
            except IngestError:  # to be refused when it is looked at
                continue
        recognised: set[Path] = set()
        for files in (*folders.values(), *([path] for path in stats)):
            if files[0] in recognised:
                continue
            known = self._by_stat.get(self._stat_digest([stats[path] for path in files], line))
            if known is not None and self._is_meant(known.volume_id, line.entry):
                line.unchanged[known.volume_id] = tuple(files)
                recognised.update(files)
        line.unknown = [path for path in line.files if path not in recognised]

    def _stat_digest(self, stats: list[str], line: Line) -> str:
        try:
            return stat_digest(stats, line.entry, self._cohort.names, self._cohort.rules)
        except IngestError:  # its mask is not there
            return ""

    def _is_meant(self, volume_id: str, entry: Entry) -> bool:
        uid = entry.series
        return uid is None or volume_id == self._volume_id(Source("dicom", uid, ()), entry)

    def _see(self, findings: dict[Path, Finding], wanted: Iterable[list[Path]]) -> None:
        """Add what the wanted files are."""
        unseen = [[path for path in paths if path not in findings] for paths in wanted]
        findings |= seen(unseen, self._executor, self._scanned)

    def _jobs(self, line: Line, findings: Mapping[Path, Finding]) -> Iterator[Job]:
        entry = line.entry
        sources, refusals = self._grouped(line, findings)
        if line.error or not (sources or refusals or line.unchanged):
            series = "" if entry.series is None else f" {entry.series}"
            missing = f"{entry.path}: holds no DICOM series{series}"
            missing += " and no NIfTI file" if entry.series is None else ""
            yield self._refused(entry, entry.path, line.error or missing)
        for volume_id, files in line.unchanged.items():
            yield Job(entry, _shown(files), volume_id, files, unchanged=True)
        for source in sources:
            if entry.mask is not None and len(sources) + len(line.unchanged) > 1:
                many = f"{len(sources) + len(line.unchanged)} series lie below {entry.path}"
                error = f"{entry.mask}: {many}; expected one for a mask (name it in column series)"
                yield self._refused(entry, _shown(source.files), error)
                continue
            yield self._job(source, entry)
        for path, reason in refusals:
            yield self._refused(entry, path, reason)

    def _grouped(
        self, line: Line, findings: Mapping[Path, Finding]
    ) -> tuple[list[Source], list[tuple[Path, str]]]:
        sources, refusals = group(findings[path] for path in line.unknown)
        if line.entry.series is None:
            return sources, [(one.path, one.reason) for one in refusals]
        return [one for one in sources if one.key == line.entry.series], []

    def _job(self, source: Source, entry: Entry) -> Job:
        volume_id = self._volume_id(source, entry)
        try:
            stats = [file_stat(path, entry) for path in source.files]
            stat = stat_digest(stats, entry, self._cohort.names, self._cohort.rules)
        except IngestError as error:
            return self._refused(entry, _shown(source.files), str(error))
        known = self._known.get(volume_id)
        return Job(
            entry,
            _shown(source.files),
            volume_id,
            source.files,
            source,
            stat=stat,
            known_digest=known.source_digest if known else "",
            unchanged=known is not None and known.source_stat == stat,
        )

    def _refused(self, entry: Entry, path: Path, reason: str) -> Job:
        series = self._cohort.names.of("path", place_of(path, entry))
        return Job(entry, path, series, (path,), refusal=reason)

    def _volume_id(self, source: Source, entry: Entry) -> str:
        # A series is known by its UID wherever it lies; a NIfTI file only by its place.
        identity = source.key if source.kind == "dicom" else place_of(source.files[0], entry)
        return self._cohort.names.of("series", source.kind, identity)


def _shown(files: tuple[Path, ...]) -> Path:
    return files[0] if len(files) == 1 else files[0].parent
