"""
Two, three and four bits: what ``predict()`` answers is what the integers' definition says, in every format, and what is
counted is what is stored.
"""

import re

import numpy as np
import pytest
import torch as th
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3 import DQN, PPO, SAC, TD3

from sb3_sparse import QuantizationAware, export, integer_forward, load_policy, quantize, sparsity_report
from sb3_sparse.analysis.integer_forward import network_output
from sb3_sparse.export.c.layers import nibbles
from sb3_sparse.export.decision import decision_of
from sb3_sparse.nn.integer_layers import integer_arithmetic
from sb3_sparse.policies.quantized_layers import DEPLOYED_NETWORKS
from sb3_sparse_runtime.encodings import value_bytes
from sb3_sparse_runtime.file import read
from tests.export.subjects import COMPILERS, arrays, build, c_actions, graph_and_source, needs_compiler
from tests.helpers import make_model, observations

BITS = [2, 3, 4]


def same(first, second):
    return np.array_equal(np.asarray(first, np.float32).view(np.int32), np.asarray(second, np.float32).view(np.int32))


def deployed(report):
    return [layer for layer in report.layers if layer.network in DEPLOYED_NETWORKS]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    algorithm=st.sampled_from([TD3, SAC, DQN, PPO]),
    bits=st.sampled_from(BITS),
    activation_bits=st.sampled_from([2, 3, 4, 8]),
    input_bits=st.sampled_from([8, 16]),
    sparsity=st.sampled_from([0.0, 0.5, 0.9]),
    widths=st.lists(st.integers(3, 33), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
    size=st.sampled_from([1e-3, 1.0, 40.0]),
)
def test_predict_is_the_definition(algorithm, bits, activation_bits, input_bits, sparsity, widths, seed, size):
    model = make_model(algorithm, policy_kwargs=dict(sparsity=sparsity, net_arch=widths), seed=seed)
    with th.no_grad():
        for layer in model.policy.sparsifier.layers.values():
            layer.weight.mul_(size)
    model = quantize(model, data=observations(model, 32), bits=bits, activation_bits=activation_bits, input_bits=input_bits)
    seen = observations(model)
    assert same(network_output(model, seen), integer_forward(model, seen))
    actions, _ = model.predict(seen, deterministic=True)
    with integer_arithmetic(model.policy):
        assert np.array_equal(actions, model.predict(seen, deterministic=True)[0])
    for layer in decision_of(model).layers:
        assert layer.bits == bits
        assert np.abs(layer.weight).max() <= 2 ** (bits - 1) - 1
        # The largest weight of a row has the largest integer: no code is wasted
        rows = np.abs(layer.weight).reshape(len(layer.weight), -1).max(axis=1)
        assert set(rows) <= {0, 2 ** (bits - 1) - 1}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sparsity", [0.0, 0.9])
def test_bytes_that_are_counted_are_bytes_that_are_stored(bits, sparsity, tmp_path):
    plain = make_model(TD3, policy_kwargs=dict(sparsity=sparsity, net_arch=[40, 30], distribution="uniform"))
    model = quantize(plain, data=observations(plain, 64), bits=bits)
    file = tmp_path / "policy.sb3s"
    export(model, file, to="packed")
    seen = observations(model)
    expected, _ = model.predict(seen, deterministic=True)
    # tanh is another library's
    assert np.allclose(load_policy(file).predict(seen)[0], expected, atol=1e-6)
    layers = deployed(sparsity_report(model))
    for layer in layers:
        n_active = round((1 - sparsity) * 7 * 40) if layer.name.endswith("mu.0") else layer.n_active
        assert layer.n_active == n_active
        assert layer.weight_bytes == value_bytes(n_active, bits) == -(-n_active * bits // 8)
    # Two files of the same masks differ by their values, and by a few bytes of description and indices
    eight = tmp_path / "eight.sb3s"
    export(quantize(plain, data=observations(plain, 64), bits=8), eight, to="packed")
    saved = sum(layer.n_active for layer in layers) - sum(layer.weight_bytes for layer in layers)
    assert eight.stat().st_size - file.stat().st_size == pytest.approx(saved, abs=64)
    assert [layer.bits for layer in read(file).graph.layers] == [bits] * len(layers)


@needs_compiler
@pytest.mark.parametrize("layout", ["fast", "small"])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sparsity", [0.0, 0.9])
def test_generated_c_answers_the_same(bits, sparsity, layout, tmp_path):
    plain = make_model(SAC, policy_kwargs=dict(sparsity=sparsity, net_arch=[40, 30]))
    model = quantize(plain, data=observations(plain, 64), bits=bits)
    seen = observations(model)
    graph, source = graph_and_source(model, layout)
    library = build(source, tmp_path, COMPILERS[0], "-O1", "-Wno-unused-function")
    expected, _ = model.predict(seen, deterministic=True)
    # tanh is another library's
    assert np.allclose(c_actions(library, graph, seen).reshape(expected.shape), expected, atol=1e-6)
    if layout == "small" and sparsity == 0:
        # Nibbles, whose rows begin with a new byte
        n_bytes = sum(len(layer.weight) * -(-layer.weight.shape[1] // 2) for layer in graph.layers)
        sizes = [int(size) for size in re.findall(r"unsigned char \w*weights\w*\[(\d+)\]", source.source)]
        # Of two bits so many are 0 that places of 1 and -1 may take fewer
        assert sum(sizes) < n_bytes if bits == 2 else sum(sizes) == n_bytes


@pytest.mark.parametrize("bits", BITS)
def test_onnx_has_two_weights_in_a_byte(bits):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    import onnx

    from sb3_sparse.export.onnx_file import OnnxPolicy, to_onnx

    plain = make_model(TD3, policy_kwargs=dict(sparsity=0.5, net_arch=[40, 30]))
    model = quantize(plain, data=observations(plain, 64), bits=bits)
    graph, seen = decision_of(model), observations(model)
    data = to_onnx(graph, "four bits", {})
    stored = {one.name: one for one in onnx.load_from_string(data).graph.initializer if one.name.startswith("weight")}
    assert len(stored) == len(graph.layers)
    for one, layer in zip(stored.values(), graph.layers, strict=True):
        assert one.data_type == onnx.TensorProto.INT4
        assert len(one.raw_data) == -(-layer.weight.size // 2)
        assert np.array_equal(onnx.numpy_helper.to_array(one).astype(np.int8), layer.weight.T)
    expected, _ = model.predict(seen, deterministic=True)
    far = np.abs(OnnxPolicy(data, graph)(arrays(graph, seen)).reshape(expected.shape) - expected)
    assert (far < 2e-6).mean() >= 0.9
    assert far.max() < 0.3


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("algorithm", [SAC, DQN])
def test_trained_with_few_bits_and_inputs_of_eight(algorithm, bits):
    model = make_model(algorithm, policy_kwargs=dict(sparsity=0.5, net_arch=[24, 24]))
    model.learn(80, callback=QuantizationAware(bits=bits, activation_bits=8, input_bits=8, start=0.4))
    seen = observations(model)
    assert same(network_output(model, seen), integer_forward(model, seen))
    layers = deployed(sparsity_report(model))
    assert {layer.weight_bits for layer in layers} == {bits}
    assert model.policy.sparsifier.violations() == []


def test_nibbles_by_hand():
    rows = [np.array([-1, 0, 1], np.int8), np.array([7], np.int8)]
    assert nibbles(rows).tolist() == [7 | 8 << 4, 9 | 8 << 4, 15 | 8 << 4]
