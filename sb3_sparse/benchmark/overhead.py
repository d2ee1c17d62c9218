"""
What the mechanism costs: :mod:`~sb3_sparse.benchmark.step` where torch multiplies, and at sparsity 0.

The torch engine multiplies dense tensors, so a sparse policy can only be slower here; the question is by how much.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch as th

from sb3_sparse.benchmark.arguments import net_arch, positive, show, sparsity
from sb3_sparse.benchmark.models import ALGORITHMS
from sb3_sparse.benchmark.step import measure, row_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments of ``overhead``.

    :param parser: Parser of the ``overhead`` sub-command.
    """
    parser.add_argument("--algo", nargs="+", choices=list(ALGORITHMS), default=list(ALGORITHMS))
    parser.add_argument("--net", nargs="+", type=net_arch, default=[[256, 256], [400, 300]], help="e.g. 256,256 1024,1024")
    parser.add_argument("--batch", type=positive, default=256)
    parser.add_argument("--sparsity", type=sparsity, default=0.9)
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--rounds", type=positive, default=30)
    parser.add_argument("--steps", type=positive, default=20, help="gradient steps per timing")
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace) -> None:
    """
    Measure and print.

    :param arguments: Parsed by :func:`add_arguments`.
    """
    th.set_num_threads(arguments.threads)
    variants: dict[str, dict[str, Any] | None] = {
        "stock": None,
        "sparsity 0": dict(sparsity=0.0, engine="torch"),
        f"sparsity {arguments.sparsity:g}": dict(sparsity=arguments.sparsity, distribution="uniform", engine="torch"),
    }
    rows = []
    for algo in arguments.algo:
        for widths in arguments.net:
            timings, _ = measure(algo, widths, variants, batch=arguments.batch, rounds=arguments.rounds, steps=arguments.steps)
            rows += [row_of(algo, widths, arguments.threads, name, timings) for name in timings]
    note = (
        f"gradient steps of stock train() where torch multiplies, batch {arguments.batch}, medians of {arguments.rounds} "
        f"interleaved rounds of {arguments.steps} gradient steps"
    )
    show((note, rows), as_json=arguments.json)
