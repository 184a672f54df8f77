"""What a search is worth: against random search, with early stopping, in orchestration.

python -m benchmarks.tune known               # a known, noisy objective; no training
python -m benchmarks.tune phantom --out DIR   # 12 trials on a phantom, killed once and resumed
python -m benchmarks.tune replay --out DIR    # many searches among trainings made once
python -m benchmarks.tune rival --out DIR BEST.YAML  # beside `faithful`, on others
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import optuna

from benchmarks.tune_known import Outcome, known_search
from benchmarks.tune_phantom import killed_search, phantom_store, print_seconds
from benchmarks.tune_replay import measured, replayed
from benchmarks.tune_rival import compared_with_faithful
from pmg.cli import refusals

_REPEATS = 5


@click.group()
def main() -> None:
    """Measure what a search is worth."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@main.command()
@click.option("--trials", default=60, show_default=True)
def known(trials: int) -> None:
    """A known objective: every sampler against random search, and early stopping against none."""
    print(f"true value of what looked best of {trials} trials; 0.1 is the optimum")
    _compare(lambda *how: known_search(*how[:2], trials, how[2]), ("tpe", "cmaes"), _REPEATS)
    print("the Gaussian process, which takes minutes to propose")
    random = [known_search("random", "none", trials, seed) for seed in range(_REPEATS)]
    _row("gp", [known_search("gp", "none", trials, s) for s in range(_REPEATS)], random)


@main.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="a new folder")
@click.option("--trials", default=12, show_default=True)
@click.option("--steps", default=120, show_default=True, help="of a trial")
@click.option("--kill-after", default=4, show_default=True, help="finished trials")
def phantom(out: Path, trials: int, steps: int, kill_after: int) -> None:
    """A search on a phantom to its end, its driver killed once; where the seconds went."""
    out.mkdir(parents=True, exist_ok=True)
    killed_search(phantom_store(out), out / "search", trials, steps, kill_after)
    print_seconds(out / "search")


@main.command()
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--trials", default=30, show_default=True)
@click.option("--repeats", default=_REPEATS, show_default=True)
@click.option("--grace", default=0, show_default=True, help="step before which none is ended")
def replay(out: Path, trials: int, repeats: int, grace: int) -> None:
    """Train each cell of a grid once, unless OUT holds it; then search among them."""
    out.mkdir(parents=True, exist_ok=True)
    table = measured(phantom_store(out), out / "curves.json")
    ends = sorted(curve[-1] for curve in table.values())
    print(
        f"{len(ends)} trainings: best {ends[0]:.4f}, then {ends[1]:.4f} and {ends[2]:.4f}, "
        f"median {statistics.median(ends):.4f}, worst {ends[-1]:.4f}; value of the best of "
        f"{trials} trials"
    )

    def search(sampler: str, pruner: str, seed: int) -> Outcome:
        return replayed(table, sampler, pruner, trials, seed, grace)

    _compare(search, ("tpe", "cmaes"), repeats)


@main.command()
@click.argument("best", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--seeds", default=3, show_default=True, help="cohorts")
@click.option("--steps", default=1200, show_default=True)
def rival(best: Path, out: Path, seeds: int, steps: int) -> None:
    """A search's best.yaml beside the faithful preset, on cohorts of other seeds."""
    with refusals():
        out.mkdir(parents=True, exist_ok=True)
        compared_with_faithful(best, out, range(21, 21 + seeds), steps)


def _compare(
    search: Callable[[str, str, int], Outcome], samplers: Sequence[str], repeats: int
) -> None:
    """Searches of (sampler, pruner, seed) beside random search, with and without early stopping."""
    random = [search("random", "none", seed) for seed in range(repeats)]
    _row("random", random, random)
    for sampler in samplers:
        _row(sampler, [search(sampler, "none", seed) for seed in range(repeats)], random)
    print("with early stopping (steps: share of those without)")
    for pruner in ("asha", "median", "hyperband"):
        _row(f"tpe, {pruner}", [search("tpe", pruner, s) for s in range(repeats)], random)


def _row(name: str, found: Sequence[Outcome], random: Sequence[Outcome]) -> None:
    values = [one.best for one in found]
    wins = sum(one.best <= other.best for one, other in zip(found, random, strict=True))
    share = sum(one.steps for one in found) / sum(one.steps for one in random)
    print(
        f"  {name:15}  median {statistics.median(values):.3f}  range {min(values):.3f} to "
        f"{max(values):.3f}  better or equal in {wins} of {len(found)}  steps {share:.0%}"
    )


if __name__ == "__main__":
    main()
