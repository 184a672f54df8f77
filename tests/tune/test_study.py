"""Studies in every kind of storage, shared by processes, some of which are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
from optuna.trial import TrialState
from postgres_server import find_binaries, postgres_server

from tune.study import (
    StudyError,
    counted,
    create_study,
    lease,
    load_study,
    open_storage,
    reconcile,
    without_password,
)

optuna.logging.set_verbosity(optuna.logging.WARNING)
RANDOM = optuna.samplers.RandomSampler(seed=1)


@pytest.fixture(scope="module")
def postgres():
    if find_binaries() is None:
        warnings.warn("PostgreSQL is not installed: its tests are SKIPPED", stacklevel=1)
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    with postgres_server() as url:
        yield url


@pytest.fixture(params=["journal", "sqlite", "postgres"])
def where(request, tmp_path):
    if request.param == "postgres":
        return request.getfixturevalue("postgres")
    path = tmp_path / "study"
    return str(path) if request.param == "journal" else f"sqlite:///{path}.db"


@pytest.fixture
def study(where, request):
    name = request.node.name.replace("[", "-").strip("]")
    return create_study(open_storage(where), name, ["minimize"], RANDOM)


def ask(study, folder: Path | None) -> optuna.Trial:
    trial = study.ask()
    if folder is not None:
        trial.set_user_attr("folder", str(folder))
    return trial


def test_a_trial_that_runs_in_ones_own_folder_is_gone_on_with_and_not_failed(study, tmp_path):
    trial = ask(study, tmp_path)
    x = trial.suggest_float("x", 0, 1)
    (mine,) = reconcile(study, tmp_path, alone=False)
    assert mine.number == trial.number
    again = optuna.Trial(study, mine._trial_id)
    assert again.suggest_float("x", 0, 1) == x
    again.study.tell(again, 3.0)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE]


def test_trials_of_a_driver_that_lives_are_left_alone_and_those_of_a_silent_one_failed(
    study, tmp_path, monkeypatch
):
    other, silent = tmp_path / "other", tmp_path / "silent"
    ask(study, other)
    ask(study, silent)
    monkeypatch.setattr("tune.study.LEASE_S", 0.5)
    with lease(study, other):
        time.sleep(1)
        study.set_user_attr(f"lease:{other}", {"unix_s": time.time()})
        assert reconcile(study, tmp_path / "mine", alone=False) == []
        states = [t.state for t in study.trials]
    assert states == [TrialState.RUNNING, TrialState.FAIL]
    assert "has been silent" in study.trials[1].user_attrs["lost"]
    assert [t.number for t in counted(study.trials)] == [0]


def test_a_trial_without_an_owner_is_ones_own_only_where_nobody_else_can_be(study, tmp_path):
    ask(study, None)
    assert reconcile(study, tmp_path, alone=False) == []
    assert [t.number for t in reconcile(study, tmp_path, alone=True)] == [0]


_ASKING = """
import sys, optuna
from tune.study import create_study, open_storage
optuna.logging.set_verbosity(optuna.logging.WARNING)
where, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
study = create_study(open_storage(where), name, ["minimize"], optuna.samplers.RandomSampler())
for _ in range(count):
    trial = study.ask()
    x = trial.suggest_float("x", -1, 1)
    print(trial.number, flush=True)
    study.tell(trial, x * x)
"""


def asking(where: str, name: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _ASKING, where, name, str(count)], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_processes_at_once_share_a_study_and_one_killed_harms_no_other(where, request):
    name = f"shared-{request.node.callspec.id}"
    create_study(open_storage(where), name, ["minimize"], RANDOM)
    processes = [asking(where, name, count) for count in (15, 15, 10_000)]
    for _ in range(5):
        processes[2].stdout.readline()
    processes[2].send_signal(signal.SIGKILL)
    numbers = [
        line for process in processes for line in process.communicate(timeout=120)[0].split()
    ]
    assert [process.returncode for process in processes] == [0, 0, -signal.SIGKILL]
    assert len(set(numbers)) == len(numbers)  # no number twice
    trials = load_study(where, name).trials
    assert [trial.number for trial in trials] == list(range(len(trials)))
    unfinished = [trial for trial in trials if trial.state is not TrialState.COMPLETE]
    assert len(unfinished) <= 1
    assert len(trials) >= 35


def test_a_database_that_can_not_be_used_is_named_without_its_password(tmp_path):
    url = "postgresql://user:secret@127.0.0.1:1/none"
    assert without_password(url) == "postgresql://user:***@127.0.0.1:1/none"
    with pytest.raises(StudyError) as refused:
        open_storage(url)
    assert "user:***@127.0.0.1:1" in str(refused.value)
    assert "secret" not in str(refused.value)
    with pytest.raises(StudyError, match="expected a file's path, sqlite"):
        open_storage("mysql://host/x")
    with pytest.raises(StudyError, match="no such file"):
        load_study(str(tmp_path / "none"))


def test_a_study_with_other_objectives_is_refused(study):
    with pytest.raises(StudyError, match=r"its directions are \['minimize'\], this search's"):
        create_study(study._storage, study.study_name, ["maximize"], RANDOM)


def test_the_dashboard_reads_what_a_search_writes(study, where):
    from optuna_dashboard._app import create_app  # noqa: PLC0415

    trial = study.ask()
    trial.suggest_float("loss.lambda_kl", 1e-3, 1, log=True)
    study.tell(trial, 0.25)
    app = create_app(open_storage(where))
    answered: list[str] = []
    environment = {"PATH_INFO": f"/api/studies/{study._study_id}", "QUERY_STRING": "after=0"}
    setup_testing_defaults(environment)
    body = b"".join(app(environment, lambda status, headers, *rest: answered.append(status)))
    assert answered == ["200 OK"]
    assert b"loss.lambda_kl" in body
    assert b"0.25" in body
