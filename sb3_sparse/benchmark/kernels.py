"""The kernels alone: operations per second of every pass, against what the core can do in registers."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch as th
from torch import nn

from sb3_sparse.benchmark.arguments import density_number, positive, show
from sb3_sparse.engine import native
from sb3_sparse.masks.patterns import parse_pattern


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Declare the arguments of ``kernels``.

    :param parser: Parser of the ``kernels`` sub-command.
    """
    parser.add_argument("--width", nargs="+", type=positive, default=[256, 1024])
    parser.add_argument("--density", nargs="+", type=density_number, default=[1.0, 0.5, 0.25, 0.1, 0.05, 0.01])
    parser.add_argument("--pattern", nargs="+", default=["unstructured", "block:4x1"])
    parser.add_argument("--batch", type=positive, default=256)
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--json", action="store_true")


def _seconds(call: Callable[[], object], at_least: float = 0.02) -> float:
    """Best of five: what disturbs a kernel only ever makes it slower."""
    call()
    start = time.perf_counter()
    call()
    n = max(1, int(at_least / max(time.perf_counter() - start, 1e-7)))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(n):
            call()
        best = min(best, (time.perf_counter() - start) / n)
    return best


def peak() -> float:
    """
    What the core can do when nothing but registers is touched.

    :return: Multiply-adds in registers, in GFLOP/s.
    """
    n = 1_000_000
    flops = native.module.peak(n)
    return flops / _seconds(lambda: native.module.peak(n)) / 1e9


def measure(width: int, density: float, pattern_name: str, batch: int) -> dict[str, float]:
    """
    One layer of ``width`` inputs and outputs with ReLU.

    :param width: Inputs and outputs.
    :param density: Fraction of the weights that exist.
    :param pattern_name: ``"unstructured"`` or ``"block:RxC"``.
    :param batch: Samples.
    :return: GFLOP/s of the surviving weights' operations: forward, input gradient, weight gradient; and how much faster each
        is than dense torch.
    """
    generator = th.Generator().manual_seed(0)
    pattern = parse_pattern(pattern_name)
    shape = (width, width)
    mask = pattern.select(th.rand(shape, generator=generator), pattern.budget(shape, max(1, round(density * width * width))))
    weight = th.randn(shape, generator=generator) * mask
    bias = th.zeros(width)
    network = native.module.Network([(mask.data_ptr(), width, width, 1)], [(weight.data_ptr(), bias.data_ptr())])
    network.gather_weight(0)
    x, dy = th.randn(batch, width, generator=generator), th.randn(batch, width, generator=generator)
    y, dx = th.empty_like(dy), th.empty_like(x)
    threads = th.get_num_threads()

    def forward(record: bool) -> object:
        return native.module.forward(network, x.data_ptr(), batch, width, 1, y.data_ptr(), threads, record)[0]

    tape = forward(True)

    def backward(with_weights: bool, to: int) -> object:
        deltas = native.module.backward(tape, dy.data_ptr(), width, 1, to, threads)
        return deltas.weight_gradient(False, threads) if with_weights else None

    rest = _seconds(lambda: backward(False, 0))
    seconds = {
        "forward": _seconds(lambda: forward(False)),
        "input gradient": _seconds(lambda: backward(False, dx.data_ptr())) - rest,
        "weight gradient": _seconds(lambda: backward(True, 0)) - rest,
    }
    with th.no_grad():
        dense = {
            "forward": _seconds(lambda: th.relu(nn.functional.linear(x, weight, bias))),
            "input gradient": _seconds(lambda: dy @ weight),
            "weight gradient": _seconds(lambda: dy.t() @ x),
        }
    flops = 2.0 * float(mask.sum()) * batch
    result = {}
    for name, value in seconds.items():
        result[f"{name} GFLOP/s"] = flops / max(value, 1e-9) / 1e9
        result[f"{name} x dense"] = dense[name] / max(value, 1e-9)
    return result


def run(arguments: argparse.Namespace) -> None:
    """
    Measure and print.

    :param arguments: Parsed by :func:`add_arguments`.
    :raises ImportError: Without the native engine.
    :raises ValueError: For a pattern that there is not, or that a layer of one of the widths cannot have.
    """
    for spec in arguments.pattern:
        pattern = parse_pattern(spec)
        for width in arguments.width:
            if (reason := pattern.impossible((width, width))) is not None:
                raise ValueError(f"`--pattern` {spec!r} is impossible for a layer of width {width}: {reason}")
    if not native.available():
        raise ImportError(native.why_not())
    th.set_num_threads(arguments.threads)
    note = (
        f"one layer, batch {arguments.batch}, instruction set {native.instruction_set()}; "
        f"multiply-adds in registers: {peak():.0f} GFLOP/s on one core. "
        "Packing of rows into panels is part of forward and input gradient"
    )
    rows = [
        {"width": width, "pattern": pattern, "density": density, **measure(width, density, pattern, arguments.batch)}
        for width in arguments.width
        for pattern in arguments.pattern
        for density in arguments.density
    ]
    show((note, rows), as_json=arguments.json)
