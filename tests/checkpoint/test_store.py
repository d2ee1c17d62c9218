"""Checkpoints on the disk: whole or not at all, whatever fails, and whatever is damaged is refused by name."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sb3_sparse.checkpoint import files
from sb3_sparse.checkpoint.store import Content, Found, Refused, Store


def content(store, step):
    """Something that only this step has, and a blob that all have."""
    blobs = [store.add_blob(b"common" * 100), store.add_blob(f"of step {step}".encode() * 50)]
    return Content({"step": step, "blobs": blobs}, {"weights": np.full(300, step, np.float32), "none": np.zeros(0)}, blobs)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "checkpoints")


def publish(store, run, step, keep=2):
    return store.publish(run, step, content(store, step), {"versions": {}}, keep)


def newest(store):
    """The step that would be taken, when everything it holds has been read."""
    for step, found in store.candidates():
        if isinstance(found, Found):
            try:
                assert found.content.tree["step"] == step
                assert (found.content.arrays["weights"] == step).all()
                assert [len(store.blob(blob)) for blob in found.content.tree["blobs"]] == [600, 50 * len(f"of step {step}")]
            except Refused:
                continue
            return step
    return None


def test_what_is_published_is_read(store):
    run = store.open({"every": 5})
    for step in (5, 10, 15):
        publish(store, run, step)
    assert store.steps() == [10, 15]
    assert newest(store) == 15
    assert store.run() == run
    assert store.options() == {"every": 5}
    # The blob of the one that was forgotten is gone, and nothing half-written is left
    assert len(list((store.folder / "blobs").iterdir())) == 3
    assert {path.name for path in store.folder.iterdir()} == {
        *("run.json", "lock", "blobs"),
        *("step-000000000010", "step-000000000015"),
    }


def test_a_shared_blob_is_written_once(store):
    run = store.open({"every": 5})
    publish(store, run, 5)
    blob = store.folder / "blobs" / store.add_blob(b"common" * 100)
    before = blob.stat().st_mtime_ns, blob.stat().st_ino
    publish(store, run, 10)
    assert (blob.stat().st_mtime_ns, blob.stat().st_ino) == before


# --- Whose it is ---


def test_one_training_at_a_time(store):
    store.open({"every": 1})
    with pytest.raises(ValueError, match=rf"is in use by process {os.getpid()} on .*: only one training can go on here"):
        Store(store.folder).open({"every": 1})
    store.close()
    Store(store.folder).open({"every": 1})


def test_the_lock_goes_with_its_process(store):
    code = f"from sb3_sparse.checkpoint.store import Store; from pathlib import Path; import os, signal\n\
Store(Path({str(store.folder)!r})).open({{'every': 1}}); os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == -9
    store.open({"every": 1})


def test_checkpoints_of_another_training_are_not_overwritten(store):
    publish(store, store.open({"every": 5}), 5)
    store.close()
    with pytest.raises(ValueError, match=r"holds checkpoints of another training, the last of step 5: go on with that one"):
        store.open({"every": 5})
    with pytest.raises(ValueError, match=r"holds the checkpoints of another run"):
        store.open({"every": 5}, "somebody else's")
    assert newest(store) == 5
    assert store.open({"every": 5}, store.run()) == store.run()


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Store(tmp_path / "file" / "checkpoints").open({"every": 5})


# --- Damage ---


def _flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _truncate(file):
    file.write_bytes(file.read_bytes()[:-7])


DAMAGE = {
    "arrays flipped": (lambda step, blob: _flip(step / "arrays.npz"), r"arrays\.npz is not what was written"),
    "arrays torn": (lambda step, blob: _truncate(step / "arrays.npz"), r"arrays\.npz is torn: \d+ bytes of \d+"),
    "arrays missing": (lambda step, blob: (step / "arrays.npz").unlink(), r"arrays\.npz cannot be read"),
    "state flipped": (lambda step, blob: _flip(step / "state.json"), r"state\.json is not what was written"),
    "state empty": (lambda step, blob: (step / "state.json").write_text(""), r"state\.json is torn: 0 bytes"),
    "manifest torn": (lambda step, blob: _truncate(step / "manifest.json"), "has no manifest that can be read"),
    "manifest missing": (lambda step, blob: (step / "manifest.json").unlink(), "has no manifest that can be read"),
    "manifest of another kind": (lambda step, blob: (step / "manifest.json").write_text("[1]"), "has no manifest that can be"),
    "blob torn": (lambda step, blob: _truncate(blob), "which is missing or torn"),
    "blob missing": (lambda step, blob: blob.unlink(), "which is missing or torn"),
    "folder empty": (lambda step, blob: (shutil.rmtree(step), step.mkdir()), "has no manifest that can be read"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_refused_and_the_previous_taken(store, how):
    run = store.open({"every": 5})
    for step in (5, 10):
        publish(store, run, step)
    folder = store.folder / "step-000000000010"
    blob = store.folder / "blobs" / store.read(10).content.tree["blobs"][1]
    damage, message = DAMAGE[how]
    damage(folder, blob)
    with pytest.raises(Refused, match=message):
        store.read(10)
    assert newest(store) == 5
    # Whoever goes on from there replaces it
    publish(store, run, 8)
    assert store.steps() == [5, 8]
    publish(store, run, 10)
    assert newest(store) == 10


def test_every_flipped_bit_of_a_manifest_is_seen(store):
    run = store.open({"every": 5})
    publish(store, run, 5)
    file = store.folder / "step-000000000005" / "manifest.json"
    data = file.read_bytes()
    for position in range(0, len(data), 7):
        file.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(Refused):
            store.read(5)
    file.write_bytes(data)
    assert newest(store) == 5


def test_a_blob_whose_content_changed_is_refused_when_it_is_read(store):
    run = store.open({"every": 5})
    for step in (5, 10):
        publish(store, run, step)
    _flip(store.folder / "blobs" / store.read(10).content.tree["blobs"][1])
    assert newest(store) == 5


def test_foreign_and_later_checkpoints(store, tmp_path):
    run = store.open({"every": 5})
    publish(store, run, 5)
    other = Store(tmp_path / "other")
    publish(other, other.open({"every": 5}), 9)
    shutil.copytree(other.folder / "step-000000000009", store.folder / "step-000000000009")
    with pytest.raises(Refused, match="is a checkpoint of step 9 of run"):
        store.read(9)
    shutil.copytree(store.folder / "step-000000000005", store.folder / "step-000000000007")
    with pytest.raises(Refused, match="is a checkpoint of step 5 of run"):
        store.read(7)
    for change, message in (({"version": 2}, "by a later version of sb3_sparse"), ({"format": "zip"}, "manifest says 'zip'")):
        manifest = json.loads((store.folder / "step-000000000005" / "manifest.json").read_text())
        (store.folder / "step-000000000007" / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(Refused, match=message):
            store.read(7)
    assert newest(store) == 5


def test_a_run_whose_name_is_lost_goes_on(store):
    run = store.open({"every": 5})
    publish(store, run, 5)
    (store.folder / "run.json").write_text("{")
    assert store.run() is None
    assert newest(store) == 5
    store.close()
    with pytest.raises(ValueError, match=r"run\.json cannot be read"):
        store.options()


# --- Whatever fails while one is written ---


class Fault(OSError):
    """What a test made fail."""


OPERATIONS = ("write_file", "sync_folder", "rename", "make_folder", "remove")


class Disk:
    """Counts what is done to the disk, and fails at one of the operations: before it, or in the middle of writing."""

    def __init__(self, monkeypatch, error=errno.ENOSPC):
        self.n_done, self.fail_at, self.error = 0, None, error
        self.stays_broken = False
        for name in OPERATIONS:
            monkeypatch.setattr(files, name, self._wrapped(name, getattr(files, name)))

    def _wrapped(self, name, function):
        def operation(*arguments):
            self.n_done += 1
            broken = self.fail_at is not None and (
                self.n_done >= self.fail_at if self.stays_broken else self.n_done == self.fail_at
            )
            if broken:
                if name == "write_file":
                    arguments[0].write_bytes(bytes(arguments[1])[: len(arguments[1]) // 2])
                raise Fault(self.error, os.strerror(self.error), str(arguments[0]))
            return function(*arguments)

        return operation


def _n_operations(tmp_path, monkeypatch):
    store = Store(tmp_path / "counted")
    run = store.open({"every": 5})
    for step in (5, 10):
        publish(store, run, step)
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        publish(store, run, 15)
        return disk.n_done


@pytest.mark.parametrize(
    ("error", "stays_broken"), [(errno.ENOSPC, False), (errno.EROFS, True)], ids=["full once", "read-only"]
)
def test_a_disk_that_fails_at_any_operation_leaves_the_last_checkpoint(tmp_path, monkeypatch, error, stays_broken):
    n_operations = _n_operations(tmp_path, monkeypatch)
    assert n_operations > 12
    n_failed = 0
    for fail_at in range(1, n_operations + 1):
        store = Store(tmp_path / f"{fail_at}")
        run = store.open({"every": 5})
        for step in (5, 10):
            publish(store, run, step)
        with monkeypatch.context() as patch:
            disk = Disk(patch, error)
            disk.fail_at, disk.stays_broken = fail_at, stays_broken
            try:
                publish(store, run, 15)
                assert newest(store) == 15
            except Fault:
                n_failed += 1
                assert newest(store) in (10, 15)
        # The disk is well again
        store.close()
        store.open({"every": 5}, run)
        publish(store, run, 20)
        assert newest(store) == 20
        assert [path for path in store.folder.rglob(".*")] == []
        shutil.rmtree(store.folder)
    # Writing failed, not only cleaning up, which is nobody's business
    assert n_failed > 8


KILLED = """
import os, signal, sys
from pathlib import Path
from sb3_sparse.checkpoint import files
from sb3_sparse.checkpoint.store import Store
from tests.checkpoint.test_store import OPERATIONS, publish

store, fail_at, n_done = Store(Path(sys.argv[1])), int(sys.argv[2]), 0
run = store.open({"every": 5}, store.run())

def wrapped(name, function):
    def operation(*arguments):
        global n_done
        n_done += 1
        if n_done == fail_at:
            if name == "write_file":
                arguments[0].write_bytes(bytes(arguments[1])[: len(arguments[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return operation

for name in OPERATIONS:
    setattr(files, name, wrapped(name, getattr(files, name)))
publish(store, run, 15)
"""


@pytest.mark.expensive
def test_a_process_killed_at_any_operation_leaves_a_checkpoint(tmp_path, monkeypatch):
    n_operations = _n_operations(tmp_path, monkeypatch)
    first = Store(tmp_path / "first")
    run = first.open({"every": 5})
    for step in (5, 10):
        publish(first, run, step)
    first.close()
    found = []
    for fail_at in range(1, n_operations + 1):
        store = Store(tmp_path / f"{fail_at}")
        shutil.copytree(first.folder, store.folder)
        command = [sys.executable, "-c", KILLED, str(store.folder), str(fail_at)]
        assert subprocess.run(command, check=False, timeout=300).returncode == -9
        found.append(newest(store))
        store.open({"every": 5}, run)
        publish(store, run, 20)
        assert newest(store) == 20
        assert [path for path in store.folder.rglob(".*")] == []
    # From some operation on it is there, and never anything in between
    assert set(found) == {10, 15}
    assert found == sorted(found)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(small_disk):
    store = Store(small_disk / "checkpoints")
    run = store.open({"every": 5})
    publish(store, run, 5)
    large = Content({"step": 10, "blobs": []}, {"weights": np.full(200_000, 10, np.float32)})
    with pytest.raises(OSError, match="No space left"):
        store.publish(run, 10, large, {}, 2)
    assert newest(store) == 5
    with pytest.raises(OSError, match="No space left"):
        store.add_blob(bytes(300_000))
    publish(store, run, 15)
    assert newest(store) == 15


def test_a_disk_that_became_read_only(small_disk):
    store = Store(small_disk / "checkpoints")
    run = store.open({"every": 5})
    publish(store, run, 5)
    store.close()  # a file that is open for writing keeps a file system writable
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OSError, match="Read-only"):
        publish(store, run, 10)
    assert newest(store) == 5
    with pytest.raises(OSError, match="Read-only"):
        Store(small_disk / "checkpoints").open({"every": 5}, run)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    publish(store, run, 10)
    assert newest(store) == 10


def test_files_are_where_they_should_be_before_anything_refers_to_them(store, monkeypatch):
    """Every file is on the disk, and the folder knows it, before the one rename; nothing is written to afterwards."""
    done = []
    synced = os.fsync

    def fsync(descriptor):
        done.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        synced(descriptor)

    replaced = os.replace

    def replace(source, target):
        done.append(("rename", Path(target).name))
        replaced(source, target)

    run = store.open({"every": 5})
    given = content(store, 5)
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("there is no /proc here")
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    store.publish(run, 5, given, {}, 2)
    assert done == [
        ("fsync", "state.json"),
        ("fsync", "arrays.npz"),
        ("fsync", ".partial-manifest.json"),
        ("rename", "manifest.json"),
        ("fsync", ".partial-step-000000000005"),
        ("fsync", ".partial-step-000000000005"),
        ("rename", "step-000000000005"),
        ("fsync", "checkpoints"),
    ]
