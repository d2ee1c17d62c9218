"""Files that are never half-written."""

from __future__ import annotations

import os
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
    :param file: Where to; what is there is replaced as a whole.
    :param text: What.
    :return: The file.
    """
    with replacing(file) as partial:
        partial.write_text(text)
    return file
