"""Interleaved timing: variants take turns in one process, so that whatever else the machine does hits all alike."""

from __future__ import annotations

import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import stable_baselines3
import torch as th

import sb3_sparse
from sb3_sparse.engine.native import processor


@dataclass(frozen=True)
class Timing:
    """
    What was measured of one variant.

    :param seconds: Median time of one call.
    :param ratio: Median over rounds of this variant's time divided by the reference's time in the same round.
    :param low: Lower quartile of that ratio.
    :param high: Upper quartile of that ratio.
    :param rounds: Time of one call in each round.
    """

    seconds: float
    ratio: float
    low: float
    high: float
    rounds: tuple[float, ...] = ()

    def per(self, steps: int) -> Timing:
        """
        Share out what a call does.

        :param steps: Steps of a call.
        :return: The timing of one step.
        """
        rounds = tuple(seconds / steps for seconds in self.rounds)
        return Timing(self.seconds / steps, self.ratio, self.low, self.high, rounds)

    def times_faster_than(self, other: Timing) -> float:
        """
        Compare with another variant that took turns with this one.

        :param other: Its timing.
        :return: Median over rounds of its time divided by this one's in the same round.
        """
        return statistics.median(theirs / own for own, theirs in zip(self.rounds, other.rounds, strict=True))


def interleave(
    variants: Mapping[str, Callable[[], object]], reference: str, *, rounds: int, calls: int, warmup: int = 1
) -> dict[str, Timing]:
    """
    Time several variants against one of them.

    :param variants: What to call, by name.
    :param reference: The variant that the ratios refer to.
    :param rounds: In each round every variant is timed once, in a new random order.
    :param calls: Calls per timing.
    :param warmup: Untimed rounds before.
    :return: Timing by name.
    """
    order = list(variants)
    shuffler = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_index in range(-warmup, rounds):
        shuffler.shuffle(order)
        for name in order:
            start = time.perf_counter()
            for _ in range(calls):
                variants[name]()
            if round_index >= 0:
                seconds[name].append((time.perf_counter() - start) / calls)
    timings = {}
    for name, measured in seconds.items():
        ratios = [own / other for own, other in zip(measured, seconds[reference], strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4) if rounds > 1 else ratios * 3
        timings[name] = Timing(statistics.median(measured), ratio, low, high, tuple(measured))
    return timings


def environment() -> str:
    """One line that says where a measurement was taken."""
    return (
        f"{processor()}, {th.get_num_threads()} thread(s), torch {th.__version__}, "
        f"stable-baselines3 {stable_baselines3.__version__}, sb3-sparse {sb3_sparse.__version__}, "
        f"Python {platform.python_version()}"
    )
