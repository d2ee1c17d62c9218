"""
One decision, from an observation to an action, in every way there is to make it: Stable-Baselines3's ``predict``, the bare
torch module, ONNX Runtime, this package's runner, and generated C. All take turns in one process, one thread each.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from sb3_sparse.benchmark.arguments import net_arch, positive, seed_number, show, sparsity
from sb3_sparse.benchmark.calls import Calls, Latency, PythonCalls, c_calls, take_turns
from sb3_sparse.benchmark.models import make_model
from sb3_sparse.conversion.loading import find_model_file, load_model
from sb3_sparse.conversion.quantize import quantize
from sb3_sparse.conversion.sparsify import sparsify
from sb3_sparse.conversion.to_stock import to_stock
from sb3_sparse.export.arrangement import arranged
from sb3_sparse.export.artefact import c_compiler, flat_observations
from sb3_sparse.export.c.source import generate
from sb3_sparse.export.decision import decision_of
from sb3_sparse.export.normalization import normalized, statistics_of
from sb3_sparse.export.onnx_file import OnnxPolicy, to_onnx
from sb3_sparse.export.packed import pack
from sb3_sparse.export.parity import disagreement, model_actions, random_observations
from sb3_sparse.policies.base import SparsePolicyMixin, policy_of
from sb3_sparse.zoo.runs import find_zoo_run
from sb3_sparse_runtime.file import from_bytes
from sb3_sparse_runtime.graph import Graph
from sb3_sparse_runtime.policy import Policy

#: Observations that the calls go through.
N_OBSERVATIONS = 64
PREDICT, RUNNER = "SB3 predict", "our Python runner"
COLUMNS = ("median us", "p99 us", "x faster than predict", "quartiles", "x faster than ONNX Runtime")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Declare the arguments of ``latency``.

    :param parser: Parser of the ``latency`` sub-command.
    """
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="a model's zip, or a folder; left out: an untrained TD3 actor, see --net"
    )
    parser.add_argument("--net", type=net_arch, default=[256, 256], help="without MODEL: hidden widths, 17 inputs, 6 outputs")
    parser.add_argument("--sparsity", type=sparsity, default=0.95, help="without MODEL: of the actor")
    parser.add_argument("--rounds", type=positive, default=40, help="in each, every variant has its turn, in random order")
    parser.add_argument("--calls", type=positive, default=50, help="calls of a turn that are timed, after a few that are not")
    parser.add_argument("--cc", help="C compiler; left out: CC of the environment, cc, gcc or clang")
    parser.add_argument("--seed", type=seed_number, default=0, help="seed of observations, and of the actor without MODEL")
    parser.add_argument("--algo", help="the algorithm (td3, sac, ...); found out from the file if left out")
    parser.add_argument("--json", action="store_true")


@dataclass(frozen=True, eq=False)
class Subject:
    """
    A model in the two precisions that are compared.

    :param stock: The float32 model with a stock policy: what somebody without this package would run.
    :param quantized: The same with integers.
    :param normalize: Statistics of its observations, None for none.
    :param said: What it is, one line.
    """

    stock: BaseAlgorithm
    quantized: BaseAlgorithm
    normalize: VecNormalize | None
    said: str


def subject_of(model: BaseAlgorithm, normalize: VecNormalize | None, said: str, seed: int = 0) -> Subject:
    """
    Bring a model into both precisions.

    :param model: A model, sparse or stock, quantized or not.
    :param normalize: Statistics of its observations, None for none.
    :param said: What it is.
    :param seed: Seed of the observations that a model which is not quantized gets its scales from; its actions are of no
        consequence here.
    :return: Both.
    :raises ValueError: If it cannot be exported.
    """
    graph = decision_of(model, normalize=normalize)
    layers = graph.layers
    bits = sorted({layer.bits for layer in layers})
    is_quantized = bits != [32]
    sparse = model if isinstance(policy_of(model), SparsePolicyMixin) else sparsify(model, 0.0)
    quantized = sparse
    if not is_quantized:
        given: Any = random_observations(graph, 256, seed)
        given = given if hasattr(policy_of(model).observation_space, "spaces") else given["observation"]
        quantized = quantize(sparse, data=given if normalize is None else normalized(normalize, given), bits=8)
    n_weights = sum(layer.weight.size for layer in layers)
    n_active = sum(int(np.count_nonzero(layer.weight)) for layer in layers)
    shapes = "-".join(str(width) for width in (layers[0].matrix.shape[1], *(len(layer.weight) for layer in layers)))
    stock = to_stock(sparse, bake_quantization=True)
    described = f"{said}: {shapes}, {1 - n_active / n_weights:.1%} of {n_weights:,} weights are zero"
    return Subject(stock, quantized, normalize, described + (f", quantized to {bits[0]} bits" if is_quantized else ""))


def _without_keys(observations: Mapping[str, NDArray], model: BaseAlgorithm) -> Any:
    return observations if hasattr(policy_of(model).observation_space, "spaces") else observations["observation"]


def _rows(given: Any) -> list[Any]:
    if isinstance(given, Mapping):
        return [{key: part[index] for key, part in given.items()} for index in range(len(next(iter(given.values()))))]
    return list(given)


def _predict(subject: Subject, observations: Mapping[str, NDArray]) -> PythonCalls:
    model, normalize = subject.stock, subject.normalize
    rows = _rows(_without_keys(observations, model))
    if normalize is None:
        return PythonCalls(lambda row: model.predict(row, deterministic=True), rows)
    return PythonCalls(lambda row: model.predict(normalize.normalize_obs(row), deterministic=True), rows)


def _torch_module(subject: Subject, observations: Mapping[str, NDArray]) -> PythonCalls:
    """The policy's own forward pass on a tensor that is ready, without what ``predict`` does before and after."""
    policy = policy_of(subject.stock)
    policy.set_training_mode(False)
    given = _without_keys(observations, subject.stock)
    given = given if subject.normalize is None else normalized(subject.normalize, given)
    tensors = [policy.obs_to_tensor(row)[0] for row in _rows(given)]

    def decide(tensor: Any) -> Any:
        with th.inference_mode():
            return policy._predict(tensor, deterministic=True)

    return PythonCalls(decide, tensors)


def _onnx(graph: Graph, observations: Mapping[str, NDArray]) -> PythonCalls:
    """``session.run`` alone, with everything in the file."""
    policy = OnnxPolicy(to_onnx(graph, "latency", {}), graph)
    rows = [
        policy.inputs({name: array[index : index + 1] for name, array in observations.items()})
        for index in range(N_OBSERVATIONS)
    ]
    return PythonCalls(lambda row: policy.session.run(["action"], row), rows)


def _runner(graph: Graph, observations: Mapping[str, NDArray]) -> tuple[PythonCalls, str]:
    policy = Policy(from_bytes(pack(graph, {}, {})))
    rows = _rows(observations["observation"] if "observation" in observations and len(observations) == 1 else observations)
    return PythonCalls(policy.predict, rows), policy.runner


def variants(
    subject: Subject, folder: Path, *, seed: int = 0, compiler: str | None = None
) -> tuple[dict[str, Calls], list[str]]:
    """
    Prepare everything that is compared.

    :param subject: A model.
    :param folder: Where to compile.
    :param seed: Seed of the observations.
    :param compiler: C compiler, None: the one that is found.
    :return: What to call by name, and what is left out, with the reason.
    :raises ValueError: If generated C answers something else than its model.
    :raises RuntimeError: If a compiler refuses it.
    """
    models = (subject.stock, subject.quantized)
    floats, integers = (arranged(decision_of(model, normalize=subject.normalize)) for model in models)
    observations = random_observations(floats, N_OBSERVATIONS, seed)
    found: dict[str, Calls] = {
        PREDICT: _predict(subject, observations),
        "torch module": _torch_module(subject, observations),
    }
    left_out = []
    try:
        found["ONNX Runtime fp32"] = _onnx(floats, observations)
        found["ONNX Runtime int8 (QDQ)"] = _onnx(integers, observations)
    except ImportError as error:
        left_out.append(f"ONNX Runtime is left out: {error}")
    for name, graph in (("fp32", floats), ("int8", integers)):
        found[f"{RUNNER} {name}"], runner = _runner(graph, observations)
    if runner != "compiled":
        left_out.append(f"our Python runner is {runner} here: the compiled one was not built, or SB3_SPARSE_RUNNER refuses it")
    try:
        compiler = compiler or c_compiler()
    except ImportError as error:
        return found, [*left_out, f"generated C is left out: {error}"]
    for name, graph, layout in (
        ("C dense fp32", floats, "dense"),
        ("C dense int8", integers, "dense"),
        ("C sparse fp32", floats, "fast"),
        ("C sparse int8", integers, "fast"),
    ):
        source = generate(graph, "policy", layout=layout)
        calls = c_calls(source, graph, flat_observations(graph, observations), folder / name.replace(" ", "_"), compiler)
        model = subject.stock if graph is floats else subject.quantized
        found_other = disagreement(graph, model_actions(model, observations, subject.normalize), calls.actions())
        if found_other is not None:
            raise ValueError(f"{name} does not decide as its model: {found_other}")
        found[name] = calls
    return found, left_out


def rows_of(found: Mapping[str, Latency]) -> list[dict[str, Any]]:
    """
    Compare each variant with ``predict`` and with ONNX Runtime in the same rounds.

    :param found: What was measured.
    :return: Rows of a table.
    """
    rows = []
    for name, latency in found.items():
        low, ratio, high = latency.times_faster_than(found[PREDICT])
        row: dict[str, Any] = {"variant": name, COLUMNS[0]: latency.median * 1e6, COLUMNS[1]: latency.p99 * 1e6}
        row |= {COLUMNS[2]: ratio, COLUMNS[3]: f"{low:.1f}-{high:.1f}"}
        if "ONNX Runtime fp32" in found:
            row[COLUMNS[4]] = latency.times_faster_than(found["ONNX Runtime fp32"])[1]
        rows.append(row)
    return rows


def load_subject(path: str, algorithm: str | None = None, seed: int = 0) -> Subject:
    """
    Load what is to be measured.

    :param path: A model's zip, or a folder; rl-zoo3's statistics beside it are found.
    :param algorithm: rl-zoo3's name of the algorithm, None: found out.
    :param seed: See :func:`subject_of`.
    :return: The model.
    :raises ValueError: If it cannot be loaded or exported.
    """
    file = find_model_file(path)
    return subject_of(load_model(file, algorithm), statistics_of(find_zoo_run(file)), file.name, seed)


def measure(
    subject: Subject, *, rounds: int, calls: int, seed: int = 0, compiler: str | None = None
) -> tuple[list[dict], list[str]]:
    """
    Measure a model.

    :param subject: The model.
    :param rounds: Turns of each variant.
    :param calls: Timed calls of a turn.
    :param seed: Seed of the observations.
    :param compiler: C compiler, None: the one that is found.
    :return: Rows of a table, and what else there is to say.
    """
    threads = th.get_num_threads()
    th.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            found, left_out = variants(subject, Path(folder), seed=seed, compiler=compiler)
            rows = rows_of(take_turns(found, rounds=rounds, calls=calls))
    finally:
        th.set_num_threads(threads)
    return rows, left_out


def run(arguments: argparse.Namespace) -> None:
    """
    Measure and print.

    :param arguments: Parsed by :func:`add_arguments`.
    """
    if arguments.cc is not None:
        arguments.cc = c_compiler(arguments.cc)
    if arguments.model is not None:
        subject = load_subject(arguments.model, arguments.algo, arguments.seed)
    else:
        model = make_model("td3", arguments.net, dict(sparsity=arguments.sparsity), batch_size=1, seed=arguments.seed)
        subject = subject_of(model, None, "an untrained TD3", arguments.seed)
    rows, left_out = measure(
        subject, rounds=arguments.rounds, calls=arguments.calls, seed=arguments.seed, compiler=arguments.cc
    )
    notes = [
        subject.said,
        f"one observation, one thread, {arguments.rounds} rounds of {arguments.calls} calls in random order; the clock's own "
        "time is taken off; C with -O3",
        *left_out,
    ]
    show(("; ".join(notes), rows), as_json=arguments.json)
