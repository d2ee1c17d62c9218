"""Where an export goes: what the formats are called, and outputs that are replaced as a whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from sb3_sparse.utils.checks import require_choice
from sb3_sparse.utils.files import replacing

#: Formats, and how their files end; None for a folder.
SUFFIXES = {"packed": ".sb3s", "onnx": ".onnx", "c": None, "cortex-m": None}
FORMATS = tuple(SUFFIXES)


def format_of(path: Path, to: str | None) -> str:
    """
    Find out which format is meant.

    :param path: Where the export goes.
    :param to: What it is to be, None: what the path's ending says.
    :return: One of :data:`FORMATS`.
    :raises ValueError: For another one, or an ending that says nothing or something else.
    """
    by_suffix = {suffix: name for name, suffix in SUFFIXES.items() if suffix is not None}
    if to is None:
        if path.suffix not in by_suffix:
            raise ValueError(
                f"`to` is left out, and {path} does not say what it is to be: give one of "
                f"{', '.join(map(repr, FORMATS))}, or a path that ends in {' or '.join(by_suffix)}"
            )
        return by_suffix[path.suffix]
    require_choice("to", to, FORMATS)
    if by_suffix.get(path.suffix, to) != to:
        raise ValueError(
            f"`to`={to!r} writes no {path.suffix} file: {path} should end in {SUFFIXES[to] or 'no dot and letters'}"
        )
    return to


def check_target(path: Path, to: str, *, force: bool) -> Path:
    """
    Refuse a place that cannot be written to, before any work.

    :param path: Where the export goes; a file gets its format's ending if it has none.
    :param to: The format.
    :param force: Whether what is there may be replaced.
    :return: Where it goes.
    :raises ValueError: If something is there, or its folder is not.
    """
    suffix = SUFFIXES[to]
    if suffix is not None and path.suffix != suffix:
        path = path.with_name(path.name + suffix)
    if not path.parent.is_dir():
        raise ValueError(f"`path` {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"`path` {path}: the folder {path.parent} cannot be written to")
    if not path.exists() and not path.is_symlink():
        return path
    if not force:
        raise ValueError(f"`path` {path} exists: choose another name, or allow to replace it with `force`=True (`--force`)")
    if path.is_dir() != (suffix is None):
        raise ValueError(f"`path` {path} is a {'folder' if path.is_dir() else 'file'}, which is not replaced by {to}")
    return path


def write_file(path: Path, data: bytes) -> list[Path]:
    """
    Write a file as a whole, or after an error not at all.

    :param path: A file; what is there is replaced as a whole.
    :param data: What it holds.
    :return: The file.
    """
    with replacing(path) as partial:
        partial.write_bytes(data)
    return [path]


def write_folder(path: Path, texts: Mapping[str, str]) -> list[Path]:
    """
    Write a folder as a whole, or after an error not at all.

    :param path: The folder. One that is there is replaced, if it holds nothing but files of the same names.
    :param texts: Text by path inside of it.
    :return: The files.
    :raises ValueError: If the folder that is there holds other files: they are not thrown away.
    """
    if path.is_dir():
        others = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
        others = [file for file in others if file not in texts]
        if others:
            raise ValueError(
                f"`path` {path} holds files that are none of this export: {', '.join(others[:5])}; choose another name"
            )
    made = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    old = made.with_name(made.name + ".old")
    try:
        made.chmod(0o777 & ~_umask())
        for name, text in texts.items():
            file = made / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        if path.is_dir():
            os.rename(path, old)
        try:
            os.rename(made, path)
        except OSError:
            if old.is_dir():
                os.rename(old, path)
            raise
    finally:
        for left in (made, old):
            shutil.rmtree(left, ignore_errors=True)
    return [path / name for name in texts]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
