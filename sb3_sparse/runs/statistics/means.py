"""
Means over seeds, differences and ratios of them, by Student's t: few seeds make wide intervals, as they must. A percentile
bootstrap of so few numbers makes narrow ones: 95 % intervals of two seeds would hold the mean in 52 % of all cases, of three
in 71 %.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import fmean, variance

from scipy.stats import t


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """
    Estimate a mean, by Student's t.

    :param values: One number per seed.
    :param confidence: Coverage of the interval, in (0, 1).
    :return: Mean, lower and upper end; both ends are NaN for a single value, which says nothing about others.
    """
    mean = fmean(values)
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * math.sqrt(variance(values) / len(values))
    return mean, mean - half, mean + half


def paired_interval(values: Sequence[float], others: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """
    Estimate the mean of paired differences, by Student's t.

    :param values: One number per seed.
    :param others: Of the same seeds, in the same order.
    :param confidence: Coverage of the interval, in (0, 1).
    :return: Mean of the differences, lower and upper end; both ends are NaN for a single pair.
    """
    return mean_interval([value - other for value, other in zip(values, others, strict=True)], confidence)


def ratio_interval(
    values: Sequence[float],
    others: Sequence[float],
    *,
    floor: float = 0.0,
    paired: bool = False,
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """
    How much of what others have learnt: the ratio of both means above a floor, with Fieller's limits (1954), which also hold
    where the denominator is uncertain.

    :param values: One number per seed.
    :param others: Of what it is compared with.
    :param floor: What a policy has that has learnt nothing.
    :param paired: Whether both are of the same seeds, in the same order.
    :param confidence: Coverage of the interval, in (0, 1).
    :return: Ratio, lower and upper end. The ends are NaN for single numbers, and where the others may well be no better than
        the floor, so that any ratio is possible; all three are NaN where they are no better.
    """
    x, y = [value - floor for value in values], [other - floor for other in others]
    mean_x, mean_y = fmean(x), fmean(y)
    if mean_y <= 0:
        return math.nan, math.nan, math.nan
    ratio, n, m = mean_x / mean_y, len(x), len(y)
    if min(n, m) < 2:
        return ratio, math.nan, math.nan
    # Variances of both means, and what they have in common
    xx, yy = variance(x) / n, variance(y) / m
    xy = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / (n - 1) / n if paired else 0.0
    square = float(t.ppf((1 + confidence) / 2, min(n, m) - 1)) ** 2
    a, b, c = mean_y**2 - square * yy, mean_x * mean_y - square * xy, mean_x**2 - square * xx
    if a <= 0:
        return ratio, math.nan, math.nan
    half = math.sqrt(max(b**2 - a * c, 0.0)) / a
    return ratio, b / a - half, b / a + half


def unseen(n: int, confidence: float) -> float:
    """
    Bound what may have gone unseen.

    :param n: Trainings that all came out alike.
    :param confidence: In (0, 1).
    :return: The fraction of all trainings that may come out otherwise: if it were more, one of ``n`` would have done so with
        at least this confidence. At 0.95 about ``3 / n``, the rule of three.
    """
    return 1 - (1 - confidence) ** (1 / n)


def seeds_without_spread(keep: float, confidence: float) -> int:
    """
    Count the equal returns that would be a proof.

    :param keep: Fraction to keep, in (0, 1).
    :param confidence: In (0, 1).
    :return: How many equal returns it takes to show that a configuration keeps this much, if they are the dense reference's.
    """
    return math.ceil(math.log(1 - confidence) / math.log(keep))


def are_tied(values: Sequence[float], floor: float) -> bool:
    """
    Tell whether returns saturate.

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
