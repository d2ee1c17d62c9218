"""Single calls, timed one by one: what takes less than a microsecond is timed in C, everything else in Python."""

from __future__ import annotations

import ctypes
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sb3_sparse.export.c.source import Source
from sb3_sparse_runtime.graph import Graph

#: Calls of a turn before those that are timed: caches and branch predictors meet the variant again.
WARM_UP = 5
_TIMER = """\
#include <time.h>
#include "{name}.h"

static double now(void)
{{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return 1e9 * (double)time.tv_sec + (double)time.tv_nsec;
}}

/* Nanoseconds of n decisions, one by one, on observations in turn; with decide = 0 of what the clock itself takes. */
int time_decisions(int decide, int warm_up, int n, int n_rows, const float *rows, double *nanoseconds)
{{
    float action[{big}_N_ACTION];
    int i, refused = 0;
    for (i = -warm_up; i < n; i++) {{
        const float *row = rows + (i + warm_up) % n_rows * {big}_N_OBSERVATION;
        const double start = now();
        if (decide) refused |= {name}_predict(row, action);
        if (i >= 0) nanoseconds[i] = now() - start;
    }}
    return refused;
}}
"""


class Calls(Protocol):
    """Something that can be called again and again."""

    def seconds(self, n: int) -> NDArray[np.float64]:
        """
        Time single calls.

        :param n: How many.
        :return: Seconds of each, those of the clock itself taken off.
        """


class PythonCalls:
    """
    Calls of a Python function.

    :param function: The function.
    :param rows: Its arguments, one after the other.
    """

    def __init__(self, function: Callable[[Any], object], rows: Sequence[Any]) -> None:
        self.function, self.rows = function, rows

    def seconds(self, n: int) -> NDArray[np.float64]:
        """See :class:`Calls`."""
        clock = time.perf_counter_ns
        nothing = [-clock() + clock() for _ in range(WARM_UP + n)]
        found = []
        function = self.function
        for row in islice(cycle(self.rows), WARM_UP + n):
            start = clock()
            function(row)
            found.append(clock() - start)
        return np.maximum(np.array(found[WARM_UP:], np.float64) - float(np.median(nothing)), 0) / 1e9


class CCalls:
    """
    Calls of generated C, compiled with what times it.

    :param library: The library.
    :param name: Name of the policy.
    :param graph: The decision.
    :param rows: Observations ``[n, numbers]``, float32.
    """

    def __init__(self, library: Any, name: str, graph: Graph, rows: NDArray[np.float32]) -> None:
        self.library, self.name, self.graph = library, name, graph
        self.rows = np.ascontiguousarray(rows, np.float32)

    def _time(self, decide: bool, n: int) -> NDArray[np.float64]:
        found = np.empty(n, np.float64)
        pointers = (self.rows.ctypes.data_as(ctypes.c_void_p), found.ctypes.data_as(ctypes.c_void_p))
        if self.library.time_decisions(int(decide), WARM_UP, n, len(self.rows), *pointers) != 0:
            raise RuntimeError("generated C refuses an observation")
        return found

    def seconds(self, n: int) -> NDArray[np.float64]:
        """See :class:`Calls`."""
        nothing = float(np.median(self._time(False, n)))
        return np.maximum(self._time(True, n) - nothing, 0) / 1e9

    def actions(self) -> NDArray[np.float32]:
        """
        Decide for each observation.

        :return: Actions ``[n, numbers]``.
        """
        actions = np.empty((len(self.rows), self.graph.action.size), np.float32)
        for row, action in zip(self.rows, actions, strict=True):
            predict = getattr(self.library, f"{self.name}_predict")
            if predict(row.ctypes.data_as(ctypes.c_void_p), action.ctypes.data_as(ctypes.c_void_p)) != 0:
                raise RuntimeError("generated C refuses an observation")
        return actions


def c_calls(
    source: Source, graph: Graph, rows: NDArray[np.float32], folder: Path, compiler: str, flags: Sequence[str] = ("-O3",)
) -> CCalls:
    """
    Compile generated C together with what times it.

    :param source: Generated C.
    :param graph: The decision that it was made of.
    :param rows: Observations ``[n, numbers]``.
    :param folder: Where to; made if it is not there.
    :param compiler: The compiler.
    :param flags: Its optimisation.
    :return: What to call.
    :raises RuntimeError: If the compiler refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{source.name}.h").write_text(source.header)
    (folder / f"{source.name}.c").write_text(source.source)
    # A file of its own: nothing of a decision can be moved out of the loop
    (folder / "timer.c").write_text(_TIMER.format(name=source.name, big=source.name.upper()))
    library = folder / "timed.so"
    command = [compiler, "-std=gnu99", *flags, "-shared", "-fPIC", f"{source.name}.c", "timer.c", "-o", library.name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{compiler} refuses the generated C:\n{done.stderr}")
    return CCalls(ctypes.CDLL(str(library)), source.name, graph, rows)


@dataclass(frozen=True)
class Latency:
    """
    Times of single calls of one variant.

    :param median: Of all calls, in seconds.
    :param p99: The time that one call in a hundred exceeds, in seconds.
    :param rounds: Median of each round.
    """

    median: float
    p99: float
    rounds: tuple[float, ...]

    def times_faster_than(self, other: Latency) -> tuple[float, float, float]:
        """
        Compare with another variant that took turns with this one.

        :param other: What was measured of it.
        :return: Lower quartile, median and upper quartile over rounds of its time by this one's.
        """
        ratios = [theirs / max(own, 1e-10) for own, theirs in zip(self.rounds, other.rounds, strict=True)]
        if len(ratios) == 1:
            return ratios[0], ratios[0], ratios[0]
        low, middle, high = statistics.quantiles(ratios, n=4)
        return low, middle, high


def take_turns(variants: Mapping[str, Calls], *, rounds: int, calls: int) -> dict[str, Latency]:
    """
    Time single calls of several variants.

    :param variants: What to call by name.
    :param rounds: In each, every variant has its turn, in a new random order.
    :param calls: Timed calls of a turn.
    :return: What was measured, by name.
    """
    order = list(variants)
    shuffler = random.Random(0)
    seconds: dict[str, list[NDArray[np.float64]]] = {name: [] for name in variants}
    for round_index in range(-1, rounds):
        shuffler.shuffle(order)
        for name in order:
            found = variants[name].seconds(calls)
            if round_index >= 0:
                seconds[name].append(found)
    return {
        name: Latency(
            float(np.median(np.concatenate(found))),
            float(np.percentile(np.concatenate(found), 99)),
            tuple(float(np.median(one)) for one in found),
        )
        for name, found in seconds.items()
    }
