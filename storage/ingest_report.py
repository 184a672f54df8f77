"""The ingest's report: what became of every series, for the user and for the store."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from storage.durable import replace_file

__all__ = ["IngestReport", "SeriesReport", "Verdict"]

Verdict = Literal["ingested", "skipped", "refused"]


@dataclass(frozen=True)
class SeriesReport:
    """One series. `path` and `reason` are for the terminal: they may name the patient.

    series: pseudonym of the series (the volume id), or of the path where no series was found.
    stored_reason: `reason` without names, UIDs and paths.
    """

    path: Path
    series: str
    domain: int
    phase: str
    files: int
    verdict: Verdict
    reason: str
    stored_reason: str


@dataclass(frozen=True)
class IngestReport:
    """All series of one ingest, in the order in which they were done."""

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
        verdicts: tuple[Verdict, ...] = ("ingested", "skipped", "refused")
        counts = ", ".join(f"{self.count(verdict)} {verdict}" for verdict in verdicts)
        return "\n".join([*lines, f"{len(self.series)} series: {counts}"])

    def write(self, path: Path) -> None:
        """As Parquet, without what identifies a person. The caller holds the store's lock."""
        columns = ("series", "domain", "phase", "files", "verdict")
        values = {name: [getattr(one, name) for one in self.series] for name in columns}
        values["reason"] = [one.stored_reason for one in self.series]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(values, schema=_SCHEMA), sink, compression="zstd")
        replace_file(path, sink.getvalue().to_pybytes())


_SCHEMA = pa.schema(
    {
        "series": pa.string(),
        "domain": pa.int8(),
        "phase": pa.string(),
        "files": pa.int32(),
        "verdict": pa.string(),
        "reason": pa.string(),
    }
)
