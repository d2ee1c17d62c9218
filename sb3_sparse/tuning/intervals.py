"""Intervals and comparisons of mean returns over seeds, by Student's t: few seeds make wide intervals, as they must."""

from __future__ import annotations

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


def margin(
    values: Sequence[float], dense: Sequence[float], *, keep: float, floor: float, confidence: float
) -> tuple[float, float, float]:
    """
    How far a mean lies above what is to be kept, ``floor + keep * (dense - floor)``, with one-sided limits (Welch 1947).

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
    if not spread:
        return difference, difference, difference
    df = min(max(int(1 / spread), 1), len(values) + len(dense) - 2)
    half = float(t.ppf(confidence, df)) * math.sqrt(total)
    return difference, difference - half, difference + half
