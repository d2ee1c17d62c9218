"""
Files that survive the machine going down at any moment: what is written is on the disk before anything refers to it.

Everything that touches the disk goes through the five functions here, so that tests can make each of them fail.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path


def write_file(file: Path, data: bytes | memoryview) -> str:
    """
    Write a file and wait until the disk has it.

    :param file: The file; one that is there is overwritten, and gone after an error.
    :param data: What.
    :return: SHA-256 of it.
    :raises OSError: If it cannot be written whole.
    """
    try:
        with file.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        # On a disk that is full half a file takes the room of the next
        with suppress(OSError):
            file.unlink(missing_ok=True)
        raise
    return hashlib.sha256(data).hexdigest()


def sync_folder(folder: Path) -> None:
    """
    Wait until the disk knows which files a folder holds.

    :param folder: The folder.
    """
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """
    Rename a file or folder; it is there under one of the two names, whatever happens.

    :param source: What it is called.
    :param target: What it shall be called. A file that is there is replaced.
    """
    os.replace(source, target)
    sync_folder(target.parent)


def make_folder(folder: Path) -> None:
    """
    Make a folder that survives a crash.

    :param folder: A folder to make, with those above it; it may be there.
    """
    folder.mkdir(parents=True, exist_ok=True)


def remove(path: Path) -> None:
    """
    Remove a file or a folder.

    :param path: A file or a folder with all that is in it; it need not be there.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
