"""The report of a study: one self-contained HTML page, and best.yaml beside it."""

from __future__ import annotations

import base64
import io
import statistics
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import optuna
import yaml
from optuna import visualization
from optuna.trial import FrozenTrial, TrialState

from pmg.config import Config
from storage.errors import StoreError
from storage.grid import canonical
from storage.sampling import split_patients
from storage.store import Store
from tune.advice import Advice, Observed, advise
from tune.best import best_first, retrained, rivals, winner, write_best
from tune.config import SearchConfig
from tune.panels import Shown, draw_side_by_side, slice_of
from tune.space import Space, checked_space
from tune.study import PARENT, StudyError, load_study

__all__ = ["components_advice", "write_report"]

_MOST_PANELS = 4
_SECONDS = ("start", "imports", "engines", "resume", "data", "steps", "checkpoint", "evaluation")
_COMPONENTS = "prior.components"


@dataclass(frozen=True)
class _Retrained:
    """Trainings of a point, or of what it is compared with, with other seeds."""

    name: str
    components: int | None
    values: list[list[float]]  # by objective, by seed
    searched: list[float] | None

    def spread(self, objective: int) -> str:
        values = self.values[objective]
        return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def write_report(where: str, out: Path, name: str | None = None) -> tuple[Path, Path | None]:
    """Write OUT/report.html and OUT/best.yaml; (page, best.yaml or None if no trial is complete).

    where: a search's folder, its journal or a database's URL. Raises StudyError where there is no
    study of a search.
    """
    study = load_study(where, name)
    config, space = _searched(study)
    out.mkdir(parents=True, exist_ok=True)
    best = write_best(out / "best.yaml", config, space, study)
    trials = study.get_trials(deepcopy=False)
    template = resources.files("tune").joinpath("report.html.jinja").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True).from_string(template)
    html = page.render(
        study=study,
        names=study.metric_names,
        directions=[d.name.lower() for d in study.directions],
        untranslated=study.user_attrs.get("untranslated", {}),
        best=best_first(study),
        winner=winner(study),
        trials=trials,
        states=_states(trials),
        hours=_hours(study),
        seconds=_seconds(trials),
        columns=_SECONDS,
        retrained=_retrainings(study, space),
        advice=components_advice(study, space),
        panels=_panels(study, space.base, config),
        figures=list(_figures(study)),
        best_yaml=None if best is None else best.read_text(encoding="utf-8"),
        config=config.to_yaml(),
        number=_number,
        parent=PARENT,
    )
    path = out / "report.html"
    path.write_text(html, encoding="utf-8")
    return path, best


def components_advice(study: optuna.Study, space: Space) -> Advice | None:
    """Advice on K by the first objective; None where no other K was tried.

    From retrainings of one point that differ in K and seed alone, where there are any; else from
    all complete trials, whose other settings differ too.
    """
    fixed = space.base.prior.components

    def observed(trial: FrozenTrial, components: int | None = None) -> Observed:
        assert trial.values is not None
        effective = trial.user_attrs.get("effective_components")
        known = components or trial.params.get(_COMPONENTS, fixed)
        return Observed(int(known), trial.values[0], effective)

    again = retrained(study)
    points = {point for point, components in again if components is not None}
    if points:
        found = [
            observed(trial, components)
            for (point, components), group in again.items()
            if point in points
            for trial in group
        ]
    else:
        found = [observed(trial) for trial in best_first(study)]
    if len({one.components for one in found}) < 2:
        return None
    return advise(found, minimize=study.directions[0].name == "MINIMIZE")


def _searched(study: optuna.Study) -> tuple[SearchConfig, Space]:
    try:
        config = SearchConfig.model_validate(yaml.safe_load(study.user_attrs["search"]))
        base = Config.model_validate(yaml.safe_load(study.user_attrs["base"]))
    except KeyError as error:
        raise StudyError(f"study {study.study_name}: it is of no search: no {error}") from None
    return config, checked_space(config.space, base)


def _states(trials: list[FrozenTrial]) -> dict[str, int]:
    return {
        state.name.lower(): count
        for state in TrialState
        if (count := sum(trial.state is state for trial in trials))
    }


def _hours(study: optuna.Study) -> dict[str, float]:
    """Worker hours of the search, of its retrainings, and in all."""
    search = sum(t.user_attrs.get("worker_seconds", 0) for t in study.get_trials(deepcopy=False))
    final = sum(
        trial.user_attrs.get("worker_seconds", 0)
        for group in (*retrained(study).values(), *rivals(study).values())
        for trial in group
    )
    return {
        "search": search / 3600,
        "retraining": final / 3600,
        "in all": (search + final) / 3600,
    }


def _seconds(trials: list[FrozenTrial]) -> list[tuple[int, dict[str, float]]]:
    """Where each trial's seconds went, as its last attempt had counted them."""
    return [(t.number, t.user_attrs["seconds"]) for t in trials if "seconds" in t.user_attrs]


def _retrainings(study: optuna.Study, space: Space) -> list[_Retrained]:
    numbers = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    found = []
    for (point, components), group in sorted(
        retrained(study).items(), key=lambda item: (item[0][0], item[0][1] or 0)
    ):
        trial = numbers[point]
        own = trial.params.get(_COMPONENTS, space.base.prior.components)
        values = _by_objective(study, group)
        searched = trial.values if components is None else None
        found.append(_Retrained(f"trial {point}", components or own, values, searched))
    for name, group in sorted(rivals(study).items()):
        values = _by_objective(study, group)
        found.append(_Retrained(name, None, values, None))
    return found


def _by_objective(study: optuna.Study, trials: list[FrozenTrial]) -> list[list[float]]:
    return [[t.values[n] for t in trials if t.values] for n in range(len(study.directions))]


def _panels(study: optuna.Study, base: Config, config: SearchConfig) -> str | None:
    """The best trials' translations of a held-out scan's middle, where store and runs are there."""
    runs = [
        (trial, Path(trial.user_attrs["run"]))
        for trial in best_first(study)[:_MOST_PANELS]
        if (Path(trial.user_attrs.get("run", "")) / "model").is_dir()
    ]
    if not runs or base.data.store is None:
        return None
    try:
        store = Store.open(base.data.store)
    except StoreError:
        return None
    _, held = split_patients(store.rows, base.data.validation_fraction, base.data.validation_seed)
    names = sorted(row.volume_id for row in held if row.domain == config.validation.domain)
    if not names:
        return None
    volume = canonical(store.read(names[0]))
    z_mm = volume.affine[2, 3] + 0.5 * (volume.shape[0] - 1) * volume.spacing_mm[0]
    shown = []
    for trial, run in runs:
        assert trial.values is not None
        values = ", ".join(f"{value:.4g}" for value in trial.values)
        view = slice_of(run, volume, config.validation.domain, z_mm)
        shown.append(Shown(f"trial {trial.number}: {values}", view))
    buffer = io.BytesIO()
    draw_side_by_side(shown).savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()


def _figures(study: optuna.Study) -> Iterator[tuple[str, str]]:
    """Optuna's own visualisations, as HTML; plotly's script goes with the first."""
    names = study.metric_names or []
    several = len(names) > 1
    first = True
    for title, draw, by_objective in _DRAWN:
        for number, name in enumerate(names if by_objective else names[:1]):
            keywords: dict[str, Any] = {}
            if by_objective and several:
                keywords = {"target": _value(number), "target_name": name}
            elif by_objective:
                keywords = {"target_name": name}
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    figure = draw(study, **keywords)
            except (ValueError, RuntimeError):  # too few trials, or none that it can show
                continue
            figure.update_layout(height=460, margin={"l": 60, "r": 30, "t": 50, "b": 50})
            heading = f"{title}: {name}" if by_objective else title
            yield heading, figure.to_html(full_html=False, include_plotlyjs=first)
            first = False
    if several and len(names) <= 3:
        figure = visualization.plot_pareto_front(study, target_names=names)
        yield "Pareto front", figure.to_html(full_html=False, include_plotlyjs=first)


def _value(number: int) -> Callable[[FrozenTrial], float]:
    def value(trial: FrozenTrial) -> float:
        return float(trial.values[number])

    return value


# Title, function, whether there is one for each objective.
_DRAWN: tuple[tuple[str, Callable[..., Any], bool], ...] = (
    ("History", visualization.plot_optimization_history, True),
    ("Importances", visualization.plot_param_importances, True),
    ("Slices", visualization.plot_slice, True),
    ("Parallel coordinates", visualization.plot_parallel_coordinate, True),
    ("Steps", visualization.plot_intermediate_values, False),
    ("Timeline", visualization.plot_timeline, False),
)


def _number(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
