"""Every job is done once, whoever is gone when: as a property in memory, and what a storage of each kind makes of it."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from sb3_sparse.runs.driver import MAX_ATTEMPTS
from sb3_sparse.tuning.jobs import DRIVER, PARAMETERS, REASON, SUPERFLUOUS, Job, Jobs, by_job, is_over, outcome, was_killed
from sb3_sparse.tuning.storage import WholeLineBackend, open_storage, shown

DIRECTIONS = ["minimize", "minimize"]
JOBS = [Job(f"job-{index}", {"index": index}) for index in range(5)]


def make_study(storage=None):
    storage = InMemoryStorage() if storage is None else storage
    return optuna.create_study(storage=storage, study_name="study", directions=DIRECTIONS), storage


# --- As a property ---


class Shared(Jobs):
    """A driver's view of a study in memory that it shares, whose signs of life nobody asks for."""

    def _record_life(self):
        pass


@given(
    st.lists(
        st.tuples(st.sampled_from(["fill", "race", "claim", "finish", "fail", "kill", "restart"]), st.integers(0, 9)),
        max_size=40,
    )
)
def test_every_job_is_done_once(actions):
    """``race`` is a second driver that fills a study at the same moment, ``kill`` one whose signs of life have ended."""
    study, storage = make_study()
    jobs = Shared(study, storage, JOBS, "me")
    running, done = [], []

    def act(action, pick):
        nonlocal jobs
        if action == "fill":
            jobs.fill()
        elif action == "race":
            name = JOBS[pick % len(JOBS)].name
            if not is_over(by_job(study.get_trials())[name]):
                study.enqueue_trial({}, user_attrs={"index": 0, "job": name})
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
                storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
                return
            jobs.finish(trial, [0, 0] if action == "finish" else None, None if action == "finish" else "it did not work")
            done.append(trial.user_attrs["job"])

    for action, pick in actions:
        act(action, pick)
    while not jobs.is_over:
        for action in ("fill", "claim", "finish"):
            act(action, 0)
    assert jobs.fill() == 0
    assert jobs.claim() is None
    found = by_job(study.get_trials())
    assert set(found) == {job.name for job in JOBS}
    for name, trials in found.items():
        counted = [trial for trial in trials if not was_killed(trial) and trial.state.is_finished()]
        assert done.count(name) == len(counted) == 1 or (not counted and len(trials) >= MAX_ATTEMPTS)
        assert outcome(trials).number == (counted or trials[-1:])[0].number


def test_a_killed_trial_is_repeated_with_its_parameters_and_not_for_ever():
    study, storage = make_study()
    jobs = Jobs(study, storage, JOBS[:1])
    for attempt in range(MAX_ATTEMPTS):
        assert jobs.fill() == (1 if attempt else 0)
        trial = jobs.claim()
        given_ = (trial.user_attrs.get(PARAMETERS), trial.user_attrs.get("replaces"))
        assert given_ == (({"x": 0.5}, attempt - 1) if attempt else (None, None))
        study.sampler = optuna.samplers.PartialFixedSampler({"x": 0.5}, optuna.samplers.RandomSampler())
        trial.suggest_float("x", 0, 1)
        storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
    assert jobs.fill() == 0
    assert jobs.is_over
    assert was_killed(outcome(by_job(study.get_trials())["job-0"]))


def test_the_later_of_two_trials_of_a_job_gives_way():
    study, storage = make_study()
    for _ in range(2):
        study.enqueue_trial({}, user_attrs={"job": "job-0"})
    jobs = Jobs(study, storage, JOBS[:1])
    first = jobs.claim()
    assert first.number == 0
    assert jobs.claim() is None
    assert study.trials[1].user_attrs[REASON] == SUPERFLUOUS
    jobs.finish(first, [1, 1])
    # It may be said again
    jobs.finish(first, [1, 1])
    assert [trial.number for trial in by_job(study.get_trials())["job-0"]] == [0]


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
    assert [Jobs(study, storage, JOBS[:3]).claim().number for _ in range(1)] == [0]
    alone = Jobs(study, storage, JOBS[:3])
    assert [alone.claim().number for _ in range(3)] == [0, 1, 2]


def test_a_trial_that_was_given_away_is_left_alone():
    study, storage = make_study()
    jobs = Jobs(study, storage, JOBS[:1])
    trial = jobs.claim()
    storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
    jobs.finish(trial, [1.0, 2.0], None, {"flops": 2.0})
    jobs.finish(trial, None, "too late")
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
    while not other.fill():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    trial = other.claim()
    assert (trial.number, trial.user_attrs["replaces"]) == (1, 0)
    # Its own signs of life are recorded
    storage.record_heartbeat(trial._trial_id)


def test_whoever_gives_signs_of_life_keeps_its_trial_whatever_it_is_called(tmp_path):
    """Two hosts of one name, say: names of machines decide nothing."""
    storage = server(tmp_path, 3)
    study, _ = make_study(storage)
    alive = Jobs(study, storage, JOBS[:1], "driver-1")
    trial = alive.claim()
    other = Shared(study, storage, JOBS[:1], "driver-2")
    end = time.monotonic() + 4.5
    while time.monotonic() < end:
        assert other.fill() == 0
        time.sleep(0.5)
    alive.close()
    assert study.trials[trial.number].state == TrialState.RUNNING


# --- Journals and databases ---


def test_a_torn_line_does_not_cost_the_journal(tmp_path):
    """Killed in the middle of a line: with Optuna's own file the next line makes the journal unreadable."""

    def tear(file, backend):
        study, _ = make_study(JournalStorage(backend(str(file))))
        study.add_trial(optuna.create_trial(values=[1.0, 2.0]))
        with file.open("a") as stream:
            stream.write('{"op_code":4,"worker_id":"x","stu')
        study = optuna.load_study(study_name="study", storage=JournalStorage(backend(str(file))))
        study.set_user_attr("after", 1)
        study.set_user_attr("and", 2)
        return optuna.load_study(study_name="study", storage=JournalStorage(backend(str(file))))

    with pytest.raises(ValueError, match=r"Expecting|Invalid"):
        tear(tmp_path / "optuna.log", JournalFileBackend)
    study = tear(tmp_path / "own.log", WholeLineBackend)
    assert study.user_attrs == {"after": 1, "and": 2}
    assert study.trials[0].values == [1.0, 2.0]
    # Optuna's own reads it too
    plain = optuna.load_study(study_name="study", storage=JournalStorage(JournalFileBackend(str(tmp_path / "own.log"))))
    assert len(plain.trials) == 1


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


@pytest.mark.parametrize("text", ["no journal\nat all\n", "{}\n{}\n", '{"op_code":4,"study_id":7}\n', "[1]\n[2]\n"])
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
