"""Bounds on reading one file, in processes of their own: they take over signals and limits."""

import os
import subprocess
import sys
import textwrap

import pytest

from storage.bounds import MAX_FILE_BYTES, reading
from storage.errors import IngestError


def test_a_file_that_would_block_is_refused_without_being_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(IngestError, match=f"{path.name}: is no regular file"), reading(path):
            pytest.fail("was entered")
    with pytest.raises(IngestError, match="none: cannot be read"), reading(tmp_path / "none"):
        pytest.fail("was entered")


def test_a_file_above_the_bound_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, MAX_FILE_BYTES)  # sparse
    with reading(path):
        pass
    os.truncate(path, MAX_FILE_BYTES + 1)
    with pytest.raises(IngestError, match=f"large: has {MAX_FILE_BYTES + 1} bytes"), reading(path):
        pytest.fail("was entered")


def in_a_worker(tmp_path, body):
    """Run `body` after `enable`; returns what it printed, line by line."""
    script = """
        import resource, signal, time
        from pathlib import Path
        import numpy as np
        from storage import bounds
        from storage.bounds import enable, reading
        from storage.errors import IngestError
        bounds.MAX_SECONDS = 0.5
        enable(lambda path: print(path and path.name))
        path = Path("scan")
        path.touch()
    """
    script = textwrap.dedent(script) + textwrap.dedent(body)
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_file_that_takes_too_long_is_refused_even_where_a_decoder_swallows_exceptions(tmp_path):
    lines = in_a_worker(
        tmp_path,
        """
        try:
            with reading(path):
                while True:
                    try:
                        while True:
                            pass
                    except Exception:
                        pass
        except IngestError as error:
            print(error)
        with reading(path):
            pass
        print(signal.getitimer(signal.ITIMER_REAL))
        """,
    )
    refusal = "scan: takes more than 0.5 s to read; expected a file that takes less"
    assert lines == ["scan", "None", refusal, "scan", "None", "(0.0, 0.0)"]


def test_progress_begins_the_time_anew_until_what_the_size_of_the_file_allows(tmp_path):
    lines = in_a_worker(
        tmp_path,
        """
        bounds.MAX_SECONDS = 1.0
        bounds._BYTES_PER_SECOND = 1000

        def read(size, frames):
            path.write_bytes(bytes(size))
            try:
                with reading(path):
                    for seconds in frames:
                        time.sleep(seconds)
                        bounds.advanced()
                print("read")
            except IngestError as error:
                print(error)

        read(9000, [0.3] * 5)
        read(300, [0.3] * 50)
        read(9000, [0.3, 60])
        """,
    )
    told = [line for line in lines if line not in ("scan", "None")]
    assert told == [
        "read",
        "scan: takes more than 1.3 s to read; expected a file that takes less",
        "scan: takes more than 1 s for one more frame to read; expected a file that takes less",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mappings on Linux only")
def test_a_file_that_takes_too_much_memory_is_refused_and_the_next_one_is_not(tmp_path):
    lines = in_a_worker(
        tmp_path,
        """
        before = resource.getrlimit(resource.RLIMIT_DATA)
        held = np.ones(1 << 26)  # half of what one file may take
        for size in ((1 << 30) + (1 << 20), 1 << 29):
            try:
                with reading(path), reading(path):
                    np.empty(size, np.uint8)
                    print("read")
            except IngestError as error:
                print(error)
        assert resource.getrlimit(resource.RLIMIT_DATA) == before
        """,
    )
    refusal = "scan: takes more than 1073741824 bytes of memory to read; expected less"
    assert lines == ["scan", "None", refusal, "scan", "read", "None"]
