"""Every job is done once, whoever is gone when: as a property in memory, and what a storage of each kind makes of it."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from sb3_sparse.runs.driver import MAX_ATTEMPTS
from sb3_sparse.tuning.jobs import DRIVER, Jobs, by_job, is_over, was_killed
from sb3_sparse.tuning.storage import open_storage, shown

DIRECTIONS = ["minimize", "minimize"]
JOBS = [f"job-{index}" for index in range(5)]
#: What a trial that went well is told.
KNOWN = {"return": 1.0, "bytes": 2.0}
SUBJECT = SimpleNamespace(objectives=("return", "bytes"))


def make_study(storage=None):
    storage = InMemoryStorage() if storage is None else storage
    return optuna.create_study(storage=storage, study_name="study", directions=DIRECTIONS), storage


# --- As a property ---


class Shared(Jobs):
    """A driver's view of a study in memory that it shares, whose signs of life nobody asks for."""

    def __init__(self, study, storage, names, driver=None):
        super().__init__(study, storage, SUBJECT, names, driver)

    def _record_life(self):
        pass


def kill(jobs, trial):
    """Signs of life have ended, and somebody has noticed."""
    jobs.storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
    jobs._mine.pop(trial._trial_id)


@given(
    st.lists(
        st.tuples(st.sampled_from(["look", "race", "claim", "finish", "fail", "kill", "restart"]), st.integers(0, 9)),
        max_size=40,
    )
)
def test_every_job_is_done_once(actions):
    """``race`` is a second driver that lists the same job at the same moment."""
    study, storage = make_study()
    jobs = Shared(study, storage, JOBS, "me")
    running, done = [], []

    def act(action, pick):
        nonlocal jobs
        if action == "look":
            jobs.look()
        elif action == "race":
            name = JOBS[pick % len(JOBS)]
            if not is_over(by_job(study.get_trials())[name]):
                study.enqueue_trial({}, user_attrs={"job": name})
        elif action == "claim":
            trial = jobs.claim()
            if trial is not None:
                job = trial.user_attrs["job"]
                assert job not in done, "a job that is over is begun again"
                assert job not in [other.user_attrs["job"] for other in running], "one job twice"
                running.append(trial)
        elif action == "restart":
            # The driver is gone and comes back: what it was at, it takes up again
            running.clear()
            jobs = Shared(study, storage, JOBS, "me")
        elif running:
            trial = running.pop(pick % len(running))
            trial.suggest_float("x", 0, 1)
            if action == "kill":
                kill(jobs, trial)
                return
            jobs.finish(trial, None if action == "finish" else "it did not work", KNOWN)
            done.append(trial.user_attrs["job"])

    for action, pick in actions:
        act(action, pick)
    while not jobs.is_over:
        for action in ("claim", "finish"):
            act(action, 0)
    n_trials = len(study.trials)
    assert jobs.claim() is None
    assert len(study.trials) == n_trials
    found = by_job(study.get_trials())
    assert set(found) == set(JOBS)
    for name, trials in found.items():
        counted = [trial for trial in trials if not was_killed(trial) and trial.state.is_finished()]
        assert done.count(name) == len(counted) == 1 or (not counted and len(trials) >= MAX_ATTEMPTS)
        assert all(map(was_killed, trials[:-1]))


def test_a_killed_trial_is_repeated_with_its_parameters_and_not_for_ever():
    study, storage = make_study()
    jobs = Shared(study, storage, JOBS[:1])
    for attempt in range(MAX_ATTEMPTS):
        trial = jobs.claim()
        assert trial.params == ({"x": 0.5} if attempt else {})
        # Optuna's own record of it
        assert RetryHeartbeatStaleTrialCallback.retry_history(study.trials[attempt]) == list(range(attempt))
        study.sampler = optuna.samplers.PartialFixedSampler({"x": 0.5}, optuna.samplers.RandomSampler())
        trial.suggest_float("x", 0, 1)
        kill(jobs, trial)
    assert jobs.claim() is None
    assert jobs.is_over
    assert jobs.counts() == (1, 1)
    assert was_killed(by_job(study.get_trials())["job-0"][-1])


def test_of_two_trials_of_a_job_the_first_counts():
    study, storage = make_study()
    for _ in range(2):
        study.enqueue_trial({}, user_attrs={"job": "job-0"})
    drivers = [Shared(study, storage, JOBS[:1], name) for name in ("one", "two")]
    first = drivers[0].claim()
    assert first.number == 0
    assert drivers[0].claim() is drivers[1].claim() is None
    drivers[0].finish(first, None, KNOWN)
    # It may be said again
    drivers[0].finish(first, None, KNOWN)
    assert [trial.number for trial in by_job(study.get_trials())["job-0"]] == [0]
    assert [jobs.claim() for jobs in drivers] == [None, None]
    assert all(jobs.is_over for jobs in drivers)


def test_what_earlier_versions_made_superfluous_or_interrupted_counts_nothing():
    study, storage = make_study()
    for attributes in ({"reason": "superfluous"}, *[{"interrupted": True}] * MAX_ATTEMPTS):
        study.add_trial(optuna.create_trial(state=TrialState.FAIL, user_attrs={"job": "job-0", **attributes}))
    jobs = Shared(study, storage, JOBS[:1])
    assert not jobs.is_over
    assert jobs.claim().number == MAX_ATTEMPTS + 1


def test_a_driver_that_comes_back_goes_on_with_its_own_trials_alone():
    study, storage = make_study()
    first = [Shared(study, storage, JOBS[:3], name) for name in ("me", "other")]
    mine, others = first[0].claim(), first[1].claim()
    mine.suggest_float("x", 0, 1)
    assert [study.trials[trial.number].user_attrs[DRIVER] for trial in (mine, others)] == ["me", "other"]
    again = Shared(study, storage, JOBS[:3], "me")
    taken = [again.claim() for _ in range(3)]
    assert [trial and trial.number for trial in taken] == [mine.number, 2, None]
    assert taken[0].params == mine.params
    # Whoever has a study for itself takes up everything, that of earlier versions' workers too
    storage.set_trial_user_attr(others._trial_id, "worker", {"machine": "elsewhere", "pid": 1, "start": "1"})
    alone = Shared(study, storage, JOBS[:3])
    assert [alone.claim().number for _ in range(3)] == [0, 1, 2]


def test_a_trial_that_was_given_away_is_left_alone():
    study, storage = make_study()
    jobs = Shared(study, storage, JOBS[:1])
    trial = jobs.claim()
    storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
    jobs.finish(trial, None, KNOWN)
    jobs.finish(trial, "too late")
    assert study.trials[0].values is None
    assert was_killed(study.trials[0])


# --- Signs of life ---


def server(tmp_path, grace):
    """A database as drivers of several machines share it: signs of life, the clock being the database's."""
    return RDBStorage(f"sqlite:///{tmp_path / 'server.db'}", heartbeat_interval=1, grace_period=grace)


def test_a_machine_that_dies_before_its_first_sign_of_life_leaves_no_trial_for_ever(tmp_path, monkeypatch):
    """Its trial has a sign of life before it is running, so whoever looks later finds it stopped."""
    storage = server(tmp_path, 1)
    study, _ = make_study(storage)

    class Gone(Exception):
        pass

    def die(*_, **__):
        raise Gone

    dying = Shared(study, storage, JOBS[:1], "dying")
    for place in ("set_trial_state_values", "set_trial_user_attr"):
        with monkeypatch.context() as patch:
            patch.setattr(storage, place, die)
            with pytest.raises(Gone):
                dying.claim()
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING]
    other = Shared(study, storage, JOBS[:1], "other")
    assert other.claim() is None
    deadline = time.monotonic() + 30
    while (trial := other.claim()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert RetryHeartbeatStaleTrialCallback.retried_trial_number(study.trials[trial.number]) == 0
    assert trial.number == 1
    # Its own signs of life are recorded
    storage.record_heartbeat(trial._trial_id)


def test_whoever_gives_signs_of_life_keeps_its_trial_whatever_it_is_called(tmp_path):
    """Two hosts of one name, say: names of machines decide nothing."""
    storage = server(tmp_path, 3)
    study, _ = make_study(storage)
    alive = Jobs(study, storage, SUBJECT, JOBS[:1], "driver-1")
    trial = alive.claim()
    other = Shared(study, storage, JOBS[:1], "driver-2")
    end = time.monotonic() + 4.5
    while time.monotonic() < end:
        assert other.claim() is None
        time.sleep(0.5)
    alive.close()
    assert [other.state for other in study.trials] == [TrialState.RUNNING]
    assert study.trials[0].number == trial.number


# --- Journals and databases ---


def test_a_torn_line_does_not_cost_the_journal(tmp_path):
    """Killed in the middle of a line: with Optuna's own file the next line makes the journal unreadable."""

    def tear(file, opened):
        study, _ = make_study(opened(str(file)))
        study.add_trial(optuna.create_trial(values=[1.0, 2.0]))
        with file.open("a") as stream:
            stream.write('{"op_code":4,"worker_id":"x","stu')
        study = optuna.load_study(study_name="study", storage=opened(str(file)))
        study.set_user_attr("after", 1)
        study.set_user_attr("and", 2)
        return optuna.load_study(study_name="study", storage=opened(str(file)))

    with pytest.raises(ValueError, match=r"Expecting|Invalid"):
        tear(tmp_path / "optuna.log", lambda file: JournalStorage(JournalFileBackend(file)))
    study = tear(tmp_path / "own.log", open_storage)
    assert study.user_attrs == {"after": 1, "and": 2}
    assert study.trials[0].values == [1.0, 2.0]
    # Optuna's own reads it too
    plain = optuna.load_study(study_name="study", storage=JournalStorage(JournalFileBackend(str(tmp_path / "own.log"))))
    assert len(plain.trials) == 1
    # In its first line
    (tmp_path / "first.log").write_text('{"op_code":0,"wor')
    make_study(open_storage(str(tmp_path / "first.log")))
    assert len(optuna.get_all_study_summaries(open_storage(str(tmp_path / "first.log")))) == 1


def test_databases_in_files_write_ahead_and_survive_sigkill(tmp_path):
    """A driver that is killed while it writes leaves a database that opens."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    program = (
        "import sys, optuna\nfrom sb3_sparse.tuning.storage import open_storage\n"
        "study = optuna.create_study(storage=open_storage(sys.argv[1]), study_name='study')\n"
        "print(1, flush=True)\nwhile True:\n    study.tell(study.ask(), 1.0)\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", program, url], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=dict(os.environ)
    )
    writer.stdout.readline()
    # Others read meanwhile
    reader = optuna.load_study(storage=open_storage(url), study_name="study")
    deadline = time.monotonic() + 60
    while len(reader.trials) < 3:
        assert time.monotonic() < deadline
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    with sqlite3.connect(tmp_path / "study.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert len(optuna.load_study(storage=open_storage(url), study_name="study").trials) >= 3


@pytest.mark.parametrize(
    "text", ["no journal\nat all\n", "no journal\nat all", "{}\n{}\n", '{"op_code":4,"study_id":7}\n', "[1]\n[2]\n"]
)
def test_other_files_are_no_journals(tmp_path, text):
    file = tmp_path / "other.log"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"`--storage` .*other.log is not a journal of Optuna .*: give another name"):
        open_storage(str(file))
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("study.txt", r"`--storage` must be a journal, NAME.log, or a database's URL .*, got 'study.txt'"),
        ("nowhere/study.log", r"`--storage` nowhere/study.log cannot be made: there is no folder nowhere"),
        ("folder.log", r"`--storage` folder.log is a folder"),
        ("mongodb://user:secret@host/x", r"`--storage` 'mongodb://user:\*\*\*@host/x' is neither a journal .* nor a database"),
        ("sqlite:///nowhere/study.db", r"cannot be used, it is unreachable or locked: unable to open database file"),
        ("sqlite:///text.db", r"cannot be used, it is unreachable or locked: file is not a database"),
        ("sqlite:///old.db", r"`--storage` sqlite:///old.db is of another version of Optuna: "),
        ("postgresql://user:secret@127.0.0.1:1/x", r"`--storage` postgresql://user:\*\*\*@127.0.0.1:1/x cannot be used"),
    ],
)
def test_bad_storages_are_named_without_passwords(tmp_path, monkeypatch, storage, message):
    monkeypatch.chdir(tmp_path)
    Path("folder.log").mkdir()
    Path("text.db").write_text("this is a text of some length, and no database at all" * 30)
    if storage.endswith("old.db"):
        open_storage(storage)
        with sqlite3.connect("old.db") as connection:
            connection.execute("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
    with pytest.raises(ValueError, match=message) as error:
        open_storage(storage)
    assert "secret" not in str(error.value)


def test_a_locked_database_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    connection = sqlite3.connect("study.db")
    connection.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ValueError, match="unreachable or locked: database is locked"):
        open_storage("sqlite:///study.db")
    connection.close()
    assert open_storage("sqlite:///study.db")
    assert shown("postgresql://a:b@c/d") == "postgresql://a:***@c/d"
