"""Arguments and output that the sub-commands share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym

from sb3_sparse.benchmark.timing import environment
from sb3_sparse.utils.markdown import markdown
from sb3_sparse.zoo.environments import require_packages

#: Dense models that are compared with besides stock Stable-Baselines3.
SBX, COMPILED = AGAINST = ("sbx", "compiled")


def add_against(parser: argparse.ArgumentParser) -> None:
    """
    Declare ``--against``.

    :param parser: Parser of a sub-command.
    """
    parser.add_argument(
        "--against",
        nargs="+",
        choices=AGAINST,
        default=[],
        help="dense models beside stock: SBX, which is Stable-Baselines3 in JAX, and stock under torch.compile",
    )


def net_arch(text: str) -> list[int]:
    """
    Hidden widths as they are written on a command line.

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


def _number(text: str) -> float:
    """What is no number is -1, which is none of those that are allowed."""
    try:
        return float(text)
    except ValueError:
        return -1.0


def sparsity(text: str) -> float:
    """
    The fraction of weights that are zero.

    :param text: A number in [0, 1).
    :return: The number.
    :raises argparse.ArgumentTypeError: If it is anything else.
    """
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"a sparsity is a number in [0, 1), not {text!r}")
    return value


def fraction(text: str) -> float:
    """
    A part of something.

    :param text: A number in (0, 1).
    :return: The number.
    :raises argparse.ArgumentTypeError: If it is anything else.
    """
    value = _number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"a number in (0, 1) is needed, not {text!r}")
    return value


def positive(text: str) -> int:
    """
    A number of something.

    :param text: An integer from 1.
    :return: The integer.
    :raises argparse.ArgumentTypeError: If it is anything else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"an integer from 1 is needed, not {text!r}")
    return int(text)


def density_number(text: str) -> float:
    """
    The fraction of weights that exist.

    :param text: A number in (0, 1].
    :return: The number.
    :raises argparse.ArgumentTypeError: If it is anything else.
    """
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"a density is a number in (0, 1], not {text!r}")
    return value


def seed_number(text: str) -> int:
    """
    The seed of a training.

    :param text: An integer from 0 that is below 2**32.
    :return: The integer.
    :raises argparse.ArgumentTypeError: If it is anything else.
    """
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"a seed is an integer in [0, 2**32), not {text!r}")
    return int(text)


def continuous_env(text: str) -> str:
    """
    An environment whose actions are a vector of numbers.

    :param text: Its id.
    :return: The same.
    :raises argparse.ArgumentTypeError: If there is no such environment, it cannot be made, or its actions are others.
    """
    try:
        require_packages(text)
        env = gym.make(text)
    except (gym.error.Error, ImportError) as error:
        raise argparse.ArgumentTypeError(f"environment {text!r} cannot be made: {' '.join(str(error).split())}") from error
    action_space = env.action_space
    env.close()
    if not isinstance(action_space, gym.spaces.Box):
        raise argparse.ArgumentTypeError(f"the actions of {text} are {action_space}; a Box is needed")
    return text


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
        columns = list(rows[0])
        texts = [index for index, column in enumerate(columns) if isinstance(rows[0][column], str)]
        print(f"{note}\n")
        print(markdown(columns, [[_cell(row[column]) for column in columns] for row in rows], texts))


def _cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
