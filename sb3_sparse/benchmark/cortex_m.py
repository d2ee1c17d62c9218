"""
What a decision takes on a Cortex-M: instructions, flash and memory of sparse and of dense code, built with the same flags and
run under QEMU on the same observations. Instructions are counted, not cycles, see :mod:`sb3_sparse.export.cortex_m`.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_sparse.benchmark.arguments import net_arch, positive, seed_number, show, sparsity
from sb3_sparse.benchmark.latency import Subject, load_subject, subject_of
from sb3_sparse.benchmark.models import SyntheticEnv, make_model
from sb3_sparse.export.artefact import flat_observations
from sb3_sparse.export.c.kernels import sections
from sb3_sparse.export.c.source import Source, generate
from sb3_sparse.export.cortex_m import BOARDS, Measurement, build, missing_tools, test_bench
from sb3_sparse.export.cortex_m import run as run_bench
from sb3_sparse.export.decision import decision_of
from sb3_sparse.export.parity import disagreement, random_observations
from sb3_sparse_runtime.graph import Graph

#: The loop that rl_tools' generic code compiles to: one sum per output, one product at a time.
ONE_SUM = """\
SB3S_NOINLINE static void sb3s_dense_f32(int n_rows, int n_inputs, const float *weights, const float *bias, const float *x,
                                         float *y)
{
    int o, i;
    for (o = 0; o < n_rows; o++) {
        float sum = bias[o];
        for (i = 0; i < n_inputs; i++) sum += weights[o * n_inputs + i] * x[i];
        y[o] = sum;
    }
}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Declare the arguments of ``cortex-m``.

    :param parser: Parser of the ``cortex-m`` sub-command.
    """
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="a model's zip, or a folder; left out: an untrained TD3 actor, see --net"
    )
    parser.add_argument("--net", type=net_arch, default=[64, 64], help="without MODEL: hidden widths, 17 inputs, 6 outputs")
    parser.add_argument("--sparsity", type=sparsity, default=0.9, help="without MODEL: of the actor")
    parser.add_argument("--board", nargs="+", choices=BOARDS, default=list(BOARDS))
    # Float code may fuse products and sums, as everybody else's does; what is exact forbids it in its own source
    parser.add_argument("--optimize", default="-O2 -ffp-contract=fast", help="flags of the compiler, e.g. --optimize=-Os")
    parser.add_argument("--observations", type=positive, default=30, help="decisions that are counted")
    parser.add_argument("--seed", type=seed_number, default=0, help="seed of observations, and of the actor without MODEL")
    parser.add_argument("--algo", help="the algorithm (td3, sac, ...); found out from the file if left out")
    parser.add_argument("--json", action="store_true")


def untrained(widths: list[int], wanted: float, seed: int) -> Subject:
    """
    Make an actor with statistics of its observations.

    :param widths: Hidden widths.
    :param wanted: Its sparsity.
    :param seed: Seed of weights, masks and statistics.
    :return: The actor, in both precisions.
    """
    model = make_model("td3", widths, dict(sparsity=wanted), batch_size=1, seed=seed)
    normalize = VecNormalize(DummyVecEnv([lambda: SyntheticEnv(discrete=False)]))
    rng = np.random.default_rng(seed)
    found: Any = normalize.obs_rms
    found.mean, found.var = rng.normal(size=found.mean.shape), rng.uniform(0.5, 2, found.var.shape)
    return subject_of(model, normalize, "an untrained TD3 with statistics of observations", seed)


def with_one_sum(source: Source) -> Source:
    """
    Put rl_tools' loop into the place of our dense one.

    :param source: Generated C, dense and in float32.
    :return: The same with that loop.
    :raises ValueError: If there is no dense layer in it.
    """
    own = sections()["dense_f32"][1]
    if own not in source.source:
        raise ValueError("the policy has no dense layer of float32 numbers")
    return replace(source, source=source.source.replace(own, ONE_SUM))


def sources(subject: Subject) -> dict[str, tuple[Source, Graph]]:
    """
    Generate what is compared.

    :param subject: A model in both precisions.
    :return: Generated C and the decision it was made of, by name.
    """
    floats, integers = (decision_of(model, normalize=subject.normalize) for model in (subject.stock, subject.quantized))
    bits = max(layer.bits for layer in integers.layers if layer.is_quantized)
    found = {
        f"sparse int{bits}": (generate(integers, layout="small"), integers),
        f"dense int{bits}": (generate(integers, layout="small-dense"), integers),
        "sparse fp32": (generate(floats, layout="small"), floats),
        "dense fp32": (generate(floats, layout="small-dense"), floats),
    }
    if any(layer.name == "linear" for layer in floats.operations):
        found["dense fp32, one sum per output (rl_tools' loop)"] = (with_one_sum(found["dense fp32"][0]), floats)
    return found


def measure(source: Source, graph: Graph, board: str, rows: NDArray[np.float32], optimize: str) -> Measurement:
    """
    Build a policy for a board and run it under QEMU.

    :param source: Generated C.
    :param graph: The decision that it was made of.
    :param board: The board.
    :param rows: Observations ``[n, numbers]``.
    :param optimize: The compiler's optimisation.
    :return: What was measured.
    :raises RuntimeError: If it cannot be built or run.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, text in test_bench(source).items():
            (folder / path).write_text(text)
        memory = build(folder, source.name, board, [f"OPTIMIZE={optimize}"])
        return run_bench(folder, graph.action.size, board, rows, memory)


def require_same(name: str, graph: Graph, found: Measurement, observations: dict[str, NDArray]) -> None:
    """
    Refuse numbers of code that decides otherwise.

    :param name: What was measured.
    :param graph: The decision.
    :param found: What was measured of it.
    :param observations: On which observations.
    :raises ValueError: If its actions are not the decision's.
    """
    expected = graph.evaluate(observations)[graph.outputs["action"]].reshape(found.actions.shape)
    if graph.is_exact and not np.array_equal(expected, found.actions):
        raise ValueError(f"{name} does not decide as its integers say, to the bit")
    if (said := disagreement(graph, expected, found.actions)) is not None:
        raise ValueError(f"{name} does not decide as its model: {said}")


def run(arguments: argparse.Namespace) -> None:
    """
    Measure and print.

    :param arguments: Parsed by :func:`add_arguments`.
    :raises ImportError: If a tool is missing.
    """
    if (missing := missing_tools()) is not None:
        raise ImportError(f"the benchmark cortex-m needs tools: {missing}")
    if arguments.model is not None:
        subject = load_subject(arguments.model, arguments.algo, arguments.seed)
    else:
        subject = untrained(arguments.net, arguments.sparsity, arguments.seed)
    rows: list[dict[str, Any]] = []
    compared = sources(subject)
    observations = random_observations(next(iter(compared.values()))[1], arguments.observations, arguments.seed)
    for board in arguments.board:
        for name, (source, graph) in compared.items():
            found = measure(source, graph, board, flat_observations(graph, observations), arguments.optimize)
            require_same(f"{name} on {board}", graph, found, observations)
            memory = found.memory
            row = {"board": board, "code": name, "instructions": round(found.instructions), "tables (B)": memory.tables}
            rows.append({**row, "code (B)": memory.code, "static RAM (B)": memory.ram, "stack (B)": found.stack})
    note = (
        f"{subject.said}; arm-none-eabi-gcc {arguments.optimize}, QEMU -icount shift=0, "
        f"{arguments.observations} observations; normalisation and action scaling included; flash from the linker's map"
    )
    show((note, rows), as_json=arguments.json)
