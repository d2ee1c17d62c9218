"""Everything is trained once, whatever vanishes: made up engines, and real processes that are really killed."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_sparse.runs import driver as module
from sb3_sparse.runs import local
from sb3_sparse.runs.driver import MAX_ATTEMPTS, Driver, Listed, interruptible, patiently
from sb3_sparse.runs.local import LocalEngine
from sb3_sparse.runs.store import Locked, Store
from tests.runs.subjects import MadeUp, make_result, make_spec, nap

REPOSITORY = Path(__file__).parent.parent.parent


def wait_until(condition, timeout=100):
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


# --- Made up engines ---


@given(st.lists(st.integers(0, 6), max_size=12), st.sets(st.integers(0, 6)), st.integers(1, 3))
def test_what_the_store_has_is_not_trained_again(tmp_path_factory, seeds, known, size):
    store = Store(tmp_path_factory.mktemp("runs"))
    for seed in known:
        store.put(make_result(make_spec(seed), seed))
    engine = MadeUp(lambda spec: make_result(spec, spec.seed), size)
    with Driver(store, engine) as driver:
        results = driver.run([make_spec(seed) for seed in seeds])
    assert [result.mean for result in results] == seeds
    assert sorted(spec.seed for spec in engine.submitted) == sorted(set(seeds) - known)
    assert engine.stopped == 1
    assert {result.spec.seed for result in store.results()} == known | set(seeds)


def test_a_training_that_is_wanted_twice_at_a_time_is_done_once(tmp_path):
    class Twice(Listed):
        def __init__(self):
            self.waiting, self.results, self.told = [make_spec(), make_spec()], {}, 0

        def done(self, spec, result):
            self.told += 1

    engine, plan = MadeUp(make_result), Twice()
    with Driver(Store(tmp_path), engine) as driver:
        driver.work(plan)
    assert (len(engine.submitted), plan.told) == (1, 2)


@pytest.mark.parametrize("n_vanish", range(MAX_ATTEMPTS + 1))
def test_what_vanishes_is_repeated_and_not_for_ever(n_vanish, tmp_path):
    calls = []

    def make(spec):
        calls.append(spec)
        if len(calls) <= n_vanish:
            raise BrokenProcessPool("killed")
        return make_result(spec)

    with Driver(Store(tmp_path), MadeUp(make)) as driver:
        (result,) = driver.run([make_spec()])
    assert len(calls) == min(n_vanish + 1, MAX_ATTEMPTS)
    if n_vanish < MAX_ATTEMPTS:
        assert result.state == "complete"
    else:
        assert (result.state, result.reason) == ("failed", "its process vanished 3 times")
    assert Store(tmp_path).get(make_spec()) == result


def test_what_failed_is_kept_and_tried_again_on_request_once(tmp_path):
    store = Store(tmp_path)
    engine = MadeUp(lambda spec: make_result(spec, state="diverged" if spec.seed else "failed"))
    specs = [make_spec(0), make_spec(1)]
    for retry, n_trained in ((False, 2), (False, 2), (True, 3)):
        with Driver(store, engine, retry=retry) as driver:
            for _ in range(2):
                assert [result.state for result in driver.run(specs)] == ["failed", "diverged"]
        assert len(engine.submitted) == n_trained
    assert store.get(specs[0]).traceback == "Traceback: made up"


def test_an_engine_that_fails_ends_the_work(tmp_path):
    def make(spec):
        raise RuntimeError("no such cluster")

    with pytest.raises(RuntimeError, match="no such cluster"), Driver(Store(tmp_path), MadeUp(make)) as driver:
        driver.run([make_spec()])
    assert Store(tmp_path).results() == []


def test_two_drivers_of_one_store_are_refused(tmp_path):
    with Driver(Store(tmp_path), MadeUp(make_result)):
        engine = MadeUp(make_result)
        with pytest.raises(Locked, match="another process of sb3-sparse works on"), Driver(Store(tmp_path), engine):
            pass
    with Driver(Store(tmp_path), MadeUp(make_result)) as driver:
        assert driver.run([]) == []


@pytest.mark.parametrize("forever", [False, True])
def test_a_full_disk_costs_no_training_unless_it_stays_full(forever, tmp_path, monkeypatch, capsys):
    naps, store = [], Store(tmp_path)
    put = Store.put

    def full(self, result):
        if forever or len(naps) < 2:
            raise OSError(28, "No space left on device")
        return put(self, result)

    monkeypatch.setattr(Store, "put", full)
    monkeypatch.setattr(module.time, "sleep", naps.append)
    with Driver(store, MadeUp(make_result)) as driver:
        if forever:
            with pytest.raises(OSError, match="No space left"):
                driver.run([make_spec()])
            assert 500 < sum(naps) <= 600
        else:
            driver.run([make_spec()])
            assert (naps, len(store.results())) == ([1, 5], 1)
    assert "cannot be written, next attempt in 1 s: [Errno 28] No space left on device" in capsys.readouterr().out
    with pytest.raises(KeyError):
        patiently(lambda: {}["x"], (OSError,), "nothing")


# --- Real processes ---


@pytest.fixture
def naps(monkeypatch):
    """Workers take naps instead of training."""
    monkeypatch.setattr(local, "_execute", nap)


def test_a_killed_worker_costs_nobody_else_anything(naps, tmp_path):
    """One kills itself the first time, one is killed from outside; the others' processes begin each training once."""
    store, engine = Store(tmp_path), LocalEngine(2, tmp_path / "workers.log")
    killed = []

    def watch(driver):
        for running in driver.running:
            begun = running.folder / "begun"
            if running.spec.seed == 3 and not killed and begun.exists() and begun.read_text():
                killed.append(int(begun.read_text()))
                os.kill(killed[0], signal.SIGKILL)

    specs = [make_spec(seed, gamma=2.0 if seed == 3 else 0.1, tau=1 if seed == 1 else 0) for seed in range(6)]
    with Driver(store, engine, watch=watch) as driver:
        results = driver.run(specs)
        pids = engine.pids()
    assert [result.mean for result in results] == list(range(6))
    attempts = [len((store.path(spec) / "begun").read_text().split()) for spec in specs]
    assert attempts == [1, 2, 1, 2, 1, 1]
    assert killed[0] not in pids
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_workers_that_cannot_begin_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_MAX_IDLE_DEATHS", 1)
    engine = LocalEngine(1, tmp_path / "workers.log", ["no_such_module"])
    with (
        pytest.raises(ChildProcessError, match=r"workers end before they do anything, see .*workers.log"),
        Driver(Store(tmp_path), engine) as driver,
    ):
        driver.run([make_spec()])
    assert "No module named 'no_such_module'" in (tmp_path / "workers.log").read_text()


PROGRAM = """
import sys
from pathlib import Path
from sb3_sparse.runs import local
from sb3_sparse.runs.driver import Driver, interruptible
from sb3_sparse.runs.store import Store
from tests.runs.subjects import make_spec, nap

if __name__ == "__main__":
    local._execute = nap
    folder = Path(sys.argv[1])
    with interruptible(), Driver(Store(folder), local.LocalEngine(2, folder / "workers.log")) as driver:
        driver.run([make_spec(seed, gamma=0.1 if seed < 2 else float(sys.argv[2])) for seed in range(4)])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_a_killed_driver_leaves_no_orphans_and_is_continued(number, tmp_path):
    """Also when everything that belongs to a terminal gets the signal, as by SIGHUP when it is closed."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    folder = tmp_path / "runs"
    command = [sys.executable, str(program), str(folder)]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}

    def as_in_a_terminal() -> None:
        # Tests that run under nohup ignore it, and so would the program
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    first = subprocess.Popen(
        [*command, "60"],
        env=env,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_in_a_terminal,
    )
    files = wait_until(lambda: (found := list(folder.glob("*/begun"))) and len(found) == 4 and found)
    pids = {int(line) for file in files for line in wait_until(file.read_text).split()}
    if number == signal.SIGKILL:
        first.kill()
    else:
        os.killpg(first.pid, number)
    _, errors = first.communicate(timeout=60)
    assert number == signal.SIGKILL or "KeyboardInterrupt" in errors
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert sorted(result.spec.seed for result in Store(folder).results()) == [0, 1]
    for file in files:
        if file.with_name("result.json").exists():
            file.write_text("")
    # As it was killed: naps are part of the training's key, so the same ones are cut short from outside
    engine = MadeUp(lambda spec: make_result(spec, spec.seed))
    with Driver(Store(folder), engine) as driver:
        results = driver.run([make_spec(seed, gamma=0.1 if seed < 2 else 60.0) for seed in range(4)])
    assert [result.mean for result in results] == [0, 1, 2, 3]
    assert [spec.seed for spec in engine.submitted] == [2, 3]


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_workers_know_nothing_of_stores_and_studies():
    """What a worker is given and gives back: so nothing of it polls, and one process alone writes."""
    import ast
    import inspect

    from sb3_sparse.runs import training, worker

    for name in (local, worker, training):
        imported = {node.module for node in ast.walk(ast.parse(inspect.getsource(name))) if isinstance(node, ast.ImportFrom)}
        assert not {module for module in imported if module and ("store" in module or "optuna" in module)}
