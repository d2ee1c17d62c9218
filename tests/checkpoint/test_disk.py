"""Disks that are full, became read-only, or fail in the one rename: the training goes on, and the last checkpoint is whole."""

import errno
import os
import resource
import shutil
import subprocess
import warnings

import pytest
from stable_baselines3 import TD3
from stable_baselines3.common.callbacks import BaseCallback

import sb3_sparse
from sb3_sparse import RunCheckpoint
from sb3_sparse.checkpoint import files
from sb3_sparse.checkpoint.resuming import find_store
from sb3_sparse.checkpoint.store import Found
from tests.checkpoint.breaking import Crash, CrashAt, let_go
from tests.checkpoint.test_resume import small
from tests.helpers import equal_state


class Meanwhile(BaseCallback):
    """Do something at a step, and something else at another."""

    def __init__(self, actions):
        super().__init__()
        self._actions = lambda: actions

    def _on_step(self):
        self._actions().get(self.num_timesteps, lambda: None)()
        return True


def whole_steps(folder):
    """Steps of the checkpoints that can be used, and whether nothing else is there."""
    store = find_store(folder)
    found = [step for step, one in store.candidates() if isinstance(one, Found)]
    assert sorted(found) == store.steps()
    return store.steps()


def train_through(folder, actions, *, warned):
    """100 steps, a checkpoint every 20, whatever happens to the disk."""
    model = small(TD3, "Pendulum-v1")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(100, callback=[Meanwhile(actions), RunCheckpoint(20, folder=folder)])
    said = [str(one.message) for one in caught if "could not be written" in str(one.message)]
    assert len(said) == warned, said
    assert model.num_timesteps == 100
    return model, said


def goes_on_to_the_same_bits(folder, tmp_path):
    """What is in the folder is a run that can be resumed from its last checkpoint."""
    whole = small(TD3, "Pendulum-v1").learn(100)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert equal_state(sb3_sparse.resume(copy, "Pendulum-v1", [Meanwhile({})]), whole)


def mount(folder, options):
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=False, capture_output=True)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 KB: room for two checkpoints and not much more."""
    folder = tmp_path / "small"
    folder.mkdir()
    if mount(folder, "size=300k").returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_and_is_emptied(small_disk, tmp_path):
    other = small_disk / "somebody else's"

    def fill():
        with other.open("wb", buffering=0) as stream:
            try:
                while True:
                    stream.write(bytes(4096))
            except OSError as error:
                assert error.errno == errno.ENOSPC

    _, said = train_through(small_disk, {25: fill, 65: other.unlink}, warned=2)
    assert "could not be written: [Errno 28] No space left on device" in said[0]
    assert "The last one is that of step 20" in said[1]
    # 40 and 60 had no room; nothing of them takes any
    assert whole_steps(small_disk) == [20, 80]
    assert not list(small_disk.rglob(".*"))
    goes_on_to_the_same_bits(small_disk, tmp_path)


def test_a_disk_that_stays_full_to_the_end(small_disk, tmp_path):
    def fill():
        (small_disk / "filled").write_bytes(bytes(shutil.disk_usage(small_disk).free))

    train_through(small_disk, {25: fill}, warned=3)
    assert whole_steps(small_disk) == [20]
    goes_on_to_the_same_bits(small_disk, tmp_path)


def test_a_disk_that_becomes_read_only(small_disk, tmp_path):
    run = small_disk / "run"

    model = small(TD3, "Pendulum-v1")
    callback = RunCheckpoint(20, folder=run)

    def remount():
        callback._store.close()  # a file that is open for writing keeps a file system writable
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)

    with pytest.warns(UserWarning, match=r"step 40 could not be written: \[Errno 30\] Read-only file system"):
        model.learn(100, callback=[Meanwhile({25: remount}), callback])
    assert model.num_timesteps == 100
    assert whole_steps(run) == [20]
    # Before anything is trained
    again = small(TD3, "Pendulum-v1")
    with pytest.raises(
        ValueError, match=r"RunCheckpoint cannot write to `folder` .*other: \[Errno 30\] Read-only file system"
    ):
        again.learn(100, callback=RunCheckpoint(20, folder=small_disk / "other"))
    assert again.num_timesteps == 0
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    goes_on_to_the_same_bits(run, tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"RunCheckpoint cannot write to `folder` .*file/run: .*Not a directory"):
        small(TD3, "Pendulum-v1").learn(100, callback=RunCheckpoint(20, folder=tmp_path / "file" / "run"))


def test_a_limit_on_the_size_of_files(tmp_path):
    """What a quota does: the kernel itself ends a write in its middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(n_bytes):
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))

    try:
        _, said = train_through(tmp_path / "run", {25: limit(3000), 65: limit(before[0])}, warned=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large" in said[0]
    assert whole_steps(tmp_path / "run") == [20, 80]
    assert not list((tmp_path / "run").rglob(".*"))
    goes_on_to_the_same_bits(tmp_path / "run", tmp_path)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT], ids=["full", "broken", "quota"])
def test_the_rename_that_publishes_fails(error, tmp_path, monkeypatch):
    """A folder needs room for another name; it fails when everything else has been written."""
    replaced, failing = os.replace, []

    def replace(source, target):
        if failing and os.path.basename(target).startswith("step-"):
            raise OSError(error, os.strerror(error), str(source), None, str(target))
        replaced(source, target)

    monkeypatch.setattr(files.os, "replace", replace)
    _, said = train_through(tmp_path / "run", {25: lambda: failing.append(1), 65: failing.clear}, warned=2)
    assert os.strerror(error) in said[0]
    assert whole_steps(tmp_path / "run") == [20, 80]
    assert not list((tmp_path / "run").rglob(".*"))
    goes_on_to_the_same_bits(tmp_path / "run", tmp_path)


def test_an_old_checkpoint_that_cannot_be_removed(tmp_path, monkeypatch):
    """It is only in the way: the new one is there, and counts."""
    removed, failing = shutil.rmtree, []

    def rmtree(path, *arguments, **kwargs):
        if failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        removed(path, *arguments, **kwargs)

    monkeypatch.setattr(files.shutil, "rmtree", rmtree)
    train_through(tmp_path / "run", {45: lambda: failing.append(1), 75: failing.clear}, warned=0)
    assert whole_steps(tmp_path / "run") == [60, 80]
    assert not list((tmp_path / "run").rglob(".*"))
    monkeypatch.undo()
    goes_on_to_the_same_bits(tmp_path / "run", tmp_path)


def test_nothing_can_ever_be_written_and_the_training_is_not_lost(tmp_path, monkeypatch):
    def full(file, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    model, said = train_through(tmp_path, {5: lambda: monkeypatch.setattr(files, "write_file", full)}, warned=4)
    assert "The last one is none" in said[0]
    assert equal_state(model, small(TD3, "Pendulum-v1").learn(100))


def test_a_training_that_goes_on_reads_from_a_full_disk(small_disk, tmp_path):
    """Reading needs no room."""
    callbacks = [CrashAt(50), RunCheckpoint(20, folder=small_disk)]
    with pytest.raises(Crash):
        small(TD3, "Pendulum-v1").learn(100, callback=callbacks)
    let_go(callbacks)
    (small_disk / "filled").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with pytest.warns(UserWarning, match="could not be written: .*No space left"):
        model = sb3_sparse.resume(small_disk, "Pendulum-v1", [CrashAt(None)])
    assert equal_state(model, small(TD3, "Pendulum-v1").learn(100))
