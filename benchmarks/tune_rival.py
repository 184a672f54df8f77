"""The best of a search beside the faithful preset, on phantoms that the search has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.fidelity_run import (
    Cohort,
    is_finished,
    read_result,
    run_contender,
    run_untrained,
)
from benchmarks.tune_phantom import phantom_store
from pmg.config import Config, load_config

__all__ = ["compared_with_faithful"]

_TESTS = 3
# What sets the size and the budget of a training: both have it as the search's best has it.
_SIZE = (
    "data.patch",
    "model.width",
    "model.blocks",
    "discriminator.width",
    "discriminator.layers",
    "discriminator.scales",
    "train.batch",
)
_ROWS = ("body MAE", "plaques kept", "invented plaques")


def compared_with_faithful(best: Path, out: Path, seeds: Sequence[int], steps: int) -> None:
    """Train both on a cohort of each seed, and measure them on three subjects with truth.

    best: a search's best.yaml. The seed is the training's, too. What is finished in `out` is not
    done again.
    """
    searched = load_config(best)
    sizes = [f"{path}={_setting(searched, path)}" for path in _SIZE]
    contenders: dict[str, tuple[str | Path, list[str]]] = {
        "best.yaml": (best, []),
        "faithful": ("faithful", sizes),
    }
    print(f"{'seed':>6}  {'':10}" + "".join(f"{row:>18}" for row in _ROWS))
    wins = 0
    for seed in seeds:
        place = out / f"seed-{seed}"
        cohort = Cohort(phantom_store(place, seed, _TESTS), place / "dicom" / "test")
        if read_result(place / "identity") is None:
            run_untrained(cohort, place)
        _print(seed, "identity", place)
        for name, (source, settings) in contenders.items():
            own = load_config(
                source,
                [*settings, f"train.steps={steps}", f"train.seed={seed}", "launch.workers=1"],
                data={"store": None, "validation_fraction": 0.0},  # a search's own
            )
            if not is_finished(place / name, own):
                run_contender(cohort, own, place / name)
            _print(seed, name, place)
        wins += _figure(place / "best.yaml", "body MAE") < _figure(place / "faithful", "body MAE")
    print(f"the search's best has the lower body MAE in {wins} of {len(seeds)}")


def _setting(config: Config, path: str) -> object:
    section, field = path.split(".")
    value = getattr(getattr(config, section), field)
    return list(value) if isinstance(value, tuple) else value


def _figure(run: Path, row: str) -> float:
    result = read_result(run)
    assert result is not None
    return float(result["figures"][row]["value"])


def _print(seed: int, name: str, place: Path) -> None:
    figures = "".join(f"{_figure(place / name, row):18.1f}" for row in _ROWS)
    print(f"{seed:6}  {name:10}{figures}", flush=True)
