"""``python -m sb3_sparse.benchmark``: a sub-command for each of what is measured, each with a ``-h``."""

from __future__ import annotations

from collections.abc import Sequence

from sb3_sparse.benchmark import (
    checkpoint,
    claims,
    compression,
    cortex_m,
    equal_bytes,
    equal_seconds,
    kernels,
    latency,
    overhead,
    samplers,
    step,
    train,
)
from sb3_sparse.utils.command_line import Parser, command

#: Names of a sub-command other than its module's, the present one first.
NAMES = {
    "train": ["learn", "train"],
    "cortex_m": ["cortex-m"],
    "equal_bytes": ["equal-bytes"],
    "equal_seconds": ["equal-seconds"],
}


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Entry point of ``python -m sb3_sparse.benchmark``.

    :param arguments: Command line without the program; None for the process's own.
    """
    parser = Parser(prog="python -m sb3_sparse.benchmark")
    commands = parser.add_subparsers(dest="command", required=True)
    helps = {
        overhead: "what the mechanism costs against the stock policy where torch multiplies",
        step: "a whole gradient step against stock, the best dense torch and masks over dense tensors",
        kernels: "the native kernels alone, against the peak of the core",
        train: "environment steps per second of whole learn()",
        latency: "one decision: predict, torch, ONNX Runtime, our runner, generated C",
        cortex_m: "one decision on a Cortex-M under QEMU: instructions, flash and memory",
        checkpoint: "seconds and MB of run checkpoints, and their share of a training",
        compression: "return against sparsity of pruned and quantized agents: trains them, into a CSV file",
        claims: "what papers claim beside what runs say: tables of grids, finished or not",
        equal_bytes: "return against bytes: wide and sparse beside narrow and dense, from runs of grids",
        equal_seconds: "return after so many seconds of one core: dense, SBX, sparse, and wide and sparse agents",
        samplers: "Optuna's samplers on two problems whose Pareto fronts are known",
    }
    for module, text in helps.items():
        name = module.__name__.rsplit(".", 1)[1]
        of_module = commands.add_parser(*NAMES.get(name, [name])[:1], aliases=NAMES.get(name, [name])[1:], help=text)
        module.add_arguments(of_module)
        of_module.set_defaults(run=module.run)
    with command(parser.prog):
        parsed = parser.parse_args(arguments)
        parsed.run(parsed)


if __name__ == "__main__":
    main()
