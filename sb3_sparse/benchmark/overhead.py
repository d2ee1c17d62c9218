"""
What the mechanism costs: a gradient step of a sparse policy against the same step of the stock policy.

The torch engine multiplies dense tensors, so a sparse policy can only be slower here; the question is by how much. Stock,
sparse (every layer pruned) and sparse at sparsity 0 take turns in one process.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch as th

from sb3_sparse.benchmark.models import ALGORITHMS, make_model
from sb3_sparse.benchmark.timing import Timing, environment, interleave


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: Parser of the ``overhead`` sub-command.
    """
    parser.add_argument("--algo", nargs="+", choices=list(ALGORITHMS), default=list(ALGORITHMS))
    parser.add_argument("--net", nargs="+", default=["256,256", "400,300"], help="hidden widths, e.g. 256,256 1024,1024")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=20, help="gradient steps per timing")


def measure(algo: str, net_arch: list[int], *, batch_size: int, sparsity: float, rounds: int, steps: int) -> dict[str, Timing]:
    """
    :param algo: ``"td3"``, ``"sac"`` or ``"dqn"``.
    :param net_arch: Hidden widths.
    :param batch_size: Samples per gradient step.
    :param sparsity: Sparsity of the sparse variant, uniform over the layers so that each has a mask.
    :param rounds: Timings of each variant.
    :param steps: Gradient steps per timing.
    :return: Timing of one gradient step by variant.
    """
    kwargs = {
        "stock": None,
        "sparsity 0": dict(sparsity=0.0, engine="torch"),
        f"sparsity {sparsity:g}": dict(sparsity=sparsity, distribution="uniform", engine="torch"),
    }
    models = {name: make_model(algo, net_arch, policy_kwargs, batch_size=batch_size) for name, policy_kwargs in kwargs.items()}
    variants = {name: partial(model.train, steps, batch_size) for name, model in models.items()}
    timings = interleave(variants, "stock", rounds=rounds, calls=1)
    return {name: Timing(timing.seconds / steps, timing.ratio, timing.low, timing.high) for name, timing in timings.items()}


def run(arguments: argparse.Namespace) -> None:
    """
    Measure and print a Markdown table.

    :param arguments: Parsed by :func:`add_arguments`.
    """
    th.set_num_threads(arguments.threads)
    print(environment())
    print(f"batch {arguments.batch}, medians of {arguments.rounds} rounds of {arguments.steps} gradient steps (quartiles)\n")
    print("| algorithm | net | variant | ms per gradient step | against stock |")
    print("| --- | --- | --- | ---: | ---: |")
    for algo in arguments.algo:
        for net in arguments.net:
            timings = measure(
                algo,
                [int(width) for width in net.split(",")],
                batch_size=arguments.batch,
                sparsity=arguments.sparsity,
                rounds=arguments.rounds,
                steps=arguments.steps,
            )
            for name, timing in timings.items():
                ratio = f"{timing.ratio:.3f} ({timing.low:.3f}-{timing.high:.3f})"
                print(f"| {algo} | {net} | {name} | {timing.seconds * 1e3:.2f} | {ratio} |", flush=True)
