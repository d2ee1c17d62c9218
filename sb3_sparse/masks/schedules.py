"""Numbers as a function of progress, 0 at the beginning and 1 at the end of whatever they are scheduled over."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float], float]


def constant(progress: float) -> float:
    """
    A schedule that does not change.

    :param progress: In [0, 1].
    :return: 1.0 throughout.
    """
    return 1.0


def cosine(progress: float) -> float:
    """
    Cosine annealing, ``(1 + cos(pi * progress)) / 2`` (RigL, Evci et al. 2020, equation 1; RLx2, Tan et al. 2023,
    algorithm 1).

    :param progress: In [0, 1].
    :return: From 1.0 down to 0.0.
    """
    return (1 + math.cos(math.pi * progress)) / 2


def linear(progress: float) -> float:
    """
    A schedule that falls evenly.

    :param progress: In [0, 1].
    :return: From 1.0 down to 0.0.
    """
    return 1 - progress


def gradual(initial: float, final: float, progress: float) -> float:
    """
    The cubic of gradual pruning, ``final + (initial - final) * (1 - progress)**3`` (Zhu and Gupta 2018, equation 1): steep
    while the network has much to spare, flat towards the end. It goes for sparsities, and for numbers of weights as well.

    :param initial: Value at progress 0.
    :param final: Value at progress 1.
    :param progress: In [0, 1].
    :return: The value between them; exactly ``final`` at progress 1.
    """
    return final + (initial - final) * (1 - progress) ** 3


#: Schedules by the name that callbacks take.
SCHEDULES: dict[str, Schedule] = {"constant": constant, "cosine": cosine, "linear": linear}
