"""Files that are never half-written, and folders that can be written to."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """
    Replace a file as a whole, or, after an error, not at all::

        with replacing(file) as partial:
            partial.write_text(text)

    :param file: The file, in a folder that is there.
    :return: What to write instead: a hidden file beside it, whose name has another ending, so that nobody who looks for
        files of that kind finds half of one.
    """
    partial = file.with_name(f".{file.name}.partial-{os.getpid()}")
    try:
        yield partial
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> Path:
    """
    Write a text file, whole or not at all.

    :param file: Where to; what is there is replaced as a whole.
    :param text: What.
    :return: The file.
    """
    with replacing(file) as partial:
        partial.write_text(text)
    return file


def require_writable(option: str, file: Path) -> None:
    """
    Refuse a file that could not be written, before any work.

    :param option: How the error names it.
    :param file: The file.
    :raises ValueError: If it is a folder, or its folder is not there or cannot be written to.
    """
    if file.is_dir():
        raise ValueError(f"`{option}` {file} is a folder: give a file")
    if not file.parent.is_dir():
        raise ValueError(f"`{option}` {file}: there is no folder {file.parent}")
    try:
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise ValueError(f"`{option}` {file} cannot be written: {error}") from error


def make_folder(option: str, folder: str | Path) -> Path:
    """
    Make a folder that results are written to, before anything is trained.

    :param option: How the error names it.
    :param folder: The folder.
    :return: It.
    :raises ValueError: If it cannot be made or written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"`{option}` {folder} is a file, or lies in one: give a folder") from error
    except OSError as error:
        raise ValueError(f"`{option}` {folder} cannot be written to: {error}") from error
    return folder
