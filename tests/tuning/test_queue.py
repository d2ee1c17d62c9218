"""Every job is done once, whoever is killed when: as a property in memory, and with real processes and a real SIGKILL."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from sb3_sparse.tuning.processes import identity, is_gone
from sb3_sparse.tuning.queue import (
    INTERRUPTED,
    MAX_ATTEMPTS,
    PARAMETERS,
    REASON,
    SUPERFLUOUS,
    Job,
    by_job,
    claim,
    fill,
    interrupt,
    is_over,
    outcome,
    release_dead,
    trial_id_of,
    was_killed,
)
from sb3_sparse.tuning.storage import WholeLineBackend, open_storage, shown
from tests.tuning import postgresql

REPOSITORY = Path(__file__).parent.parent.parent
DIRECTIONS = ["minimize", "minimize"]
JOBS = [Job(f"job-{index}", {"index": index}) for index in range(5)]


def make_study(storage=None):
    storage = InMemoryStorage() if storage is None else storage
    return optuna.create_study(storage=storage, study_name="study", directions=DIRECTIONS), storage


def vanish(study, storage, number):
    """What somebody else sees when a trial's process is gone."""
    storage.set_trial_state_values(trial_id_of(study, storage, number), state=TrialState.FAIL)


# --- As a property ---


@given(
    st.lists(st.tuples(st.sampled_from(["fill", "race", "claim", "finish", "fail", "kill"]), st.integers(0, 9)), max_size=40)
)
def test_every_job_is_done_once(actions):
    """``race`` is a second process that fills a queue at the same moment, not seeing what the first one does."""
    study, storage = make_study()
    fill(study, JOBS)
    running, done = [], []

    def act(action, pick):
        if action == "fill":
            fill(study, JOBS)
        elif action == "race":
            name = JOBS[pick % len(JOBS)].name
            job = by_job(study.get_trials())[name]
            if not is_over(job):
                study.enqueue_trial({}, user_attrs={"index": 0, "job": name})
        elif action == "claim":
            trial = claim(study, storage)
            if trial is not None:
                job = trial.user_attrs["job"]
                assert job not in done, "a job that is over is begun again"
                assert job not in [other.user_attrs["job"] for other in running], "two processes at one job"
                running.append(trial)
        elif running:
            trial = running.pop(pick % len(running))
            trial.suggest_float("x", 0, 1)
            if action == "kill":
                vanish(study, storage, trial.number)
                return
            if action == "fail":
                trial.set_user_attr(REASON, "it did not work")
            study.tell(trial, [0, 0] if action == "finish" else None, state=None if action == "finish" else TrialState.FAIL)
            done.append(trial.user_attrs["job"])

    for action, pick in actions:
        act(action, pick)
    while not all(map(is_over, by_job(study.get_trials()).values())):
        for action in ("fill", "claim", "finish"):
            act(action, 0)
    assert fill(study, JOBS) == 0
    assert claim(study, storage) is None
    jobs = by_job(study.get_trials())
    assert set(jobs) == {job.name for job in JOBS}
    for name, trials in jobs.items():
        counted = [trial for trial in trials if not was_killed(trial) and trial.state.is_finished()]
        assert done.count(name) == len(counted) == 1 or (not counted and len(trials) >= MAX_ATTEMPTS)
        assert outcome(trials).number == (counted or trials[-1:])[0].number


def test_a_killed_trial_is_repeated_with_its_parameters_and_not_for_ever():
    study, storage = make_study()
    job = [Job("only", {"index": 1})]
    for attempt in range(MAX_ATTEMPTS):
        assert fill(study, job) == 1
        assert fill(study, job) == 0
        trial = claim(study, storage)
        assert (trial.user_attrs.get(PARAMETERS), trial.user_attrs.get("replaces")) == (
            ({"x": 0.5}, attempt - 1) if attempt else (None, None)
        )
        study.sampler = optuna.samplers.PartialFixedSampler({"x": 0.5}, optuna.samplers.RandomSampler())
        trial.suggest_float("x", 0, 1)
        vanish(study, storage, trial.number)
    assert fill(study, job) == 0
    trials = by_job(study.get_trials())["only"]
    assert is_over(trials)
    assert was_killed(outcome(trials))


def test_an_interruption_is_no_attempt():
    study, storage = make_study()
    for _ in range(MAX_ATTEMPTS + 2):
        assert fill(study, JOBS[:1]) == 1
        trial = claim(study, storage)
        interrupt(study, storage, [os.getpid() + 1])
        assert INTERRUPTED not in study.trials[trial.number].user_attrs
        interrupt(study, storage, [os.getpid()])
        vanish(study, storage, trial.number)
    assert not is_over(by_job(study.get_trials())["job-0"])


def test_the_later_of_two_trials_of_a_job_gives_way():
    study, storage = make_study()
    for _ in range(2):
        study.enqueue_trial({}, user_attrs={"job": "a"})
    first = claim(study, storage)
    assert first.number == 0
    assert claim(study, storage) is None
    assert study.trials[1].user_attrs[REASON] == SUPERFLUOUS
    study.tell(first, [1, 1])
    assert [trial.number for trial in by_job(study.get_trials())["a"]] == [0]


# --- Processes ---


def test_processes_are_told_apart():
    mine = identity()
    assert is_gone(mine) is False
    assert is_gone({**mine, "start": "1"}) is True
    assert is_gone({**mine, "machine": "elsewhere"}) is None
    name, _, space = mine["machine"].split()
    assert is_gone({**mine, "machine": f"{name} another-boot {space}"}) is True
    assert is_gone({**mine, "machine": f"{name} another-boot {space}", "pid": 1}) is True
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    other = identity(process.pid)
    process.send_signal(signal.SIGSTOP)
    assert is_gone(other) is False
    process.kill()
    # A zombie until it is waited for
    deadline = time.monotonic() + 30
    while not is_gone(other) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert is_gone(other) is True
    process.wait()
    assert is_gone(other) is True


def test_only_trials_of_dead_processes_are_released():
    study, storage = make_study()
    fill(study, JOBS[:3])
    alive, dead, remote = (claim(study, storage) for _ in range(3))
    storage.set_trial_user_attr(dead._trial_id, "worker", {**identity(), "start": "1"})
    storage.set_trial_user_attr(remote._trial_id, "worker", {**identity(), "machine": "elsewhere"})
    assert release_dead(study, storage) == [dead.number]
    assert release_dead(study, storage) == []
    assert fill(study, JOBS[:3]) == 1
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.RUNNING, TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING]
    assert (alive.number, study.trials[3].user_attrs["replaces"]) == (0, dead.number)


# --- Journals ---


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
        import sqlite3

        with sqlite3.connect("old.db") as connection:
            connection.execute("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
    with pytest.raises(ValueError, match=message) as error:
        open_storage(storage)
    assert "secret" not in str(error.value)


def test_a_locked_database_is_an_error(tmp_path, monkeypatch):
    import sqlite3

    monkeypatch.chdir(tmp_path)
    open_storage("sqlite:///study.db")
    connection = sqlite3.connect("study.db")
    connection.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ValueError, match="unreachable or locked: database is locked"):
        open_storage("sqlite:///study.db")
    connection.close()
    assert open_storage("sqlite:///study.db")
    assert shown("postgresql://a:b@c/d") == "postgresql://a:***@c/d"


# --- Real processes, really killed ---


@pytest.fixture
def database_url():
    binaries = postgresql.find_binaries()
    if binaries is None:
        pytest.skip("there is no PostgreSQL server: apt-get install postgresql")
    with postgresql.server(binaries) as url:
        yield url


def kill_workers(address, n_jobs=14, n_kills=4):
    """Three workers, of which one is killed now and then and replaced."""
    storage = open_storage(address)
    study, _ = make_study(storage)
    jobs = [Job(f"job-{index}") for index in range(n_jobs)]
    fill(study, jobs)
    generator = random.Random(0)

    def start():
        command = [sys.executable, "-m", "tests.tuning.worker_stub", address, "study"]
        return subprocess.Popen(command, cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"})

    workers = [start() for _ in range(3)]
    finished, kills = {}, 0
    deadline = time.monotonic() + 300
    try:
        while not all(map(is_over, by_job(study.get_trials()).values())):
            assert time.monotonic() < deadline
            for trial in study.get_trials(states=(TrialState.COMPLETE,)):
                finished.setdefault(trial.number, trial.values)
            running = [trial for trial in study.get_trials(states=(TrialState.RUNNING,)) if "worker" in trial.user_attrs]
            if kills < n_kills and running and len(finished) > 2 * kills:
                pid = generator.choice(running).user_attrs["worker"]["pid"]
                victim = next((index for index, worker in enumerate(workers) if worker.pid == pid), None)
                if victim is not None:
                    workers[victim].kill()
                    workers[victim].wait()
                    workers[victim] = start()
                    kills += 1
            release_dead(study, storage)
            fill(study, jobs)
            time.sleep(0.05)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert kills == n_kills
    trials = study.get_trials()
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    # None is lost, none is changed, none is done twice
    assert sorted(trial.user_attrs["job"] for trial in complete) == sorted(job.name for job in jobs)
    assert finished.items() <= {trial.number: trial.values for trial in complete}.items()
    killed = [trial for trial in trials if was_killed(trial)]
    assert len(trials) == len(complete) + len(killed)
    assert 1 <= len(killed) <= n_kills  # a worker may be killed when its trial has just ended
    replaced = {trial.user_attrs["replaces"]: trial for trial in trials if "replaces" in trial.user_attrs}
    assert sorted(replaced) == [trial.number for trial in killed]
    for trial in killed:
        assert replaced[trial.number].user_attrs[PARAMETERS] == trial.params


def test_killed_workers_and_a_journal(tmp_path):
    kill_workers(str(tmp_path / "study.log"))


def test_killed_workers_and_postgresql(database_url):
    kill_workers(database_url)
    with pytest.raises(ValueError, match="password authentication failed") as error:
        open_storage(database_url.replace(postgresql.PASSWORD, "wrong"))
    assert "wrong@" not in str(error.value)
    with pytest.raises(ValueError, match='database "nothing" does not exist'):
        open_storage(database_url.replace("/postgres", "/nothing"))
