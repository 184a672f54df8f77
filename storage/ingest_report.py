"""The ingest's report: what became of every series, for the user and for the store."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from storage.place import Place

__all__ = ["REPORT", "REPORT_TABLE", "IngestReport", "SeriesReport", "Verdict"]

REPORT, REPORT_TABLE = "ingest-report.parquet", "ingest-report.txt"

Verdict = Literal["ingested", "skipped", "refused"]

_VERDICTS: tuple[Verdict, ...] = ("ingested", "skipped", "refused")


@dataclass(frozen=True)
class SeriesReport:
    """One series. `path` and `reason` are for the terminal: they may name the patient.

    series: pseudonym of the series (the volume id), or of the path where no series was found.
    domain: 0 where a series was refused before a rule had given it one.
    stored_reason: `reason` without names, UIDs and paths.
    seconds: that a worker was at it, 0 where none was needed; worker: which one, -1 for none.
    """

    path: Path
    series: str
    domain: int
    phase: str
    files: int
    verdict: Verdict
    reason: str
    stored_reason: str
    seconds: float = 0.0
    worker: int = -1


@dataclass(frozen=True)
class IngestReport:
    """All series of one ingest, in the order of the manifest and then of their paths."""

    series: tuple[SeriesReport, ...]

    def count(self, verdict: Verdict) -> int:
        return Counter(one.verdict for one in self.series)[verdict]

    def table(self) -> str:
        """Lines to read in a terminal: refusals one by one, and the counts. Names patients."""
        lines = [
            f"refused  {one.path}  ({one.series})\n         {one.reason}"
            for one in self.series
            if one.verdict == "refused"
        ]
        return "\n".join([*lines, self._counts()])

    def write(self, place: Place) -> None:
        """As Parquet and as text, without what identifies a person. The caller holds the store's
        lock."""
        values = {name: [getattr(one, name) for one in self.series] for name in _SCHEMA.names[:-1]}
        values["reason"] = [one.stored_reason for one in self.series]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(values, schema=_SCHEMA), sink, compression="zstd")
        place.replace(REPORT, sink.getvalue().to_pybytes())
        place.replace(REPORT_TABLE, f"{self._stored_table()}\n".encode())

    def _stored_table(self) -> str:
        lines = [
            f"{'series':24}  {'verdict':8}  {'domain':6}  {'phase':16}  {'files':>5}  "
            f"{'seconds':>7}  {'worker':>6}  reason"
        ]
        for one in self.series:
            worker = "" if one.worker < 0 else one.worker
            line = (
                f"{one.series:24}  {one.verdict:8}  {one.domain or '':6}  {one.phase:16}  "
                f"{one.files:5}  {one.seconds:7.2f}  {worker:>6}  {one.stored_reason}"
            )
            lines.append(line.rstrip())
        return "\n".join([*lines, self._counts()])

    def _counts(self) -> str:
        counts = ", ".join(f"{self.count(verdict)} {verdict}" for verdict in _VERDICTS)
        return f"{len(self.series)} series: {counts}"


_SCHEMA = pa.schema(
    {
        "series": pa.string(),
        "domain": pa.int8(),
        "phase": pa.string(),
        "files": pa.int32(),
        "verdict": pa.string(),
        "seconds": pa.float32(),
        "worker": pa.int32(),
        "reason": pa.string(),
    }
)
