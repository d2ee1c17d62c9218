"""One number from the evaluations of one training."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np


def last_mean(returns: Sequence[float], n: int = 10) -> float:
    """
    Average the last evaluations.

    :param returns: Mean return of each evaluation, in order.
    :param n: How many count.
    :return: Mean of the last ``n`` (of all if there are fewer), less noisy than the last one alone.
    """
    return fmean(returns[-n:])


def area_under_curve(steps: Sequence[int], returns: Sequence[float]) -> float:
    """
    Average a learning curve over its steps.

    :param steps: Environment steps of the evaluations, in order.
    :param returns: Mean return of each.
    :return: Mean return over the training, between the first and the last evaluation: what learns sooner has more.
    """
    if len(steps) == 1:
        return returns[0]
    return float(np.trapezoid(returns, steps) / (steps[-1] - steps[0]))


def steps_to(steps: Sequence[int], returns: Sequence[float], goal: float) -> float:
    """
    Find when a return is reached.

    :param steps: Environment steps of the evaluations, in order.
    :param returns: Mean return of each.
    :param goal: A return.
    :return: Environment steps of the first evaluation that reaches it; infinity if none does.
    """
    return next((float(step) for step, value in zip(steps, returns, strict=True) if value >= goal), float("inf"))
