"""Intervals and comparisons of mean returns over seeds, by Student's t: few seeds make wide intervals, as they must."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import fmean, variance

from scipy.stats import t


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """
    :param values: One number per seed.
    :param confidence: Coverage of the interval, in (0, 1).
    :return: Mean, lower and upper end; both ends are NaN for a single value, which says nothing about others.
    """
    mean = fmean(values)
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * math.sqrt(variance(values) / len(values))
    return mean, mean - half, mean + half


def unseen(n: int, confidence: float) -> float:
    """
    :param n: Trainings that all came out alike.
    :param confidence: In (0, 1).
    :return: The fraction of all trainings that may come out otherwise: if it were more, one of ``n`` would have done so with
        at least this confidence. At 0.95 about ``3 / n``, the rule of three.
    """
    return 1 - (1 - confidence) ** (1 / n)


def seeds_without_spread(keep: float, confidence: float) -> int:
    """
    :param keep: Fraction to keep, in (0, 1).
    :param confidence: In (0, 1).
    :return: How many equal returns it takes to show that a configuration keeps this much, if they are the dense reference's.
    """
    return math.ceil(math.log(1 - confidence) / math.log(keep))


def are_tied(values: Sequence[float], floor: float) -> bool:
    """
    :param values: Returns of a configuration.
    :param floor: Return of a policy that has learnt nothing; with it the size of returns, beside which rounding is nothing.
    :return: Whether two of them are the same number, as returns that vary freely never are: they have reached the most (or the
        least) that the task gives, and how far they vary cannot be seen from them.
    """
    close = 1e-9 * max(abs(value - floor) for value in values)
    ordered = sorted(values)
    return any(high - low <= close for low, high in itertools.pairwise(ordered))


def margin(
    values: Sequence[float], dense: Sequence[float], *, keep: float, floor: float, confidence: float
) -> tuple[float, float, float]:
    """
    How far a mean lies above what is to be kept, ``floor + keep * (dense - floor)``, with one-sided limits (Welch 1947).

    Where :func:`are_tied` returns say nothing about their spread, the lower limit counts as many trainings as may fail
    :func:`unseen` as having learnt nothing.

    :param values: Returns of a configuration, one per seed, at least two.
    :param dense: Returns of the dense reference, at least two.
    :param keep: Fraction of what the dense reference is above the floor.
    :param floor: Return of a policy that has learnt nothing.
    :param confidence: Of each limit alone, in [0.5, 1).
    :return: The margin, a lower and an upper limit.
    """
    difference = fmean(values) - floor - keep * (fmean(dense) - floor)
    parts = [(variance(values) / len(values), len(values) - 1), (keep**2 * variance(dense) / len(dense), len(dense) - 1)]
    total = sum(part for part, _ in parts)
    # Welch and Satterthwaite, between the smaller and the sum of both; rounded down, so that the limits are rather too wide
    spread = sum((part / total) ** 2 / n for part, n in parts) if total else 0.0
    half = 0.0
    if spread:
        df = min(max(int(1 / spread), 1), len(values) + len(dense) - 2)
        half = float(t.ppf(confidence, df)) * math.sqrt(total)
    below = half
    if are_tied(values, floor):
        below = max(half, unseen(len(values), confidence) * (fmean(values) - floor))
    return difference, difference - below, difference + half
