"""A signal is answered by a checkpoint and an exit code that says so."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from stable_baselines3 import A2C, PPO, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv

import sb3_sparse
from sb3_sparse import RunCheckpoint
from sb3_sparse.checkpoint import files
from sb3_sparse.checkpoint.resuming import find_store
from sb3_sparse.checkpoint.signals import EXIT_CODE, SIGNALS, SignalWatch, Stopped
from tests.checkpoint.breaking import Crash, CrashAt
from tests.checkpoint.subjects import Subject, command
from tests.checkpoint.test_resume import small
from tests.helpers import equal_state


class SendAt(BaseCallback):
    """Send this process a signal at some steps."""

    def __init__(self, number, *steps):
        super().__init__()
        self._due = lambda step: step in steps
        self._number = number

    def _on_step(self):
        if self._due(self.num_timesteps):
            signal.raise_signal(self._number)
        return True


@pytest.fixture(autouse=True)
def handlers():
    """A test leaves signals as they were."""
    before = {number: signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL for number in SIGNALS}
    for number, handler in before.items():
        signal.signal(number, handler)
    yield
    after = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_checkpoint_and_then_the_end(name, tmp_path, capfd):
    model = small(TD3, "Pendulum-v1")
    with pytest.raises(Stopped, match=f"stopped by {name}, checkpoint written at step 37") as stopped:
        model.learn(100, callback=[SendAt(getattr(signal, name), 37), RunCheckpoint(1000, folder=tmp_path)])
    assert isinstance(stopped.value, SystemExit)
    assert stopped.value.code == EXIT_CODE == 75
    captured = capfd.readouterr()
    assert f"{name}: a checkpoint is written at the next step, then the training ends; once more stops at once" in captured.err
    assert (
        f"Stopped by {name} at step 37; it goes on with sb3_sparse.resume or sb3-sparse train --resume {tmp_path}"
        in captured.out
    )
    assert find_store(tmp_path).steps() == [37]


def test_it_goes_on_as_if_nothing_had_been(tmp_path):
    callbacks = lambda *steps: [SendAt(signal.SIGTERM, *steps), RunCheckpoint(1000, folder=tmp_path)]  # noqa: E731
    with pytest.raises(Stopped):
        small(TD3, "Pendulum-v1").learn(100, callback=callbacks(37))
    with pytest.raises(Stopped):
        sb3_sparse.resume(tmp_path, "Pendulum-v1", callbacks(61))
    # Twice at the same step: there is nothing new to write
    assert find_store(tmp_path).steps() == [37, 61]
    model = sb3_sparse.resume(tmp_path, "Pendulum-v1", callbacks())
    assert equal_state(model, small(TD3, "Pendulum-v1").learn(100))


def test_on_policy_at_the_very_next_step(tmp_path):
    make = lambda: PPO("SparseMlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, seed=1, device="cpu")  # noqa: E731
    callbacks = lambda *steps: [SendAt(signal.SIGTERM, *steps), RunCheckpoint(1000, folder=tmp_path)]  # noqa: E731
    with pytest.raises(Stopped, match="at step 100"):
        make().learn(200, callback=callbacks(100))
    assert find_store(tmp_path).read(100).content.tree["rollout"]["n_rows"] == 36
    assert equal_state(sb3_sparse.resume(tmp_path, "CartPole-v1", callbacks()), make().learn(200))


def test_a_second_signal_stops_at_once(tmp_path):
    model = small(TD3, "Pendulum-v1")
    twice = [SendAt(signal.SIGINT, 37), SendAt(signal.SIGINT, 37), RunCheckpoint(1000, folder=tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        model.learn(100, callback=twice)
    assert model.num_timesteps == 37
    assert not (tmp_path / "checkpoints" / "step-000000000037").exists()


def test_a_training_that_an_exception_left_answers_no_more(tmp_path):
    """And whoever goes on in the same process, as in a notebook, may."""
    callbacks = [CrashAt(50), RunCheckpoint(20, folder=tmp_path)]
    with pytest.raises(Crash):
        small(TD3, "Pendulum-v1").learn(100, callback=callbacks)
    assert signal.getsignal(signal.SIGINT) == callbacks[1]._watch._handle
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    model = sb3_sparse.resume(tmp_path, "Pendulum-v1", [CrashAt(None)])
    assert equal_state(model, small(TD3, "Pendulum-v1").learn(100))


def test_trainings_inside_trainings_and_after_others(tmp_path):
    """Whoever is left of them answers, and in the end nobody."""
    heard = []
    signal.signal(signal.SIGTERM, lambda *_: heard.append("me"))
    running = {"outer": True, "inner": True, "third": True}
    watches = {name: SignalWatch(name) for name in running}
    for name, watch in watches.items():
        watch.start(lambda name=name: running[name])
        running["inner"] = running["inner"] and name != "inner"  # an exception has left it
    assert watches["third"]._before[signal.SIGTERM] == watches["outer"]._handle
    watches["third"].stop()
    signal.raise_signal(signal.SIGTERM)
    assert watches["outer"].arrived == signal.SIGTERM
    assert heard == []
    running["outer"] = False
    signal.raise_signal(signal.SIGTERM)
    assert heard == ["me"]
    for watch in watches.values():
        watch.stop()
    signal.raise_signal(signal.SIGTERM)
    assert heard == ["me", "me"]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_who_ignores_a_signal_goes_on_ignoring_it(tmp_path):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        model = small(TD3, "Pendulum-v1")
        model.learn(60, callback=[SendAt(signal.SIGHUP, 37), RunCheckpoint(1000, folder=tmp_path)])
        assert model.num_timesteps == 60
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_without_signals_nothing_is_changed(tmp_path):
    model = small(TD3, "Pendulum-v1")
    with pytest.raises(KeyboardInterrupt):
        model.learn(60, callback=[SendAt(signal.SIGINT, 37), RunCheckpoint(1000, folder=tmp_path, signals=False)])


def test_in_another_thread_it_does_not_listen():
    watch, before = SignalWatch("..."), signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=watch.start, args=(lambda: True,))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before


def test_no_checkpoint_is_another_exit_code(tmp_path, monkeypatch):
    """The disk is full when the signal comes."""

    def full(file, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    model, callback = small(TD3, "Pendulum-v1"), RunCheckpoint(20, folder=tmp_path)

    class Fill(BaseCallback):
        def _on_step(self):
            if self.num_timesteps == 30:
                monkeypatch.setattr(files, "write_file", full)
            return True

    with (
        pytest.warns(
            UserWarning, match="the checkpoint of step 37 could not be written: .*No space left.*The last one is that of"
        ),
        pytest.raises(SystemExit, match=r"stopped by SIGTERM, and no checkpoint could be written: .*No space left") as stopped,
    ):
        model.learn(100, callback=[Fill(), SendAt(signal.SIGTERM, 37), callback])
    assert not isinstance(stopped.value, Stopped)
    assert find_store(tmp_path).steps() == [20]


def test_a_full_disk_does_not_end_a_training(tmp_path, monkeypatch):
    written = files.write_file
    failing = []

    def sometimes(file, data):
        if failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        return written(file, data)

    class Fill(BaseCallback):
        def _on_step(self):
            failing[:] = [1] if 30 <= self.num_timesteps < 70 else []
            return True

    monkeypatch.setattr(files, "write_file", sometimes)
    model = small(TD3, "Pendulum-v1")
    with pytest.warns(UserWarning, match="could not be written: .*The last one is that of step 20") as warned:
        model.learn(100, callback=[Fill(), RunCheckpoint(20, folder=tmp_path)])
    assert len([one for one in warned if "could not be written" in str(one.message)]) == 2
    assert model.num_timesteps == 100
    assert find_store(tmp_path).steps() == [20, 80]
    # What was collected while nothing could be written is in the next one
    failing.clear()
    (tmp_path / "checkpoints" / "step-000000000020" / "manifest.json").unlink()
    whole = small(TD3, "Pendulum-v1").learn(100)
    resumed = sb3_sparse.resume(tmp_path, "Pendulum-v1", [Fill()])
    assert equal_state(resumed, whole)
    assert np.array_equal(resumed.replay_buffer.observations, whole.replay_buffer.observations)


# --- Whole processes ---


def start(arguments, **kwargs):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(arguments, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)


def wait_for(process, folder, pattern):
    deadline = time.monotonic() + 300
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive_in(group):
    listed = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    members = [line.split() for line in listed.splitlines()]
    return [state for pgid, state in members if int(pgid) == group and not state.startswith("Z")]


def test_a_ctrl_c_reaches_every_process_of_the_terminal(tmp_path):
    """Environments in processes of their own live on until the checkpoint is written, and end then."""
    subject = Subject("ppo", env="CartPole-v1", method="rigl", n_envs=2, subprocesses=True, steps=10**6, evaluate_every=10**6)
    process = start(command(subject, tmp_path), start_new_session=True)
    wait_for(process, tmp_path, "checkpoints/step-*")
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == EXIT_CODE, output
    assert "Stopped by SIGINT at step" in output
    assert "Traceback" not in output
    # Nobody is left in the session, but for those that have ended and whom nobody has asked how
    deadline = time.monotonic() + 60
    while alive_in(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)


LEFT = """
import sys
from stable_baselines3 import A2C
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv
from sb3_sparse import RunCheckpoint

if __name__ == "__main__":
    env = make_vec_env("CartPole-v1", 2, vec_env_cls=SubprocVecEnv)
    A2C("MlpPolicy", env, device="cpu").learn(40, callback=RunCheckpoint(20, folder=sys.argv[1]))
    print("done")
    {end}
"""


@pytest.mark.parametrize("end", ["pass", "raise RuntimeError('at the end')"])
def test_processes_that_leave_signals_to_others_do_not_hang_at_exit(end, tmp_path):
    (tmp_path / "script.py").write_text(LEFT.format(end=end))
    process = start([sys.executable, str(tmp_path / "script.py"), str(tmp_path)])
    output, _ = process.communicate(timeout=120)
    assert "done" in output
    assert process.returncode == (0 if end == "pass" else 1), output


def test_workers_are_reached_once_more_after_a_training(tmp_path):
    env = make_vec_env("CartPole-v1", 2, vec_env_cls=SubprocVecEnv)
    model = A2C("MlpPolicy", env, device="cpu")
    model.learn(40, callback=RunCheckpoint(20, folder=tmp_path))
    model.learn(40)
    env.close()
