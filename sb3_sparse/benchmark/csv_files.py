"""CSV files of dataclasses: what experiments leave, row by row."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from sb3_sparse.utils.files import replacing

RowT = TypeVar("RowT")


def _columns(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def read_rows(file: str | Path, kind: type[RowT], what: str) -> list[tuple[str, RowT]]:
    """
    Read a file of dataclasses.

    :param file: CSV file with the fields of ``kind`` as columns.
    :param kind: A dataclass whose fields are numbers and texts.
    :param what: What such a file holds, for errors.
    :return: Its rows, each behind the place where it stands, for errors.
    :raises FileNotFoundError: If there is no such file.
    :raises ValueError: For other columns, and values that cannot be read; the message names the file and the line.
    """
    file, names, types = Path(file), _columns(kind), get_type_hints(kind)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    try:
        with file.open(newline="") as stream:
            text = stream.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a text file: give a CSV file of {what}") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if (found := tuple(reader.fieldnames or ())) != names:
        raise ValueError(f"{file} has the columns {', '.join(found) or '(none)'}; a file of {what} has {', '.join(names)}")
    rows = []
    for row in reader:
        where = f"{file}, line {reader.line_num}"
        if None in row:
            raise ValueError(f"{where}: it has {len(row[None])} values too many")
        if n_missing := sum(value is None for value in row.values()):
            raise ValueError(f"{where}: it has {n_missing} values too few")
        try:
            rows.append((where, kind(**{name: types[name](row[name]) for name in names})))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error
    return rows


def write_rows(file: Path, kind: type[RowT], rows: Iterable[RowT]) -> None:
    """
    Write a file that :func:`read_rows` reads, whole or not at all.

    :param file: CSV file; what is there is replaced as a whole.
    :param kind: A dataclass.
    :param rows: The rows.
    """
    with replacing(file) as partial, partial.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(_columns(kind))
        writer.writerows(astuple(row) for row in rows)  # type: ignore[call-overload]
