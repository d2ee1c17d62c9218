"""ONNX: valid, for any batch, and the graph's answers in ONNX Runtime."""

import numpy as np
import pytest
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN, PPO, SAC, TD3
from torch import nn

from sb3_sparse import export, quantize
from sb3_sparse.export.decision import decision_of
from sb3_sparse.export.onnx_file import OnnxPolicy, to_onnx
from tests.export.subjects import IDS, SUPPORTED, SpacesEnv, arrays, graph_actions, known, model_of
from tests.export.test_decision import ACTIONS, ACTIVATIONS, OBSERVATIONS, normalizing
from tests.helpers import RandomEnv, make_model, observations

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def answers(graph, given, masks=None):
    return OnnxPolicy(to_onnx(graph, "about", {}), graph)(arrays(graph, given), masks)


def assert_agrees(graph, got, expected, *, bits=0, often=0.9):
    got, expected = got.reshape(len(got), -1), expected.reshape(len(expected), -1)
    if graph.action.kind == "box":
        # Quantized: a number on the edge between two integers may go the other way
        far = np.abs(got - expected).max(axis=1)
        assert (far < 2e-6).mean() >= (often if bits else 1)
        assert far.max() < (0.05 if bits else 2e-6)
    else:
        assert (got == expected).all(axis=1).mean() >= (0.9 if bits else 1)


@pytest.mark.parametrize("bits", [0, 8])
@pytest.mark.parametrize(("algorithm", "kind"), SUPPORTED, ids=IDS)
def test_every_algorithm_and_policy(algorithm, kind, bits):
    model = known(algorithm, kind, bits)
    graph, given = decision_of(model), observations(model)
    expected, _ = model.predict(given, deterministic=True)
    assert_agrees(graph, answers(graph, given), expected, bits=bits)


@pytest.mark.parametrize("space", OBSERVATIONS, ids=lambda space: type(space).__name__)
def test_every_observation_space(space):
    kind = "MultiInput" if isinstance(space, spaces.Dict) else "Mlp"
    model = model_of(PPO, kind, env=SpacesEnv(space, spaces.Box(-1, 1, (2,), np.float32)))
    graph, given = decision_of(model), observations(model)
    assert_agrees(graph, answers(graph, given), graph_actions(graph, given))


@pytest.mark.parametrize("space", ACTIONS, ids=str)
def test_every_action_space(space):
    model = model_of(PPO, env=SpacesEnv(spaces.Box(-1, 1, (5,), np.float32), space))
    graph, given = decision_of(model), observations(model)
    assert_agrees(graph, answers(graph, given), graph_actions(graph, given))


@pytest.mark.parametrize("bits", [0, 8, 3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_function_and_fewer_bits(activation, bits):
    plain = model_of(PPO, policy_kwargs=dict(activation_fn=activation))
    model = quantize(plain, data=observations(plain, 64), bits=bits, activation_bits=max(bits, 5)) if bits else plain
    graph, given = decision_of(model), observations(model)
    assert_agrees(graph, answers(graph, given), graph_actions(graph, given), bits=bits)


def test_inputs_of_16_bits_and_in_float():
    for input_bits in (16, "float"):
        plain = model_of(TD3)
        model = quantize(plain, data=observations(plain, 64), input_bits=input_bits)
        graph, given = decision_of(model), observations(model)
        # Products of 16 and 8 bits are sums that float32 does not hold
        assert_agrees(graph, answers(graph, given), graph_actions(graph, given), bits=8, often=0.5)


def test_statistics_masks_and_distributions():
    env = normalizing(RandomEnv())
    model = make_model(TD3, env=env)
    graph, given = decision_of(model, normalize=env), observations(model)
    expected, _ = model.predict(env.normalize_obs(given), deterministic=True)
    assert_agrees(graph, answers(graph, given), expected)
    model = known(MaskablePPO)
    graph, given = decision_of(model), observations(model)
    masks = np.random.default_rng(0).random((len(given), 3)) < 0.5
    masks[:, 0] |= ~masks.any(axis=1)
    expected, _ = model.predict(given, deterministic=True, action_masks=masks)
    assert np.array_equal(answers(graph, given, masks).ravel(), expected)
    for algorithm in (SAC, PPO):
        graph, given = decision_of(known(algorithm), distribution=True), observations(known(algorithm))
        session = OnnxPolicy(to_onnx(graph, "", {}), graph).session
        assert [output.name for output in session.get_outputs()] == ["action", "mean", "std"]
        values = graph.evaluate({"observation": given})
        for name, got in zip(("action", "mean", "std"), session.run(None, {"observation": given}), strict=True):
            assert np.allclose(got, values[graph.outputs[name]], atol=2e-6)


@pytest.mark.parametrize(("algorithm", "bits"), [(TD3, 0), (TD3, 8), (DQN, 8), (MaskablePPO, 0)])
def test_the_file_is_checked_has_names_for_people_and_takes_any_batch(algorithm, bits, tmp_path):
    model = known(algorithm, "Mlp", bits)
    exported = export(model, tmp_path / "policy.onnx")
    loaded = onnx.load(exported.path)
    onnx.checker.check_model(loaded, full_check=True)
    assert {prop.key for prop in loaded.metadata_props} == {"provenance"}
    kinds = {node.op_type for node in loaded.graph.node}
    assert ("QuantizeLinear" in kinds) == bool(bits)
    # Masks leave no trace but zeros
    assert not any("mask" in tensor.name for tensor in loaded.graph.initializer)
    policy = OnnxPolicy(exported.path.read_bytes(), exported.graph)
    inputs = {one.name: one for one in policy.session.get_inputs()}
    assert inputs["observation"].shape == ["batch", 7]
    given = observations(model)
    whole = policy({"observation": given})
    for size in (1, 5):
        assert np.allclose(policy({"observation": given[:size]}), whole[:size], atol=1e-6)
    action = policy.session.get_outputs()[0]
    discrete = algorithm is not TD3
    assert (action.name, action.type, action.shape) == (
        "action",
        "tensor(int64)" if discrete else "tensor(float)",
        ["batch"] if discrete else ["batch", 2],
    )


def test_a_missing_package_is_said_before_anything_is_written(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'sb3-sparse\[export\]'"):
        export(known(TD3), tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())
    assert nn.ReLU in ACTIVATIONS
