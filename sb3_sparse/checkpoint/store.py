"""
The folder of a run's checkpoints::

    checkpoints/
      run.json                    which run this is
      lock                        held by the process that trains
      blobs/<SHA-256>             what several checkpoints share: rows of the replay buffer, logs
      step-000000010000/          one checkpoint: complete as soon as it has this name
        manifest.json             format, step, and size and SHA-256 of every file and blob that belongs to it
        state.json, arrays.npz    everything else

A checkpoint is written aside (``.partial-...``), file by file onto the disk, and then renamed. Nothing that a published
checkpoint refers to is ever written to again. One that is not as its manifest says is refused by name.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from weakref import WeakValueDictionary

import numpy as np

from sb3_sparse.checkpoint import files

#: The folder inside a run's.
FOLDER_NAME = "checkpoints"
FORMAT, VERSION = "sb3_sparse run checkpoint", 1
_STEP = re.compile(r"step-(\d{12,})")
_BLOB = re.compile(r"[0-9a-f]{64}")
_STATE, _ARRAYS, _MANIFEST, _RUN = "state.json", "arrays.npz", "manifest.json", "run.json"


#: Who in this process holds which folder.
_held: WeakValueDictionary[Path, Store] = WeakValueDictionary()


class Refused(ValueError):
    """A checkpoint that is torn, or none of this run's."""


def pack(arrays: Mapping[str, np.ndarray]) -> memoryview:
    """
    Pack arrays into one file.

    :param arrays: Arrays of numbers by name.
    :return: They as an ``.npz`` file.
    """
    stream = io.BytesIO()
    # By number: names hold paths, and entries of a zip are file names. No array holds objects, which would be pickled
    np.savez(stream, *arrays.values())
    return stream.getbuffer()


def unpack(data: bytes, names: list[str]) -> dict[str, np.ndarray]:
    """
    Unpack arrays that :func:`pack` has packed.

    :param data: An ``.npz`` file.
    :param names: Names of its arrays.
    :return: Arrays by name.
    """
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        return {name: found[f"arr_{index}"] for index, name in enumerate(names)}


@dataclass
class Content:
    """
    What a checkpoint holds.

    :param tree: JSON.
    :param arrays: Arrays that it refers to.
    :param blobs: Digests of the blobs that it refers to.
    """

    tree: Any
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    blobs: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    """
    A checkpoint on the disk that is as its manifest says.

    :param folder: Its folder.
    :param step: Environment step.
    :param content: What it holds.
    """

    folder: Path
    step: int
    content: Content


class Store:
    """
    The folder of a run's checkpoints.

    :param folder: The folder; it need not be there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: Whether whoever holds the folder in this process is still at work.
        self.still_used: Callable[[], bool] = lambda: True
        self._lock: IO[str] | None = None

    # --- Whose it is ---

    def open(self, options: Mapping[str, Any], run: str | None = None) -> str:
        """
        Begin to write here: nobody else may until :meth:`close`.

        :param options: How checkpoints are written: for a run that is stopped before its first one.
        :param run: Identity of the run that goes on here, None for a new one.
        :return: Identity of the run.
        :raises ValueError: If another process writes here, or checkpoints of another run are here.
        :raises OSError: If it cannot be written to.
        """
        files.make_folder(self.folder / "blobs")
        self.lock()
        try:
            present = self.run()
            if run is None and (steps := self.steps()):
                raise ValueError(
                    f"{self.folder} holds checkpoints of another training, the last of step {max(steps)}: go on with that one "
                    "(sb3_sparse.resume, or sb3-sparse train --resume), or name another folder, or remove this one"
                )
            if run is not None and present not in (None, run):
                raise ValueError(f"{self.folder} holds the checkpoints of another run ({present}), not of {run}")
            if run is None or present is None:
                run = run or uuid.uuid4().hex
                self._write_json(self.folder / _RUN, {"format": FORMAT, "run": run, "options": dict(options)})
        except BaseException:
            self.close()
            raise
        return run

    def close(self) -> None:
        """Let others write here."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def run(self) -> str | None:
        """Identity of the run whose checkpoints are here, None if that cannot be read."""
        found = self._about_run()
        return str(found["run"]) if found is not None else None

    def options(self) -> dict[str, Any]:
        """
        Say how checkpoints of this run are written.

        :return: What :meth:`open` was told of how checkpoints are written.
        :raises ValueError: If that cannot be read.
        """
        found = self._about_run()
        if found is None:
            raise ValueError(f"{self.folder / _RUN} cannot be read, and no checkpoint is there that could")
        return dict(found["options"])

    def _about_run(self) -> dict[str, Any] | None:
        try:
            found = json.loads((self.folder / _RUN).read_text())
            return found if found["format"] == FORMAT and found["run"] and found["options"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def lock(self) -> None:
        """
        Keep others from writing here, until :meth:`close` or the end of this process.

        :raises ValueError: If another process writes here.
        """
        try:
            import fcntl
        except ImportError:  # not on Windows
            return
        if self._lock is not None:
            return
        held_here = _held.get(self.folder.resolve())
        if held_here is not None and not held_here.still_used():
            # A training that an exception has left
            held_here.close()
        file = self.folder / "lock"
        stream = file.open("a+")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            owner = stream.read().strip() or "another process"
            stream.close()
            raise ValueError(f"{self.folder} is in use by {owner}: only one training can go on here at a time") from None
        except OSError:
            # Some network file systems have no locks
            stream.close()
            return
        # On a full disk the lock holds without a name
        with suppress(OSError):
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            stream.flush()
        self._lock = stream
        _held[self.folder.resolve()] = self

    # --- Writing ---

    def add_blob(self, data: bytes | memoryview) -> str:
        """
        Keep data that checkpoints share. What is there already is not written again.

        :param data: The data.
        :return: Its digest, by which checkpoints refer to it.
        """
        digest = hashlib.sha256(data).hexdigest()
        file = self.folder / "blobs" / digest
        try:
            present = file.stat().st_size == len(data)
        except OSError:
            present = False
        if not present:
            partial = file.with_name(f".partial-{digest}")
            files.write_file(partial, data)
            files.rename(partial, file)
        return digest

    def publish(self, run: str, step: int, content: Content, about: Mapping[str, Any], keep: int) -> Path:
        """
        Write a checkpoint, and forget those that are no longer kept.

        :param run: Identity of the run.
        :param step: Environment step.
        :param content: What it holds; its blobs have been added.
        :param about: What else its manifest shall say: versions, machine.
        :param keep: How many checkpoints to keep.
        :return: Its folder.
        :raises OSError: If it cannot be written. What was there before is there still.
        """
        target = self.folder / f"step-{step:012d}"
        partial = self.folder / f".partial-{target.name}"
        files.remove(partial)
        files.make_folder(partial)
        try:
            tree = {"tree": content.tree, "arrays": list(content.arrays)}
            written = {}
            for name, data in ((_STATE, _json(tree)), (_ARRAYS, pack(content.arrays))):
                written[name] = {"size": len(data), "sha256": files.write_file(partial / name, data)}
            manifest = {"format": FORMAT, "version": VERSION, "run": run, "step": step, **about}
            manifest |= {"files": written, "blobs": {digest: self._size(digest) for digest in sorted(set(content.blobs))}}
            self._write_json(partial / _MANIFEST, {**manifest, "sha256": _digest_of(manifest)})
            files.sync_folder(partial)
            if target.exists():
                # One that was refused, or one of the same step: what is written now is as good as it was
                files.remove(self.folder / f".old-{target.name}")
                files.rename(target, self.folder / f".old-{target.name}")
            files.rename(partial, target)
        except BaseException:
            _try_to_remove(partial)
            raise
        self._clean(step, keep)
        return target

    def _size(self, digest: str) -> int:
        return (self.folder / "blobs" / digest).stat().st_size

    def _clean(self, newest: int, keep: int) -> None:
        """
        Remove what no checkpoint that is kept needs, half-written files of processes that were killed included, and
        checkpoints of later steps: they were refused, or this one would not have been written.
        """
        kept: list[dict[str, Any]] = []
        for step in sorted(self.steps(), reverse=True):
            folder = self.folder / f"step-{step:012d}"
            if step <= newest and len(kept) < keep:
                try:
                    kept.append(self._read_manifest(folder))
                    continue
                except Refused:
                    pass
            old = self.folder / f".old-{folder.name}"
            _try_to_remove(old)
            try:
                # Not removed file by file under its own name: it would look torn
                files.rename(folder, old)
            except OSError:
                return
        for path in self.folder.iterdir():
            if path.name.startswith((".old-", ".partial-")):
                _try_to_remove(path)
        needed = {digest for manifest in kept for digest in manifest["blobs"]}
        for path in (self.folder / "blobs").iterdir():
            if path.name not in needed and (_BLOB.fullmatch(path.name) or path.name.startswith(".partial-")):
                _try_to_remove(path)

    @staticmethod
    def _write_json(file: Path, value: Any) -> None:
        partial = file.with_name(f".partial-{file.name}")
        files.write_file(partial, _json(value))
        files.rename(partial, file)

    # --- Reading ---

    def steps(self) -> list[int]:
        """Environment steps of the checkpoints that are here, whole or not."""
        if not self.folder.is_dir():
            return []
        names = (_STEP.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in names if match)

    def candidates(self) -> Iterator[tuple[int, Found | Refused]]:
        """Every checkpoint, newest first: what it holds, or why it is refused."""
        for step in reversed(self.steps()):
            try:
                yield step, self.read(step)
            except Refused as refusal:
                yield step, refusal

    def read(self, step: int) -> Found:
        """
        Read a checkpoint, and see that it is what was written; blobs are only read where they are needed.

        :param step: Its environment step.
        :return: It.
        :raises Refused: If it is torn, or not of this run or of a later version.
        """
        folder = self.folder / f"step-{step:012d}"
        manifest = self._read_manifest(folder)
        present = self.run()
        if manifest["step"] != step or (present is not None and manifest["run"] != present):
            raise Refused(f"{folder} is a checkpoint of step {manifest['step']} of run {manifest['run']}, not of this one")
        data = {}
        for name, expected in manifest["files"].items():
            data[name] = self._read(folder / name, expected["size"], expected["sha256"])
        for digest, size in manifest["blobs"].items():
            file = self.folder / "blobs" / digest
            if not file.is_file() or file.stat().st_size != size:
                raise Refused(f"{folder} needs {file}, which is missing or torn")
        try:
            state = json.loads(data[_STATE])
            content = Content(state["tree"], unpack(data[_ARRAYS], state["arrays"]), list(manifest["blobs"]))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise Refused(f"{folder} cannot be read: {error}") from error
        return Found(folder, step, content)

    def manifest(self, step: int) -> dict[str, Any]:
        """
        Read the manifest of a checkpoint.

        :param step: Environment step of a checkpoint.
        :return: Its manifest.
        :raises Refused: If it is not what was written.
        """
        return self._read_manifest(self.folder / f"step-{step:012d}")

    def blob(self, digest: str) -> bytes:
        """
        Read a blob.

        :param digest: Digest of a blob.
        :return: The data.
        :raises Refused: If it is not what was written.
        """
        return self._read(self.folder / "blobs" / digest, None, digest)

    @staticmethod
    def _read(file: Path, size: int | None, digest: str) -> bytes:
        try:
            data = file.read_bytes()
        except OSError as error:
            raise Refused(f"{file} cannot be read: {error}") from error
        if size is not None and len(data) != size:
            raise Refused(f"{file} is torn: {len(data)} bytes of {size}")
        if hashlib.sha256(data).hexdigest() != digest:
            raise Refused(f"{file} is not what was written: its SHA-256 is another")
        return data

    @staticmethod
    def _read_manifest(folder: Path) -> dict[str, Any]:
        try:
            manifest = json.loads((folder / _MANIFEST).read_text())
            if manifest["format"] != FORMAT:
                raise Refused(f"{folder} is no checkpoint of sb3_sparse: its manifest says {manifest['format']!r}")
            if manifest["version"] > VERSION:
                raise Refused(f"{folder} was written by a later version of sb3_sparse (format {manifest['version']})")
            digest = manifest.pop("sha256")
            if digest != _digest_of(manifest):
                raise Refused(f"{folder}/{_MANIFEST} is not what was written: its SHA-256 is another")
            return manifest
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, Refused):
                raise
            raise Refused(f"{folder} has no manifest that can be read: {error!r}") from error


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _digest_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _try_to_remove(path: Path) -> None:
    # It is garbage, and the next checkpoint tries again
    with suppress(OSError):
        files.remove(path)
