"""The driver's view of a search: a live table on a terminal, a line for each trial elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.live import Live
from rich.table import Table

from tune.population import ended_by_a_successor
from tune.study import PARENT, begun

__all__ = ["followed", "trial_table"]

_POLL_S = 2.0
_ROWS = 16
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@contextmanager
def followed(study: optuna.Study, budget: int, console: Console) -> Iterator[None]:
    """Show the study's trials while the context lasts."""
    ended = threading.Event()
    thread = threading.Thread(target=_follow, args=(study, budget, console, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _follow(study: optuna.Study, budget: int, console: Console, ended: threading.Event) -> None:
    told = {t.number for t in study.get_trials(deepcopy=False, states=_FINISHED)}
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    if live is not None:
        live.start()
    while True:
        last = ended.is_set()
        trials = study.get_trials(deepcopy=False)
        if live is not None:
            live.update(trial_table(study, trials, budget), refresh=True)
        else:
            for trial in trials:
                if trial.state in _FINISHED and trial.number not in told:
                    told.add(trial.number)
                    console.print(_line(study, trial), soft_wrap=True)
        if last:
            break
        ended.wait(_POLL_S)
    if live is not None:
        live.stop()


def trial_table(study: optuna.Study, trials: list[FrozenTrial], budget: int) -> Table:
    """The newest trials, running ones with their last evaluation."""
    used = begun(trials)
    ended = [trial for trial in used if trial.state in _FINISHED]
    finished = sum(not ended_by_a_successor(trial) for trial in ended)
    table = Table(title=f"{study.study_name}: {finished} of {budget} trials")
    names = study.metric_names or []
    paths = list(dict.fromkeys(path for trial in used for path in trial.params))
    for title in ("", "state", "step", *names, "K eff", "s", *(p.split(".")[-1] for p in paths)):
        table.add_column(title, justify="right", no_wrap=True)
    for trial in used[-_ROWS:]:
        attributes = trial.user_attrs
        values = attributes.get("objectives", {})
        table.add_row(
            str(trial.number),
            trial.state.name.lower(),
            str(attributes.get("step", "")),
            *(_number(values.get(name)) for name in names),
            _number(attributes.get("effective_components")),
            _number(attributes.get("worker_seconds")),
            *(_number(trial.params.get(path)) for path in paths),
        )
    return table


def _line(study: optuna.Study, trial: FrozenTrial) -> str:
    attributes = trial.user_attrs
    values = attributes.get("objectives", {})
    figures = "  ".join(f"{name} {_number(value)}" for name, value in values.items())
    settings = "  ".join(f"{path}={_number(value)}" for path, value in trial.params.items())
    parent = attributes.get(PARENT)
    if parent:
        settings += f"  from trial {parent['number']} at step {parent['step']}"
    error = f"  {attributes['error']}" if "error" in attributes else ""
    return (
        f"trial {trial.number} {trial.state.name.lower()} at step {attributes.get('step', 0)}  "
        f"{figures}  {attributes.get('worker_seconds', 0):.0f} worker s  {settings}{error}"
    )


def _number(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
