"""What a user sees of a run, on a terminal and in a file."""

from __future__ import annotations

import io
import re

from rich.console import Console

from launch.progress import follow


def record(step: int, loss: float = 0.2) -> dict[str, float]:
    terms = ("vae{}.reconstruction", "vae{}.kl", "cycle{}.reconstruction", "gan{}.generator")
    values = {t.format(i): loss * i for t in (*terms, "gan{}.discriminator") for i in (1, 2)}
    common = {"step": step, "steps_per_s": 2.0, "images_per_s": 64.0, "data_wait": 0.25}
    common["memory_bytes"] = 3 * 2**29
    return common | values | {"prior.effective_components": 2.5}


def shown(batches: list[list[dict[str, float]]], console: Console) -> None:
    left = iter(batches)
    polls = iter([True] * (len(batches) - 1) + [False])
    follow(lambda: next(left), 120, lambda: next(polls), console, poll_s=0)


def test_a_file_gets_one_line_a_record_with_the_time_left_and_the_mean_of_both_domains():
    file = io.StringIO()
    shown([[], [record(20)], [record(40), record(60)]], Console(file=file, width=80))
    lines = file.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["20/120", "40/120", "60/120"]
    assert "0:50 left" in lines[0]
    assert "0:30 left" in lines[2]
    assert "64.0 images/s  wait 25%  1.5 GiB" in lines[0]
    assert "rec 0.300" in lines[0]
    assert not re.search("\x1b", file.getvalue())


def test_what_came_with_the_last_poll_is_shown():
    file = io.StringIO()
    shown([[record(20)], [record(120)]], Console(file=file, width=80))
    assert "step 120/120" in file.getvalue()


def test_steps_that_are_taken_again_are_explained():
    file = io.StringIO()
    shown([[record(20), record(40)], [record(30)]], Console(file=file, width=80))
    assert "workers restarted" in file.getvalue().splitlines()[2]


def test_a_terminal_of_80_columns_holds_the_bar():
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True)
    shown([[record(20)], [record(119, loss=123.456)]], console)
    text = re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert "119/120" in text
    assert "0:00 left  2.00 steps/s  64.0 images/s  wait 25%  1.5 GiB" in text
    assert "K_eff 2.5" in text
    assert "…" not in text
