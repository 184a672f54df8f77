"""Studies: where they are stored, and whose trials they are when a driver has died.

A trial belongs to the search (a folder) that asked for it, by its attribute `folder`. One process
at a time may search in a folder, since it holds the folder's lock; therefore a trial RUNNING in
one's own folder has lost its driver and is gone on with. Searches in other folders may share the
study: each renews a lease in the study's attributes, and once a lease is old its RUNNING trials
are failed. Optuna's own heartbeat covers `study.optimize` alone, not ask and tell.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
import yaml
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

__all__ = [
    "CONFIG",
    "JOURNAL",
    "LEASE_S",
    "PARENT",
    "StudyError",
    "begun",
    "counted",
    "create_study",
    "has_trial",
    "lease",
    "load_study",
    "open_storage",
    "reconcile",
    "trials_in",
    "without_password",
]

JOURNAL = "study.journal"
CONFIG = "tune.yaml"
FINAL = "-final"  # what the study of the retrainings has behind its name
PARENT = "parent"  # attribute of trials that go on with another's weights, in its place
LEASE_S = 180.0
_RENEWED_EVERY_S = 20.0
_LOST = "lost"  # attribute of trials that were failed for their driver's silence


class StudyError(RuntimeError):
    """A storage that can't be reached, or that does not hold what was asked for."""


def open_storage(where: str) -> BaseStorage:
    """A journal file by its path, or a database by an sqlite:/// or postgresql:// URL.

    Raises StudyError for an address of another kind, and for a database that does not answer.
    """
    scheme = where.partition("://")[0] if "://" in where else ""
    if not scheme:
        return JournalStorage(JournalFileBackend(where))
    if scheme == "sqlite":
        options: dict[str, Any] = {"connect_args": {"timeout": 60}}
    elif scheme in ("postgresql", "postgres", "postgresql+psycopg"):
        where = f"postgresql+psycopg://{where.partition('://')[2]}"
        options = {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10}}
    else:
        raise StudyError(
            f"storage {without_password(where)}: expected a file's path, sqlite:///FILE or "
            f"postgresql://USER@HOST/DATABASE"
        )
    try:
        return RDBStorage(where, engine_kwargs=options)
    except ImportError as error:
        raise StudyError(
            f"storage {without_password(where)}: {error}; pip install 'pmg[postgres]'"
        ) from None
    except Exception as error:  # of SQLAlchemy and of the driver, with the password in some
        reason = str(error).strip().splitlines()[0].replace(where, without_password(where))
        raise StudyError(f"storage {without_password(where)}: {reason}") from None


def without_password(url: str) -> str:
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return url.replace(f":{parts.password}@", ":***@")


def create_study(
    storage: BaseStorage,
    name: str,
    directions: list[str],
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner | None = None,
) -> optuna.Study:
    """The study of that name, made if there is none. Raises StudyError if its objectives differ."""
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        directions=directions,
        sampler=sampler,
        pruner=pruner or optuna.pruners.NopPruner(),
        load_if_exists=True,
    )
    found = [direction.name.lower() for direction in study.directions]
    if found != directions:
        raise StudyError(
            f"study {name}: its directions are {found}, this search's {directions}; choose "
            f"another study name"
        )
    return study


def load_study(where: str, name: str | None = None) -> optuna.Study:
    """An earlier study: of a search's folder, a journal file or a URL; by name, or the only one.

    Raises StudyError naming what is there.
    """
    if "://" not in where and Path(where).is_dir():
        where, own = _of_folder(Path(where))
        name = name or own
    if "://" not in where and not Path(where).is_file():
        raise StudyError(f"study {where}: no such file; expected a search's folder or journal")
    storage = open_storage(where)
    names = [one.study_name for one in storage.get_all_studies()]
    searches = [one for one in names if not one.endswith(FINAL)]
    if name is None and len(searches) == 1:
        name = searches[0]
    if name not in names:
        asked = f"none is named {name!r}" if name else "name one of them"
        raise StudyError(
            f"study {without_password(where)}: it holds {', '.join(searches) or 'none'}; {asked}"
        )
    return optuna.load_study(study_name=name, storage=storage)


def _of_folder(folder: Path) -> tuple[str, str | None]:
    """Storage and name of the study of a search's folder, by its configuration."""
    config = folder / CONFIG
    settings = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
    return settings.get("storage") or str(folder / JOURNAL), settings.get("study")


def has_trial(study: optuna.Study, **attributes: Any) -> bool:
    return any(
        all(trial.user_attrs.get(key) == value for key, value in attributes.items())
        for trial in study.get_trials(deepcopy=False)
    )


def trials_in(storage: BaseStorage, name: str) -> int:
    """Trials of a study, in whatever state; 0 if there is no such study."""
    found = [one._study_id for one in storage.get_all_studies() if one.study_name == name]
    return storage.get_n_trials(found[0]) if found else 0


def counted(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Those that use up the budget: all begun ones but those that succeed another."""
    return [trial for trial in begun(trials) if PARENT not in trial.user_attrs]


def begun(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """All but waiting ones and those whose driver was lost."""
    return [
        trial
        for trial in trials
        if trial.state is not TrialState.WAITING and _LOST not in trial.user_attrs
    ]


@contextmanager
def lease(study: optuna.Study, folder: Path) -> Iterator[None]:
    """Say that this process lives, until the context ends."""
    ended = threading.Event()

    def renew() -> None:
        while True:
            attribute = {"unix_s": time.time(), "host": socket.gethostname(), "pid": os.getpid()}
            try:
                study.set_user_attr(f"lease:{folder}", attribute)
            except Exception:
                optuna.logging.get_logger(__name__).warning("lease not renewed", exc_info=True)
            if ended.wait(_RENEWED_EVERY_S):
                return

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def reconcile(study: optuna.Study, folder: Path, *, alone: bool) -> list[FrozenTrial]:
    """RUNNING trials of this folder, to go on with; those of silent drivers are failed.

    alone: nobody else can use this storage, so that a trial without an owner is one's own (its
    driver died between asking for it and signing it). The caller holds the folder's lock.
    """
    now, attributes = time.time(), study.user_attrs
    mine: list[FrozenTrial] = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        owner = trial.user_attrs.get("folder")
        if owner == str(folder) or (owner is None and alone):
            mine.append(trial)
            continue
        renewed = attributes.get(f"lease:{owner}", {}).get("unix_s")
        started = trial.datetime_start or datetime.fromtimestamp(0)
        silent_s = now - max(renewed or 0.0, started.timestamp())
        if silent_s > LEASE_S:
            _fail(study, trial, f"its driver in {owner} has been silent for {silent_s:.0f} s")
    return mine


def _fail(study: optuna.Study, trial: FrozenTrial, reason: str) -> None:
    storage = study._storage
    try:
        storage.set_trial_user_attr(trial._trial_id, _LOST, reason)
        study.tell(trial.number, state=TrialState.FAIL)
    except (RuntimeError, ValueError):  # another process was first, or the driver has told it
        return
