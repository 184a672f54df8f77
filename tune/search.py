"""Run a search: `python -m tune.search --config tune.yaml --out DIR`, alone or as a Ray job."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import optuna
import ray
import ray.tune
from rich.console import Console

from launch.cluster import cluster
from launch.room import living_nodes
from launch.run_folder import RunBusy, RunFolder
from launch.train import with_store
from pmg.config import Config, ConfigError, LaunchConfig
from tune.best import chosen, write_best
from tune.capacity import CapacityError, make_room_for_trials, trials_at_once
from tune.config import SearchConfig, load_search
from tune.first_points import enqueue, first_points, source_trials
from tune.judge import Judge, judge_of
from tune.population import Population, settle
from tune.sampling import pruner_of, sampler_of
from tune.searcher import EarlyStopping, StudySearch
from tune.space import Space, Values, with_values
from tune.study import (
    CONFIG,
    FINAL,
    JOURNAL,
    StudyError,
    create_study,
    has_trial,
    lease,
    open_storage,
    reconcile,
    trials_in,
)
from tune.table import followed
from tune.trial import TrialRun

__all__ = ["SearchFolder", "search"]

# A trial's own process waits; the CPUs are its workers'. Ray Tune wants to reserve something.
_DRIVER = {"CPU": 0, "memory": 2**20}
_OF_STORE = ("store", "spacing_mm")  # as `with_store` completes them
_INTERRUPTED = 130  # what shells expect of a program that Ctrl-C ended


@dataclass(frozen=True)
class SearchFolder:
    """What lies in the folder of a search."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / CONFIG

    @property
    def journal(self) -> Path:
        return self.root / JOURNAL

    @property
    def trials(self) -> Path:
        return self.root / "trials"

    @property
    def retrained(self) -> Path:
        return self.root / "final"

    @property
    def best(self) -> Path:
        return self.root / "best.yaml"


def search(
    config: SearchConfig, out: Path, *, resume: bool = False, console: Console | None = None
) -> optuna.Study:
    """Search to the budget's end, retrain the chosen points, write best.yaml.

    resume: go on with what is in `out`. Without it a folder with a search is refused; what differs
    in `config` from before is taken as it is now (a larger budget, say).

    Raises ConfigError, StoreError or StudyError before anything is started, RunBusy if another
    process searches there.
    """
    console = console or Console()
    folder = SearchFolder(out.resolve())
    folder.root.mkdir(parents=True, exist_ok=True)
    with RunFolder(folder.root).locked():
        if folder.config.exists() and not resume:
            raise ConfigError(f"search {folder.root}: holds one; add --resume to go on with it")
        base, _ = with_store(config.config())
        space = config.searched()
        space = Space(space.parameters, space.conditions, base)
        names = [objective.name for objective in config.objectives]
        judge = judge_of(base, names, config.validation)
        identity = judge.untranslated(base)
        storage = open_storage(config.storage or str(folder.journal))
        directions = ["minimize" if o.minimized else "maximize" for o in config.objectives]
        earlier = source_trials(config, space)
        offset = trials_in(storage, config.study)
        study = create_study(
            storage,
            config.study,
            directions,
            sampler_of(config.sampler, offset=offset, earlier=earlier),
            pruner_of(config.pruner, config.budget),
        )
        enqueue(study, space, first_points(config, space))
        folder.config.write_text(config.to_yaml(), encoding="utf-8")
        _describe(study, config, base, identity)
        launch = _own_size(base.launch, config)
        with cluster(launch):
            make_room_for_trials(config.resources)
            at_once = trials_at_once(living_nodes(), config.resources)
            console.print(
                f"search {folder.root}: {config.budget.trials} trials of {config.budget.steps} "
                f"steps, {at_once} at once, {config.sampler.name}, early stopping by "
                f"{config.pruner.name}",
                soft_wrap=True,
            )
            trainings = _Trainings(config, folder, space, judge, at_once, console)
            settle(study, folder.root)
            trainings.run(
                study,
                folder.trials,
                config.budget.trials,
                population=Population.of(config, space),
                constraints=config.constraints,
            )
            _retrain(trainings, study)
        path = write_best(folder.best, config, space, study)
        if path is not None:
            console.print(f"best: {path}; pmg train --config {path} --run RUN", soft_wrap=True)
    return study


@dataclass(frozen=True)
class _Trainings:
    """What a search's trials and its retrainings have in common."""

    config: SearchConfig
    folder: SearchFolder
    space: Space
    judge: Judge
    at_once: int
    console: Console

    def run(self, study: optuna.Study, trials: Path, budget: int, **more: Any) -> None:
        """Train a study's trials, to its budget, in folders below `trials`.

        more: of `StudySearch`.
        """
        orphans = reconcile(study, self.folder.root, alone=self.config.storage is None)
        if orphans:
            self.console.print(f"going on with {len(orphans)} trials that were running")
        algorithm = StudySearch(
            study,
            self.space,
            trials,
            objectives=self.judge.objectives,
            judge=self.judge,
            budget=budget,
            orphans=orphans,
            **more,
        )
        with lease(study, self.folder.root), followed(study, budget, self.console):
            self._fit(algorithm, f"ray-{trials.name}")

    def _fit(self, algorithm: StudySearch, name: str) -> None:
        os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", str(self.at_once))
        # Its snapshots are never read: the study remembers.
        os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
        failures = self.config.resources.attempts - 1
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(TrialRun, _DRIVER),
            tune_config=ray.tune.TuneConfig(
                num_samples=-1,
                search_alg=algorithm,
                scheduler=EarlyStopping(algorithm),
                max_concurrent_trials=self.at_once,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=ray.tune.RunConfig(
                name=name,
                storage_path=str(self.folder.root),
                # A trial's run has checkpoints of its own, from which every attempt goes on.
                checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=ray.tune.FailureConfig(max_failures=failures),
                verbose=0,
            ),
        )
        tuner.fit()
        if algorithm.running:  # Ray Tune takes Ctrl-C for its own, and returns
            raise KeyboardInterrupt


def _retrain(trainings: _Trainings, study: optuna.Study) -> None:
    """Retrain the chosen points and their rivals with other seeds, in a study of their own."""
    config, space = trainings.config, trainings.space
    points = chosen(study, config.final, space)
    if not points:
        return
    rivals = {name: config.rival(name) for name in config.final.against}
    wanted: list[tuple[dict[str, Any], Values]] = [
        ({"point": point, "components": components}, values) for point, components, values in points
    ]
    wanted += [
        ({"against": name}, space.nearest(space.of_config(rival))) for name, rival in rivals.items()
    ]
    wanted = [
        (attributes | {"seed": seed}, values)
        for attributes, values in wanted
        for seed in config.final.seeds
    ]
    final = create_study(
        study._storage,
        f"{study.study_name}{FINAL}",
        [direction.name.lower() for direction in study.directions],
        optuna.samplers.RandomSampler(seed=config.sampler.seed),
    )
    for attributes, values in wanted:
        if not has_trial(final, **attributes):
            final.enqueue_trial(space.fixed(values), user_attrs=attributes)
    trainings.console.print(
        f"retraining {len(points) + len(rivals)} points with seeds {list(config.final.seeds)}"
    )

    def of_attributes(searched: Config, attributes: Mapping[str, Any]) -> Config:
        changed = {"train.seed": attributes["seed"]}
        if attributes.get("components") is not None:
            changed["prior.components"] = attributes["components"]
        if "against" in attributes:
            searched = config.rival(attributes["against"])
            changed |= {f"data.{name}": getattr(space.base.data, name) for name in _OF_STORE}
        return with_values(searched, changed)

    trainings.run(final, trainings.folder.retrained, len(wanted), of_attributes=of_attributes)


def _describe(
    study: optuna.Study, config: SearchConfig, base: Config, identity: Mapping[str, float]
) -> None:
    """What a report needs to know, beside the trials."""
    study.set_user_attr("search", config.to_yaml())
    study.set_user_attr("base", base.to_yaml())
    study.set_user_attr("untranslated", dict(identity))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([objective.name for objective in config.objectives])


def _own_size(launch: LaunchConfig, config: SearchConfig) -> LaunchConfig:
    """For a cluster on this machine: as many workers as all trials at once have."""
    took = config.resources
    cores = os.cpu_count() or 1
    trials = max(int(cores / (took.workers * took.cpus_per_worker)), 1)
    trials = min(trials, took.most_at_once or trials)
    return launch.model_copy(update={"workers": trials * took.workers})


@contextmanager
def _quiet() -> Iterator[None]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield


@click.command()
@click.option(
    "--config", "file", type=click.Path(path_type=Path), required=True, help="a YAML file"
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder of the search")
@click.option("--resume", is_flag=True, help="go on with the search in that folder")
def main(file: Path, out: Path, resume: bool) -> None:
    """Search the space of a YAML file.

    Ends with 0 when the budget is used up, 130 when it was stopped, 1 when it failed.
    """
    try:
        with _quiet():
            search(load_search(file), out, resume=resume)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except (ValueError, OSError, StudyError, CapacityError, RunBusy) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
