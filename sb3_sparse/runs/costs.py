"""What the networks that choose actions cost."""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import is_image_space

from sb3_sparse.analysis.report import SparsityReport, sparsity_report
from sb3_sparse.policies.base import sparse_policy
from sb3_sparse.policies.quantized_layers import DEPLOYED_NETWORKS


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


def costs(model: BaseAlgorithm, report: SparsityReport | None = None) -> dict[str, float]:
    """
    What can be counted of a model, without the latency, which is measured.

    :param model: A model with a sparse policy (sparsity 0 for a dense one).
    :param report: What :func:`sb3_sparse.sparsity_report` says of it, if that is known.
    :return: ``flops`` of deciding on one action, ``bytes`` with every layer in its smallest encoding, ``parameters`` as many
        as exist, ``sparsity``, ``bits`` of a weight (those of the layer that has most), ``papers_ratio`` (32 / bits) / density
        of the weights, and ``dense_flops``, ``dense_bytes`` and ``dense_parameters`` of the same network without sparsity.
    """
    report = report or sparsity_report(model)
    sizes = [size for name, size in report.networks.items() if name in DEPLOYED_NETWORKS]
    n_weights = sum(size.n_weights for size in sizes)
    return {
        "flops": report.inference.sparse,
        "bytes": sum(size.bytes_with_indices for size in sizes),
        "parameters": sum(size.n_parameters for size in sizes),
        "sparsity": round(1 - sum(size.n_active for size in sizes) / n_weights, 6),
        "bits": max(layer.weight_bits for layer in report.layers if layer.network in DEPLOYED_NETWORKS),
        "papers_ratio": round(32 * n_weights / (8 * sum(size.weight_bytes for size in sizes)), 4),
        "dense_flops": report.inference.dense,
        "dense_bytes": sum(size.bytes_dense for size in sizes),
        "dense_parameters": sum(size.n_parameters_dense for size in sizes),
    }


def input_use(model: BaseAlgorithm, report: SparsityReport) -> dict[str, list[int]]:
    """
    Which inputs a sparse network looks at (compare Grooten et al. 2023, who find those of noise deserted).

    :param model: A model with a sparse policy.
    :param report: What :func:`sb3_sparse.sparsity_report` says of it.
    :return: How many weights of the first layer each entry of a vector observation has, by network; nothing for images and
        dicts, whose entries have no names.
    """
    space = model.observation_space
    if not isinstance(space, spaces.Box) or is_image_space(space):
        return {}
    n_inputs = math.prod(space.shape)
    layers = sparse_policy(model).sparsifier.layers
    found: dict[str, list[int]] = {}
    for layer in report.layers:
        if layer.network in DEPLOYED_NETWORKS and layer.network not in found and layer.shape[1:] == (n_inputs,):
            found[layer.network] = [int(count) for count in layers[layer.name].weight_mask.sum(dim=0)]
    return found
