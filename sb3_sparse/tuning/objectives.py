"""What a configuration is judged by: its return, and what the networks that choose actions cost."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_sparse.analysis.report import sparsity_report
from sb3_sparse.policies.quantized_layers import DEPLOYED_NETWORKS


@dataclass(frozen=True)
class Objective:
    """
    :param label: With its unit, for tables and figures.
    :param maximize: Whether more is better.
    """

    label: str
    maximize: bool


RETURN = "return"
OBJECTIVES: dict[str, Objective] = {
    RETURN: Objective("return", True),
    "flops": Objective("FLOPs of an action", False),
    "bytes": Objective("bytes", False),
    "parameters": Objective("parameters", False),
    "latency": Objective("latency (µs)", False),
}


def check_objectives(names: Sequence[str]) -> list[str]:
    """
    :param names: What the user wants.
    :return: The same, ``"return"`` first.
    :raises ValueError: For an unknown name, one given twice, or if ``"return"`` or everything else is missing.
    """
    names = list(names)
    known = ", ".join(OBJECTIVES)
    for name in names:
        if name not in OBJECTIVES:
            raise ValueError(f"`--objectives` names {name!r}; the objectives are: {known}")
    if RETURN not in names or len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"`--objectives` must be return and one or more of the others, each once ({known}), got {names!r}")
    return sorted(names, key=lambda name: name != RETURN)


def latency(model: BaseAlgorithm, *, rounds: int = 20, calls: int = 20) -> float:
    """
    Time of deciding on one action, as a user calls it.

    :param model: A model.
    :param rounds: Timings; the median of them is taken, so that pauses of the machine do not count.
    :param calls: Calls of each timing.
    :return: Microseconds of one ``predict()`` with a single observation, deterministic.
    """
    observation: Any = model.observation_space.sample()
    seconds = []
    # The first round warms up
    for _ in range(rounds + 1):
        start = time.perf_counter()
        for _ in range(calls):
            model.predict(observation, deterministic=True)
        seconds.append((time.perf_counter() - start) / calls)
    return 1e6 * statistics.median(seconds[1:])


def costs(model: BaseAlgorithm) -> dict[str, float]:
    """
    Everything but the return, whether it is an objective or not.

    :param model: A model with a sparse policy (sparsity 0 for a dense one).
    :return: Objectives by name, and besides ``sparsity``, ``dense_flops``, ``dense_bytes`` and ``dense_parameters``.
    """
    report = sparsity_report(model)
    sizes = [size for name, size in report.networks.items() if name in DEPLOYED_NETWORKS]
    n_weights = sum(size.n_weights for size in sizes)
    return {
        "flops": report.inference.sparse,
        "bytes": sum(size.bytes_with_indices for size in sizes),
        "parameters": sum(size.n_parameters for size in sizes),
        "latency": round(latency(model), 2),
        "sparsity": round(1 - sum(size.n_active for size in sizes) / n_weights, 6),
        "dense_flops": report.inference.dense,
        "dense_bytes": sum(size.bytes_dense for size in sizes),
        "dense_parameters": sum(size.n_parameters_dense for size in sizes),
    }
