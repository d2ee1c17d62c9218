"""Checks of arguments, whose errors name the argument, the value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any


def is_integer(value: Any) -> bool:
    """
    Whether a value is a whole number: Python's or numpy's, but no bool.

    :param value: Anything.
    :return: Whether it is.
    """
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """
    Whether a value is a finite number: Python's or numpy's, but no bool.

    :param value: Anything.
    :return: Whether it is.
    """
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def require_integer(argument: str, value: Any, *, low: int, high: int | None = None) -> int:
    """
    Check a whole number.

    :param argument: How the error names it.
    :param value: What was given; a bool is not an integer here.
    :param low: Smallest allowed value.
    :param high: Largest allowed value, None for no limit.
    :return: The value as an int.
    :raises ValueError: If it is anything else.
    """
    if not is_integer(value) or value < low or (high is not None and value > high):
        allowed = f">= {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"`{argument}` must be an integer {allowed}, got {value!r}")
    return int(value)


def require_positive(argument: str, value: Any, *, below: float = math.inf) -> float:
    """
    Check a positive number.

    :param argument: How the error names it.
    :param value: What was given; a bool is not a number here.
    :param below: What it must stay below.
    :return: The value as a float.
    :raises ValueError: If it is not a finite number in (0, below).
    """
    if not is_number(value) or not 0 < value < below:
        allowed = "a positive number" if below == math.inf else f"a number in (0, {below:g})"
        raise ValueError(f"`{argument}` must be {allowed}, got {value!r}")
    return float(value)


def require_choice(argument: str, value: Any, choices: Sequence[Any]) -> Any:
    """
    Check a value that is one of a few.

    :param argument: How the error names it.
    :param value: What was given.
    :param choices: What it may be.
    :return: The value.
    :raises ValueError: If it is something else.
    """
    if value not in choices:
        raise ValueError(f"`{argument}` must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value
