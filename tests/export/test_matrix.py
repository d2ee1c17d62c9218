"""
Every algorithm x action space x policy x precision x format: what an export answers is what its model answers, and where sums
are integers, the packed runner, numpy, generated C and a Cortex-M answer the same bits.

The normal run takes a slice in which every algorithm, action space, policy, precision and format is met.
"""

import itertools

import numpy as np
import pytest
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, MaskablePPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3

from sb3_sparse import quantize
from sb3_sparse.export.artefact import CompiledPolicy, flat_observations
from sb3_sparse.export.c.source import generate
from sb3_sparse.export.cortex_m import build, missing_tools, run, test_bench
from sb3_sparse.export.exporter import make_artefact
from sb3_sparse.export.parity import difference
from sb3_sparse_runtime import compiled
from sb3_sparse_runtime.compiled import CompiledRunner
from sb3_sparse_runtime.file import from_bytes
from tests.export.subjects import COMPILERS, SpacesEnv, arrays, bits_of, model_of
from tests.helpers import IMAGE, observations

test_bench.__test__ = False
VECTOR = spaces.Box(-1, 1, (7,), np.float32)
ACTIONS = {
    "Box": spaces.Box(np.array([-2, 0.5], np.float32), np.array([1, 3], np.float32)),
    "Discrete": spaces.Discrete(5),
    "MultiDiscrete": spaces.MultiDiscrete([3, 1, 4]),
    "MultiBinary": spaces.MultiBinary(4),
}
DECIDERS = [
    *((algorithm, "Box") for algorithm in (TD3, DDPG, SAC, TQC)),
    *((algorithm, "Discrete") for algorithm in (DQN, QRDQN)),
    *itertools.product((PPO, A2C), ACTIONS),
    *((MaskablePPO, name) for name in ("Discrete", "MultiDiscrete", "MultiBinary")),
]
KINDS = ["Mlp", "Cnn"]
BITS = [0, 8, 4, 3, 2]
MATRIX = [(*decider, kind, bits) for decider in DECIDERS for kind in KINDS for bits in BITS]
#: Each decider, kind and precision several times: steps that have no factor in common with their numbers.
SLICE = [MATRIX[index * 10 + (index % 2) * 5 + index % 5] for index in range(len(DECIDERS))]


def name_of(case):
    algorithm, action, kind, bits = case
    return f"{algorithm.__name__}-{action}-{kind}-{bits or 'float'}"


def make(algorithm, action, kind, bits):
    env = SpacesEnv(VECTOR if kind == "Mlp" else IMAGE, ACTIONS[action])
    model = model_of(algorithm, kind, env=env, policy_kwargs=dict(sparsity=0.6))
    # Inputs of 16 bits where weights have few, as the guide advises: otherwise many actions are nearly the same
    inputs = dict(input_bits=16) if 0 < bits < 4 else {}
    return quantize(model, data=observations(model, 64), bits=bits, **inputs) if bits else model


def masks_of(graph, n):
    if graph.chooser is None:
        return None
    masks = np.random.default_rng(0).random((n, sum(graph.chooser.sizes))) < 0.6
    start = 0
    for size in graph.chooser.sizes:
        masks[:, start] |= ~masks[:, start : start + size].any(axis=1)
        start += size
    return masks


def answers(model, graph, given, folder, layouts):
    """Actions of every way to run it, with masks and without."""
    observed, n = arrays(graph, given), len(given)
    found = {}
    for masks in (None, masks_of(graph, n)):
        if masks is None and found:
            continue
        kind = "" if masks is None else " with masks"
        packed = from_bytes(make_artefact(model, "packed").data).graph
        found["numpy" + kind] = packed.evaluate(observed, masks)[packed.outputs["action"]]
        if compiled.module is not None:
            for avx512 in {False, compiled.module.has_avx512()}:
                found[f"runner {avx512}{kind}"] = CompiledRunner(packed, avx512=avx512)(observed, masks)
        with make_artefact(model, "onnx").deciding() as decide:
            found["onnx" + kind] = decide(observed, masks)
        for layout in layouts:
            (folder / layout).mkdir(exist_ok=True)
            policy = CompiledPolicy(generate(graph, layout=layout), graph, folder / layout, ("-O1",))
            found[f"C {layout}{kind}"] = policy(observed, masks)
        if masks is None and "small" in layouts and missing_tools() is None:
            for path, text in test_bench(generate(graph, layout="small")).items():
                (folder / path).write_text(text)
            board = ("m4f", "m7", "m33")[len(graph.operations) % 3]
            memory = build(folder, "policy", board)
            found[f"Cortex-M {board}"] = run(
                folder, graph.action.size, board, flat_observations(graph, observed), memory
            ).actions
    return {name: np.asarray(actions).reshape(n, -1) for name, actions in found.items()}


def check(case, folder, layouts):
    algorithm, action, kind, bits = case
    model = make(algorithm, action, kind, bits)
    artefact = make_artefact(model, "packed")
    graph, given = artefact.graph, observations(model, 12)
    assert artefact.graph.is_exact == bool(bits)
    found = answers(model, graph, given, folder, layouts)
    masks = masks_of(graph, len(given))
    for name, actions in found.items():
        extra = {"action_masks": masks} if "masks" in name else {}
        expected, _ = model.predict(given, deterministic=True, **extra)
        expected = expected.reshape(len(given), -1)
        far = difference(graph.action, expected, actions)
        if name.startswith("onnx"):
            # Its own sums may round an input of a layer to the other side
            assert far.largest <= (0.1 if bits else 2e-5) * 3, name
            assert far.agreement >= (0.8 if bits else 1) or action == "Box", name
        elif action == "Box":
            assert far.largest < 4e-6, name
        else:
            assert far.agreement == 1, name
        if bits and not name.startswith("onnx"):
            reference = found["numpy with masks" if "masks" in name else "numpy"]
            assert np.array_equal(bits_of(actions), bits_of(reference)), name
            if algorithm not in (TD3, DDPG, SAC, TQC):
                # Nothing but integers, one product and one sum: torch has the same bits
                assert np.array_equal(bits_of(actions), bits_of(expected)), name


@pytest.mark.skipif(not COMPILERS, reason="there is no C compiler")
@pytest.mark.parametrize("case", SLICE, ids=name_of)
def test_a_slice_of_the_matrix(case, tmp_path):
    pytest.importorskip("onnxruntime")
    check(case, tmp_path, ["small" if SLICE.index(case) % 4 < 2 else "fast"])


def test_the_slice_meets_everything():
    for column, values in enumerate(([algorithm for algorithm, _ in DECIDERS], ACTIONS, KINDS, BITS)):
        assert {case[column] for case in SLICE} == set(values)
    assert {case[:2] for case in SLICE} == set(DECIDERS)


@pytest.mark.expensive
@pytest.mark.skipif(not COMPILERS, reason="there is no C compiler")
@pytest.mark.parametrize("case", MATRIX, ids=name_of)
def test_the_whole_matrix(case, tmp_path):
    check(case, tmp_path, ["fast", "small"])
