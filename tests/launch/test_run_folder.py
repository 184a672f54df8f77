"""Metrics that survive killed writers, and one training a folder."""

from __future__ import annotations

import subprocess
import sys

import pytest

from launch.run_folder import MetricsTail, RunBusy, RunFolder


def steps(records):
    return [r["step"] for r in records]


def test_a_resumed_history_leaves_out_the_steps_that_were_taken_again(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (2, 4, 6, 4, 6, 8):
        folder.append_metrics({"step": step})
    assert steps(folder.read_metrics()) == [2, 4, 6, 8]


def test_a_line_that_a_killed_worker_left_half_written_is_left_out(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append_metrics({"step": 2})
    with folder.metrics.open("a") as file:
        file.write('{"step": 4, "vae1')
    assert steps(folder.read_metrics()) == [2]
    for step in (4, 6):
        folder.append_metrics({"step": step})
    assert steps(folder.read_metrics()) == [2, 6]


def test_a_tail_gives_each_record_once_and_none_from_before(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append_metrics({"step": 2})
    tail = MetricsTail(folder)
    assert tail.new() == []
    assert tail.empty
    with folder.metrics.open("a") as file:
        file.write('{"step": 4}\n{"ste')
        file.flush()
        assert steps(tail.new()) == [4]
        assert steps(tail.new()) == []
        file.write('p": 6}\n')
    assert steps(tail.new()) == [6]
    assert not tail.empty


def test_a_folder_in_which_another_process_trains_is_refused_by_its_number(tmp_path):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, pathlib; from launch.run_folder import RunFolder\n"
            "with RunFolder(pathlib.Path(sys.argv[1])).locked():\n"
            "    print('locked', flush=True); input()",
            str(tmp_path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout.readline() == b"locked\n"
    with pytest.raises(RunBusy, match=f"process {holder.pid} "), RunFolder(tmp_path).locked():
        pass
    holder.kill()
    holder.wait()
    with RunFolder(tmp_path).locked():
        pass
