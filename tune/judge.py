"""The judge of a trial: translates held-out scans inside the worker that has the model."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pmg.cases import CaseError, find_cases, read_truth
from pmg.config import Config, ConfigError
from pmg.distribution import framed
from pmg.model import Domain, other
from pmg.targets import MOST_TARGETS, Targets
from pmg.training import Training
from pmg.translate import VolumeTranslator
from storage.body import body_mask
from storage.grid import canonical
from storage.sampling import split_patients
from storage.series import find_sources, read_source
from storage.store import Store
from storage.volume import Volume
from tune.objectives import OBJECTIVES, Scene

__all__ = ["Judge", "judge_of"]

T = TypeVar("T")
_SEEDS_TRIED = 1000  # for one that holds out patients of both domains


@dataclass(frozen=True)
class Judge:
    """An observer of `launch` that measures objectives on scans that no trial trains on.

    objectives: names. volumes and most_cases: how many are translated at most. cases: the folder
    of those with truth. The ranks share the scans among them.
    """

    store: str
    fraction: float
    seed: int
    domain: Domain
    volumes: int
    cases: str | None
    most_cases: int
    objectives: tuple[str, ...]

    def __call__(self, training: Training) -> Mapping[str, Any]:
        """objectives by name, and the memory that the largest worker took at its most."""
        was = training.translating_model.training
        model = training.translating_model.eval()
        try:
            translator = VolumeTranslator(model, training.config, self.domain, training.device)
            mine = self._measured(translator, dist.get_rank(), dist.get_world_size())
        finally:
            model.train(was)
        shares: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(shares, (mine, _memory_bytes(training.device)))
        return {
            "objectives": _pooled([amounts for amounts, _ in shares]),
            "memory_bytes": max(memory for _, memory in shares),
        }

    def untranslated(self, config: Config) -> Mapping[str, float]:
        """The objectives of the sources as they are: what a model must beat.

        Raises ConfigError for an objective that these scans have nothing to count for.
        """
        amounts: dict[str, list[float]] = {}
        for scene in _scenes(self, config.data.spacing_mm or (1.0, 1.0, 1.0), 0, 1):
            _measure(self, scene, scene.source, scene.framed.volume, amounts)
        found = _pooled([amounts])
        for name in self.objectives:
            if name not in found:
                where = self.cases if OBJECTIVES[name].of_truth else "the held-out scans"
                raise ConfigError(
                    f"objective {name}: {where} have nothing to count for it; choose another "
                    f"objective or more scans (validation.volumes, data.validation_fraction)"
                )
        return found

    def _measured(
        self, translator: VolumeTranslator, rank: int, world_size: int
    ) -> dict[str, list[float]]:
        amounts: dict[str, list[float]] = {}
        for scene in _scenes(self, translator.spacing_mm, rank, world_size):
            translated = canonical(translator.translate(scene.source))
            _measure(self, scene, translated, translator.on_grid(translated), amounts)
        return amounts


def judge_of(config: Config, names: Sequence[str], validation: Any) -> Judge:
    """The judge of a search. config: of `launch.train.with_store`.

    validation: a `tune.config.ValidationConfig`. Raises ConfigError where the store holds out no
    scans of a domain, with a seed that does.
    """
    data = config.data
    assert data.store is not None
    cases = None if validation.cases is None else str(Path(validation.cases).resolve())
    judge = Judge(
        store=data.store,
        fraction=data.validation_fraction,
        seed=data.validation_seed,
        domain=validation.domain,
        volumes=validation.volumes,
        cases=cases,
        most_cases=validation.most_cases,
        objectives=tuple(names),
    )
    store = Store.open(data.store)
    held = _held(store, judge.fraction, judge.seed)
    for domain in (1, 2):
        if not held[domain]:
            better = next(
                (s for s in range(_SEEDS_TRIED) if all(_held(store, judge.fraction, s).values())),
                None,
            )
            remedy = (
                f"data.validation_seed {better} holds out some of both"
                if better is not None
                else "raise data.validation_fraction"
            )
            raise ConfigError(
                f"config data.validation_fraction: {judge.fraction} with validation_seed "
                f"{judge.seed} holds out no scan of domain {domain} in {data.store}; {remedy}"
            )
    return judge


def _held(store: Store, fraction: float, seed: int) -> dict[int, list[str]]:
    """Volumes of the held-out patients, by domain."""
    _, rows = split_patients(store.rows, fraction, seed)
    return {
        domain: sorted(row.volume_id for row in rows if row.domain == domain) for domain in (1, 2)
    }


@lru_cache(maxsize=1)
def _scenes(
    judge: Judge, spacing_mm: tuple[float, float, float], rank: int, world_size: int
) -> list[Scene]:
    """This rank's share of the scans; read once in a process."""
    store = Store.open(judge.store)
    held = _held(store, judge.fraction, judge.seed)
    targets = [store.read(name) for name in _spread(held[other(judge.domain)], MOST_TARGETS)]
    real = Targets.of(targets, spacing_mm)
    wanted: list[Any] = []
    if any(not OBJECTIVES[name].of_truth for name in judge.objectives):
        wanted += _spread(held[judge.domain], judge.volumes)
    if judge.cases is not None and any(OBJECTIVES[name].of_truth for name in judge.objectives):
        cases = [case for case in find_cases(Path(judge.cases)) if case.truth is not None]
        if not cases:
            raise CaseError(f"cases {judge.cases}: none has a truth")
        wanted += _spread(cases, judge.most_cases)
    scenes = []
    for one in wanted[rank::world_size]:
        if isinstance(one, str):
            name, truth, source = one, None, canonical(store.read(one))
        else:
            sources, _ = find_sources(one.source)
            name, source = one.name, canonical(read_source(sources[0])[0])
            assert one.truth is not None
            truth = read_truth(one.truth, source)
        scenes.append(
            Scene(
                name, source, body_mask(source), framed(source, spacing_mm), truth,
                judge.domain, real,
            )
        )  # fmt: skip
    return scenes


def _measure(
    judge: Judge, scene: Scene, hu: Volume, grid: Volume, amounts: dict[str, list[float]]
) -> None:
    """Add this scan's totals and counts to those of each objective that it has."""
    for name in judge.objectives:
        objective = OBJECTIVES[name]
        if objective.of_truth != (scene.truth is not None):
            continue
        amount = objective.measure(scene, hu.hu, grid)
        if amount is not None:
            pair = amounts.setdefault(name, [0.0, 0.0])
            pair[0] += amount.total
            pair[1] += amount.count


def _pooled(shares: Sequence[Mapping[str, list[float]]]) -> dict[str, float]:
    """Totals over counts, of all ranks."""
    names = dict.fromkeys(name for share in shares for name in share)
    found = {}
    for name in names:
        having = [share[name] for share in shares if name in share]
        found[name] = sum(total for total, _ in having) / sum(count for _, count in having)
    return found


def _memory_bytes(device: torch.device) -> int:
    """The most that this process has taken: of the GPU if it has one, else of memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def _spread(items: Sequence[T], most: int) -> list[T]:
    count = min(len(items), most)
    return [items[n * len(items) // count] for n in range(count)]
