"""Series found and read by a process that may die: the same as in this one, or a refusal."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from make_series import a_series, a_volume

from storage import bounded, series
from storage.bounds import MAX_SECONDS
from storage.errors import GeometryError
from storage.workers import Lost


def test_what_is_found_and_read_is_what_this_process_finds_and_reads(tmp_path: Path) -> None:
    a_series(a_volume(), tmp_path / "a")
    files = sorted((tmp_path / "a").iterdir())
    (tmp_path / "broken.dcm").write_bytes(b"no image")
    assert bounded.find_sources(tmp_path) == series.find_sources(tmp_path)
    source = series.find_sources(tmp_path)[0][0]
    volume, headers = bounded.read_source(source)
    expected, own = series.read_source(source)
    np.testing.assert_array_equal(volume.hu, expected.hu)
    np.testing.assert_array_equal(volume.affine, expected.affine)
    assert list(headers) == list(own)
    with pytest.raises(GeometryError, match="expected at least 2"):
        bounded.read_source(series.Source("dicom", source.key, tuple(files[:1])))


def test_the_reading_process_has_bounds_and_its_death_is_a_result(tmp_path: Path) -> None:
    (handler,) = bounded._reader().map(eval, ["__import__('signal').getsignal(14).__name__"])
    assert handler.result == "alarm"
    assert MAX_SECONDS == 10
    kill = f"__import__('os').kill(__import__('os').getpid(), {int(signal.SIGSEGV)})"
    (lost,) = bounded._reader().map(eval, [kill])
    assert isinstance(lost.result, Lost)
    (pid,) = bounded._reader().map(eval, ["__import__('os').getpid()"])
    assert pid.result != os.getpid()
