"""Opening an Optuna storage, a journal file or a database by URL: what is wrong with it is said before anything starts."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, IntegrityError, NoSuchModuleError, ProgrammingError

#: Seconds between two signs of life of a driver, and after how many without one it counts as gone. Drivers that share a server
#: give them; a file has one driver alone.
HEARTBEAT, GRACE = 60, 600
#: What a storage raises that was there and cannot be reached any more: a database, and a journal besides.
DATABASE_ERRORS = (StorageInternalError, DatabaseError)
STORAGE_ERRORS = (*DATABASE_ERRORS, OSError)
#: Seconds to wait for a server, and for a lock in it.
_CONNECT_TIMEOUT, _LOCK_TIMEOUT = 10, 30
#: Seconds in which whoever makes the tables of a new database has made them.
_CONNECT_PAUSE = 3


def _mend(file: Path) -> None:
    """
    Cut off the line in which a process was killed, an operation that nobody knows to be done: Optuna would append to it, and
    no process could read the journal any more.
    """
    data = file.read_bytes() if file.is_file() else b""
    if data.startswith(b'{"op_code"') and not data.endswith(b"\n"):
        lock = JournalFileSymlinkLock(str(file))
        lock.acquire()
        try:
            os.truncate(file, file.read_bytes().rfind(b"\n") + 1)
        finally:
            lock.release()


def _is_url(storage: str) -> bool:
    return "://" in storage


def file_of(storage: str) -> Path | None:
    """
    Find the file that a storage is kept in.

    :param storage: A file or a URL.
    :return: The file it is kept in; None for a server, and for a URL that is none.
    """
    if not _is_url(storage):
        return Path(storage)
    try:
        url = make_url(storage)
    except ArgumentError:
        return None
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def shown(storage: str) -> str:
    """
    Hide a password.

    :param storage: A file or a URL.
    :return: The same without a password.
    """
    if not _is_url(storage):
        return storage
    try:
        return make_url(storage).render_as_string(hide_password=True)
    except ArgumentError:
        return storage.split("@")[-1]


@contextmanager
def _explained(storage: str) -> Iterator[None]:
    """Errors of the storage as errors of the user's, in one line."""
    name = shown(storage)
    try:
        yield
    except (ArgumentError, NoSuchModuleError) as error:
        raise ValueError(
            f"`--storage` {name!r} is neither a journal (NAME.log) nor a database that SQLAlchemy knows: {error}"
        ) from error
    except (DatabaseError, StorageInternalError) as error:
        reason = " ".join(str(error.__cause__ or error.__context__ or error).split())
        original = " ".join(str(getattr(error, "orig", None) or reason).split())
        raise ValueError(f"`--storage` {name} cannot be used, it is unreachable or locked: {original}") from error
    except RuntimeError as error:
        raise ValueError(f"`--storage` {name} is of another version of Optuna: {' '.join(str(error).split())}") from error


def _open_journal(path: Path) -> JournalStorage:
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"cannot be made: there is no folder {path.parent}"
        raise ValueError(f"`--storage` {path} {what}")
    for place in (path.parent, path):
        if place.exists() and not os.access(place, os.R_OK | os.W_OK):
            raise ValueError(f"`--storage` {path} cannot be written: no permission for {place}")
    try:
        # The journal's lock is a link to this name: a relative one would lead nowhere from another folder
        _mend(path.absolute())
        return JournalStorage(JournalFileBackend(str(path.absolute())))
    except (ValueError, KeyError, TypeError, AssertionError, AttributeError) as error:
        raise ValueError(
            f"`--storage` {path} is not a journal of Optuna ({type(error).__name__}: {error}): give another name"
        ) from error


def _open_database(storage: str) -> RDBStorage:
    url = make_url(storage)
    connect: dict[str, Any] = {}
    if url.get_backend_name() == "postgresql":
        if "+" not in url.drivername:
            url = url.set(drivername="postgresql+psycopg")
        if url.get_driver_name() == "psycopg" and importlib.util.find_spec("psycopg") is None:
            raise ImportError("PostgreSQL needs psycopg, which is not installed: pip install 'sb3-sparse[postgresql]'")
        connect = {"connect_timeout": _CONNECT_TIMEOUT, "options": f"-c lock_timeout={_LOCK_TIMEOUT}s"}
    is_file = file_of(storage) is not None
    if is_file:
        _write_ahead(url.database)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return RDBStorage(
            url.render_as_string(hide_password=False),
            engine_kwargs={"connect_args": connect, "pool_pre_ping": True},
            heartbeat_interval=None if is_file else HEARTBEAT,
            grace_period=None if is_file else GRACE,
        )


def _write_ahead(database: str | None) -> None:
    """Let others read, such as optuna-dashboard, while the driver writes: a setting that stays with the file."""
    import sqlite3

    try:
        with contextlib.closing(sqlite3.connect(str(database), timeout=0.1)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
    except sqlite3.Error:
        # What is wrong with it is said by whoever opens it
        return


def open_storage(storage: str) -> BaseStorage:
    """
    Open a storage and see that it can be read and written.

    :param storage: ``NAME.log`` for Optuna's journal file, which is made if there is none, or a database's URL, e.g.
        ``"postgresql://user:password@host/database"`` or ``"sqlite:///study.db"``.
    :return: The storage.
    :raises ValueError: If it is something else, or cannot be reached, read or written; the message says which.
    :raises ImportError: If the database's driver is not installed.
    """
    if not _is_url(storage):
        if Path(storage).suffix != ".log":
            raise ValueError(
                "`--storage` must be a journal, NAME.log, or a database's URL such as postgresql://host/database, "
                f"got {storage!r}"
            )
        return _open_journal(Path(storage))
    with _explained(storage):
        try:
            opened = _open_database(storage)
        except (IntegrityError, ProgrammingError):
            # Somebody else makes the tables at the same moment: they are there then
            time.sleep(_CONNECT_PAUSE)
            opened = _open_database(storage)
        # Tables that were there before, and their locks, are met only now
        optuna.study.get_all_study_summaries(opened, include_best_trial=False)
        return opened
