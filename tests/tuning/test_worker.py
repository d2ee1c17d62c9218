"""What workers and those who start them make of orders, of storages that fail, and of processes that are gone."""

import datetime
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from sb3_sparse.tuning import queue, storage, worker
from sb3_sparse.tuning.pool import Pool
from sb3_sparse.tuning.processes import identity
from sb3_sparse.tuning.queue import Job, claim, fill, release_dead
from sb3_sparse.tuning.storage import open_storage
from sb3_sparse.tuning.study import open_study
from tests.tuning.subjects import make_subject

REPOSITORY = Path(__file__).parent.parent.parent


def make_study(opened=None, jobs=("a", "b")):
    opened = InMemoryStorage() if opened is None else opened
    found = open_study(opened, "study", make_subject(), resume=False)
    fill(found, [Job(name) for name in jobs])
    return found, opened


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- Orders ---


def test_only_wanted_jobs_are_taken_up():
    found, opened = make_study(jobs=[f"search-{index}" for index in range(5)])
    taken = [claim(found, opened, {"search-1", "search-3"}) for _ in range(3)]
    assert [trial and trial.user_attrs["job"] for trial in taken] == ["search-1", "search-3", None]


def test_orders_replace_each_other_and_end():
    first, second = json.dumps(["study", ["a"]]).encode(), json.dumps(["study-report", ["b", "c"]]).encode()
    go_on = threading.Event()

    def lines():
        yield first
        go_on.wait()
        yield second

    orders = worker.Orders(lines())
    wait_until(lambda: orders.current == ("study", {"a"}))
    assert not orders.ended.is_set()
    go_on.set()
    assert orders.ended.wait(60)
    assert orders.current == ("study-report", {"b", "c"})


def test_a_worker_ends_with_the_process_that_started_it(tmp_path):
    """However early that is killed: while the worker still imports what it needs."""
    program = (
        "import subprocess, sys, time\n"
        "worker = subprocess.Popen([sys.executable, '-m', 'sb3_sparse.tuning.worker', sys.argv[1]], stdin=subprocess.PIPE)\n"
        "print(worker.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    env = {**os.environ, storage.STORAGE_VARIABLE: str(tmp_path / "study.log")}
    command = [sys.executable, "-c", program, str(tmp_path)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=REPOSITORY)
    child = identity(int(parent.stdout.readline()))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: queue.is_gone(child))


# --- Storages that fail ---


class Failing(InMemoryStorage):
    """Fails so many times at writing an attribute of a trial."""

    n_failures = 0

    def set_trial_user_attr(self, trial_id, key, value):
        if self.n_failures and key not in (queue.WORKER, queue.JOB):
            self.n_failures -= 1
            raise StorageInternalError("the server restarts")
        super().set_trial_user_attr(trial_id, key, value)


@pytest.fixture
def naps(monkeypatch):
    slept = []
    monkeypatch.setattr(storage.time, "sleep", slept.append)
    return slept


def trained(found, opened, monkeypatch, tmp_path):
    trial = claim(found, opened)
    trial.set_user_attr(queue.JOB, "a")
    trial.set_user_attr("dense", True)
    measures = {"returns": [1.0], "return": 1.0, "bytes": 2.0}
    monkeypatch.setattr(worker, "run_trial", lambda *_: measures)
    monkeypatch.setattr(worker, "_section", lambda *_: {"policy": "MlpPolicy"})
    return trial


def test_a_result_survives_a_storage_that_is_away_for_a_while(naps, monkeypatch, tmp_path):
    found, opened = make_study(Failing())
    trial = trained(found, opened, monkeypatch, tmp_path)
    opened.n_failures = 3
    worker._do(found, opened, trial, tmp_path)
    assert naps == [1, 5, 20]
    assert found.trials[0].state == TrialState.COMPLETE
    assert found.trials[0].values == [1.0, 2.0]
    assert found.trials[0].user_attrs["returns"] == [1.0]


def test_a_storage_that_stays_away_is_not_the_trials_fault(naps, monkeypatch, tmp_path):
    found, opened = make_study(Failing())
    trial = trained(found, opened, monkeypatch, tmp_path)
    opened.n_failures = 10**6
    with pytest.raises(StorageInternalError):
        worker._do(found, opened, trial, tmp_path)
    assert 500 < sum(naps) <= storage.GRACE
    assert found.trials[0].state == TrialState.RUNNING
    # Whoever looks next finds its process gone, and the job waits again
    opened.n_failures = 0
    opened.set_trial_user_attr(trial._trial_id, queue.WORKER, {**identity(), "start": "1"})
    assert release_dead(found, opened) == [0]
    assert queue.was_killed(found.trials[0])
    assert fill(found, [Job("a")]) == 1


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, KeyError])
def test_whatever_goes_wrong_while_sampling_is_the_trials_own_affair(error, monkeypatch, tmp_path):
    found, opened = make_study()

    def fail(*_):
        raise error("no such sample")

    monkeypatch.setattr(worker, "_section", fail)
    worker._do(found, opened, claim(found, opened), tmp_path)
    assert found.trials[0].state == TrialState.FAIL
    assert found.trials[0].user_attrs[queue.REASON].startswith(f"{error.__name__}: ")


def test_a_storage_that_fails_before_the_training_is_not_the_trials_fault(monkeypatch, tmp_path):
    found, opened = make_study()
    trial = trained(found, opened, monkeypatch, tmp_path)

    def fail(*_):
        raise StorageInternalError("the server restarts")

    for name in ("trial_id_of", "_section"):
        monkeypatch.setattr(worker, name, fail)
        with pytest.raises(StorageInternalError):
            worker._do(found, opened, trial, tmp_path)
        assert found.trials[0].state == TrialState.RUNNING


def test_signs_of_life_go_on_after_an_error(monkeypatch, tmp_path, capsys):
    opened = open_storage(str(tmp_path / "study.log"))
    found, _ = make_study(opened)
    trial = claim(found, opened)
    file = storage.life_file(opened, trial._trial_id)
    touched = []

    def touch(self, *_):
        touched.append(self)
        if len(touched) == 2:
            raise OSError("the disk is full")

    monkeypatch.setattr(worker, "HEARTBEAT", 0.01)
    monkeypatch.setattr(Path, "touch", touch)
    with worker.signs_of_life(opened, trial._trial_id):
        wait_until(lambda: len(touched) > 3)
    assert set(touched) == {file}
    assert "no sign of life could be recorded: the disk is full" in capsys.readouterr().out


def test_workers_are_ended_even_if_the_storage_is_gone(tmp_path, monkeypatch):
    opened = open_storage(str(tmp_path / "study.log"))
    make_study(opened)
    pool = Pool(opened, str(tmp_path / "study.log"), ["study"], tmp_path, 1)
    pool._start(0)
    process = pool._workers[0][0]

    def fail(*_):
        raise StorageInternalError("connection refused")

    monkeypatch.setattr("sb3_sparse.tuning.pool.load_study", fail)
    with pytest.raises(StorageInternalError):
        pool.stop()
    assert process.poll() is not None
    assert not pool._workers


# --- Processes that are gone ---


def test_journals_know_of_processes_of_other_machines_too(tmp_path):
    opened = open_storage(str(tmp_path / "study.log"))
    found, _ = make_study(opened)
    alive, gone = (claim(found, opened) for _ in range(2))
    for trial in (alive, gone):
        opened.set_trial_user_attr(trial._trial_id, queue.WORKER, {**identity(), "machine": "a container of before"})
    with worker.signs_of_life(opened, alive._trial_id), worker.signs_of_life(opened, gone._trial_id):
        files = [storage.life_file(opened, trial._trial_id) for trial in (alive, gone)]
        wait_until(lambda: all(file.exists() for file in files))
        long_ago = time.time() - storage.GRACE - 1
        os.utime(files[1], (long_ago, long_ago))
        assert release_dead(found, opened) == [gone.number]
        assert not files[1].exists()
        assert release_dead(found, opened) == []
    assert not files[0].exists()


def test_a_trial_without_any_sign_of_life_is_given_a_while(tmp_path, monkeypatch):
    opened = open_storage(str(tmp_path / "study.log"))
    found, _ = make_study(opened)
    trial = claim(found, opened)
    opened.set_trial_user_attr(trial._trial_id, queue.WORKER, {**identity(), "machine": "a container of before"})
    assert release_dead(found, opened) == []

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.now(tz) + datetime.timedelta(seconds=storage.GRACE + 1)

    monkeypatch.setattr(queue, "datetime", Later)
    assert release_dead(found, opened) == [trial.number]


def test_a_relative_journal_survives_a_process_that_held_its_lock(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    opened = open_storage("out/study.log")
    lock = storage._journals[opened].with_name("study.log.lock")
    opened._backend._lock.acquire()
    assert lock.resolve(strict=True) == tmp_path / "out" / "study.log"  # what the lock's age is read from


def test_a_study_that_was_killed_at_birth_is_taken_over():
    opened = InMemoryStorage()
    subject = make_subject()
    optuna.create_study(storage=opened, study_name="study", directions=["maximize", "minimize"])
    found = open_study(opened, "study", subject, resume=True)
    assert open_study(opened, "study", subject, resume=True)._study_id == found._study_id
    assert found.metric_names == ["return", "bytes"]
    # Somebody else's study, with trials or with other directions, is not
    optuna.create_study(storage=opened, study_name="other", directions=["maximize", "minimize"]).ask()
    optuna.create_study(storage=opened, study_name="third", directions=["minimize", "minimize"])
    for name in ("other", "third"):
        with pytest.raises(ValueError, match="was not made by sb3-sparse tune"):
            open_study(opened, name, subject, resume=True)


def test_workers_import_what_registers_the_environment(tmp_path, monkeypatch):
    (tmp_path / "my_environments.py").write_text("import pathlib\npathlib.Path(__file__).with_name('imported').touch()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    pool = Pool(open_storage(str(tmp_path / "study.log")), str(tmp_path / "study.log"), [], tmp_path, 1, ["my_environments"])
    pool._start(0)
    try:
        wait_until((tmp_path / "imported").exists)
    finally:
        pool.stop()
