"""Which points are worth having: dominance and hypervolume, all objectives minimised."""

from __future__ import annotations

from collections.abc import Sequence


def dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    """
    Compare two points.

    :param first: Objectives of a point, each minimised.
    :param second: Of another one.
    :return: Whether the first is nowhere worse and somewhere better.
    """
    return all(a <= b for a, b in zip(first, second, strict=True)) and tuple(first) != tuple(second)


def front(points: Sequence[Sequence[float]]) -> list[int]:
    """
    Find the points worth having.

    :param points: Objectives of each point, each minimised.
    :return: Indices of the points that no other dominates, in their order; of equal points all.
    """
    return [
        index
        for index, point in enumerate(points)
        if not any(dominates(other, point) for other in points if other is not point)
    ]


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """
    Area that two objectives dominate (Zitzler and Thiele 1998).

    :param points: Two objectives of each point, both minimised.
    :param reference: Where the area ends; points beyond it count nothing.
    :return: The area.
    """
    area, bound = 0.0, reference[1]
    for first, second in sorted(points):
        if first < reference[0] and second < bound:
            area += (reference[0] - first) * (bound - second)
            bound = second
    return area
