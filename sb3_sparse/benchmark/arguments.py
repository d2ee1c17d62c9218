"""Arguments and output that the sub-commands share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sb3_sparse.benchmark.timing import environment


def net_arch(text: str) -> list[int]:
    """
    :param text: Hidden widths, e.g. ``"256,256"``.
    :return: The widths.
    :raises argparse.ArgumentTypeError: If it is anything else.
    """
    try:
        widths = [int(width) for width in text.split(",")]
    except ValueError:
        widths = []
    if not widths or min(widths) < 1:
        raise argparse.ArgumentTypeError(f"hidden widths look like 256,256, not {text!r}")
    return widths


def sparsity(text: str) -> float:
    """
    :param text: A number in [0, 1).
    :return: The number.
    :raises argparse.ArgumentTypeError: If it is anything else.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"a sparsity is a number in [0, 1), not {text!r}")
    return value


def positive(text: str) -> int:
    """
    :param text: An integer from 1.
    :return: The integer.
    :raises argparse.ArgumentTypeError: If it is anything else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"an integer from 1 is needed, not {text!r}")
    return int(text)


def show(*tables: tuple[str, Sequence[Mapping[str, Any]]], as_json: bool) -> None:
    """
    Print measurements.

    :param tables: For each, how it was measured, and one map from column to value per row, the same columns in each.
    :param as_json: As one JSON document instead of Markdown tables.
    """
    if as_json:
        found = [{"note": note, "rows": list(rows)} for note, rows in tables]
        print(json.dumps({"environment": environment(), "tables": found}, indent=1))
        return
    print(environment())
    for note, rows in tables:
        print(f"{note}\n")
        columns = list(rows[0])
        print("| " + " | ".join(columns) + " |")
        print("| " + " | ".join("---" if isinstance(rows[0][column], str) else "---:" for column in columns) + " |")
        for row in rows:
            print("| " + " | ".join(_cell(row[column]) for column in columns) + " |")
        print()


def _cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
