"""The command line as a newcomer meets it."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from pmg.cli import main

HELP = """
import sys
import click
from pmg.cli import main

heavy = {"torch", "ray", "deepspeed", "matplotlib", "zarr", "pydicom", "SimpleITK"}
for command in [[], *([name] for name in main.list_commands(click.Context(main)))]:
    try:
        main([*command, "--help"])
    except SystemExit as end:
        assert end.code == 0, command
    loaded = heavy & sys.modules.keys()
    assert not loaded, f"{command} --help imported {loaded}"
"""


def test_help_of_every_command_answers_without_the_heavy_imports():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage:") == 1 + len(main.list_commands(click.Context(main)))


def test_a_mistyped_command_is_refused_with_the_nearest_one():
    result = CliRunner().invoke(main, ["trian"])
    assert result.exit_code != 0
    assert "did you mean train?" in result.output


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("loss.lambda_cycl=1", ["loss.lambda_cycl", "did you mean loss.lambda_cycle?"]),
        ("prior.components=0", ["prior.components", "0", "greater than or equal to 1"]),
        ("model.norm=layer", ["model.norm", "layer", "'none', 'group' or 'instance'"]),
        ("trane.steps=5", ["trane", "did you mean train?"]),
        ("steps=5", ["steps=5", "section.field=value"]),
    ],
)
def test_a_wrong_setting_is_refused_by_name_before_anything_starts(tmp_path, override, words):
    run = tmp_path / "run"
    result = CliRunner().invoke(main, ["train", "--store", "s", "--run", str(run), override])
    assert result.exit_code != 0
    for word in words:
        assert word in result.output
    assert not run.exists()


def test_training_without_a_store_says_what_is_missing(tmp_path):
    missing = tmp_path / "no-store"
    result = CliRunner().invoke(
        main, ["train", "--store", str(missing), "--run", str(tmp_path / "run")]
    )
    assert result.exit_code != 0
    assert str(missing) in result.output
    assert "Traceback" not in result.output
