"""Tables as Markdown and CSV; what is not known is empty."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sb3_sparse.runs.statistics import FEW_SEEDS


def is_nan(value: Any) -> bool:
    """
    Tell whether something is not known.

    :param value: Anything.
    :return: Whether it is the number that is none.
    """
    return isinstance(value, float) and math.isnan(value)


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """
    Write a table as CSV.

    :param rows: By column.
    :return: CSV with a header, columns in order of appearance; what a row lacks is empty.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows({name: "" if is_nan(value) else value for name, value in row.items()} for row in rows)
    return stream.getvalue()


def interval(low: float, high: float, digits: int = 1) -> str:
    """
    Write an interval.

    :param low: Lower end.
    :param high: Upper end.
    :param digits: After the point.
    :return: Both, or a dash where nothing is known.
    """
    return "-" if math.isnan(low) or math.isnan(high) else f"{low:.{digits}f} to {high:.{digits}f}"


def seeds(n: int, n_failed: int = 0) -> str:
    """
    Write a number of seeds, and that they are few.

    :param n: Trainings that a number comes from.
    :param n_failed: Trainings that failed besides.
    :return: Both, with a word where they are few.
    """
    notes = ["few"] if n < FEW_SEEDS else []
    if n_failed:
        notes.append(f"{n_failed} of {n + n_failed} failed")
    return f"{n} ({', '.join(notes)})" if notes else str(n)
