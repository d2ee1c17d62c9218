"""The integer semantics: numpy against torch against plain Python, hand-worked cases, and what can never happen."""

import itertools
import struct

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sb3_sparse.nn.integer_layers import integer_layer
from sb3_sparse.nn.layers import SparseConv2d, SparseLinear
from sb3_sparse.quantization import fake_quantizer as quantizer
from sb3_sparse.quantization import integer
from sb3_sparse.quantization.fake_quantizer import Quantizer
from sb3_sparse.quantization.integer import (
    INT32_LIMIT,
    Convolution,
    IntegerLayer,
    accumulator_limit,
    activation_limit,
    weight_limit,
)

BITS = st.integers(2, 8)
INPUT_BITS = st.sampled_from([2, 3, 4, 5, 6, 7, 8, 16])
NUMBERS = st.floats(-1e6, 1e6, width=32)


def float32(number):
    """Python's double, rounded to float32. One operation in double, rounded so, is that operation in float32."""
    return struct.unpack("f", struct.pack("f", number))[0]


def weights(elements=NUMBERS):
    return hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=elements)


def same(array, tensor):
    """Bit for bit, but for the sign of zero."""
    return np.array_equal(np.asarray(array, dtype=np.float32), tensor.detach().numpy())


# --- Weights ---


@given(weights(), BITS)
def test_weights_numpy_torch_python(weight, bits):
    scales = integer.weight_scales(weight, bits)
    quantized = integer.quantize_weights(weight, scales, bits)
    tensor = th.from_numpy(weight)
    assert same(scales, quantizer.weight_scales(tensor, bits))
    assert same(quantized, quantizer.quantize_weights(tensor, quantizer.weight_scales(tensor, bits)))
    for row, scale, row_quantized in zip(weight, scales, quantized, strict=True):
        expected = float32(float(np.abs(row).max()) / (2 ** (bits - 1) - 1))
        assert scale == (expected if expected >= 2.0**-126 else 1.0)
        for value, result in zip(row.ravel(), row_quantized.ravel(), strict=True):
            assert result == round(float32(float(value) / float(scale)))


@given(weights(), BITS)
def test_weights_stay_in_the_symmetric_range_and_zero_is_zero(weight, bits):
    weight[0].flat[0] = 0.0
    scales = integer.weight_scales(weight, bits)
    quantized = integer.quantize_weights(weight, scales, bits)
    assert np.abs(quantized.astype(int)).max() <= weight_limit(bits) <= 127
    assert not quantized[weight == 0].any()
    assert not integer.dequantize_weights(quantized, scales)[weight == 0].any()
    # The largest weight of a row is at the end of the range, and no weight is off by more than half a step
    largest = np.abs(quantized.astype(int)).reshape(len(weight), -1).max(1)
    assert (largest[np.abs(weight).reshape(len(weight), -1).max(1) > 1e-30] == weight_limit(bits)).all()
    error = np.abs(integer.dequantize_weights(quantized, scales).astype(np.float64) - weight).reshape(len(weight), -1)
    assert (error <= scales.astype(np.float64)[:, None] * (0.5 + 1e-4)).all()


def test_weights_by_hand():
    # Scale 1: halves go to the even neighbour
    weight = np.array([[3.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.0]], np.float32)
    scales = integer.weight_scales(weight, 3)
    assert scales.tolist() == [1.0]
    assert integer.quantize_weights(weight, scales, 3).tolist() == [[3, 0, 2, 2, 0, -2, -2, 0]]
    # Two bits are ternary; every row has a scale of its own; a row of zeros has 1
    weight = np.array([[4.0, -4.0, 1.0, 3.0], [0.0, 0.0, 0.0, 0.0], [0.1, -0.3, 0.15, 0.0]], np.float32)
    scales = integer.weight_scales(weight, 2)
    assert scales.tolist() == [4.0, 1.0, float32(0.3)]
    # 0.15 / 0.3 is a half in float32: to even
    assert integer.quantize_weights(weight, scales, 2).tolist() == [[1, -1, 0, 1], [0, 0, 0, 0], [0, -1, 0, 0]]


def test_a_division_is_not_a_multiplication_by_the_reciprocal():
    # Near halves the two differ: find a pair, and see that numpy and torch both divide
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.001, 1, 200_000).astype(np.float32)
    values = ((rng.integers(0, 127, 200_000) + 0.5) * scale.astype(np.float64)).astype(np.float32)
    divided, multiplied = np.rint(values / scale), np.rint(values * (np.float32(1) / scale))
    where = np.flatnonzero(divided != multiplied)
    assert len(where) > 0
    for index in where[:50]:
        expected = round(float32(float(values[index]) / float(scale[index])))
        assert integer.quantize_activations(values[index : index + 1], scale[index], 0, 8)[0] == expected
        tensor = quantizer.quantize_activations(th.tensor([values[index]]), th.tensor(scale[index]), th.tensor(0.0), 8)
        assert int(tensor) == expected


def test_rows_too_small_for_a_normal_scale_quantize_to_zero():
    weight = np.array([[1e-38, -1e-40], [1e-35, 0.0]], np.float32)
    scales = integer.weight_scales(weight, 8)
    assert scales[0] == 1.0
    assert integer.SMALLEST_SCALE <= scales[1] < 1e-36
    assert integer.quantize_weights(weight, scales, 8).tolist() == [[0, 0], [127, 0]]
    assert same(scales, quantizer.weight_scales(th.from_numpy(weight), 8))


# --- Activations ---


@given(NUMBERS, NUMBERS, INPUT_BITS, hnp.arrays(np.float32, 20, elements=NUMBERS))
def test_activations_numpy_torch_python(one, other, bits, values):
    low, high = min(one, other), max(one, other)
    scale, zero_point = integer.activation_parameters(low, high, bits)
    quantized = integer.quantize_activations(values, scale, zero_point, bits)
    torch_scale, torch_zero = quantizer.activation_parameters(th.tensor(low), th.tensor(high), bits)
    assert same(scale, torch_scale)
    assert same(zero_point, torch_zero)
    differences = quantizer.quantize_activations(th.from_numpy(values), torch_scale, torch_zero, bits)
    assert same(quantized.astype(np.int64) - zero_point, differences)
    limit = 2**bits - 1
    bottom, top = min(low, 0.0), max(high, 0.0)
    expected = float32(float32(top - bottom) / limit)
    assert scale == (expected if expected >= 2.0**-126 else 1.0)
    assert zero_point == min(max(round(float32(-bottom / float(scale))), 0), limit)
    for value, result in zip(values, quantized, strict=True):
        quotient = np.float32(float(value) / float(scale)) if abs(value) / float(scale) < 3e38 else value * np.inf
        assert result == (
            0 if quotient < -1e9 else limit if quotient > 1e9 else min(max(round(quotient) + zero_point, 0), limit)
        )


@given(NUMBERS, NUMBERS, INPUT_BITS)
def test_real_zero_is_exact_and_the_range_is_covered(one, other, bits):
    low, high = min(one, other, 0.0), max(one, other, 0.0)
    scale, zero_point = integer.activation_parameters(low, high, bits)
    zero = integer.quantize_activations(np.zeros(1, np.float32), scale, zero_point, bits)
    assert zero[0] == zero_point
    assert integer.dequantize_activations(zero, scale, zero_point)[0] == 0.0
    values = np.linspace(low, high, 50).astype(np.float32)
    back = integer.dequantize_activations(integer.quantize_activations(values, scale, zero_point, bits), scale, zero_point)
    if high - low > 1e-30:
        # Half a step, and at the ends another half for the zero point, which was rounded too
        assert (np.abs(back.astype(np.float64) - values) <= float(scale) * 1.01).all()


def test_activations_by_hand():
    scale, zero_point = integer.activation_parameters(-1.0, 2.0, 2)
    assert (float(scale), zero_point) == (1.0, 1)
    values = np.array([-9, -1.6, -1.5, -0.5, 0.5, 1.5, 1.6, 2.5, np.inf, -np.inf], np.float32)
    assert integer.quantize_activations(values, scale, zero_point, 2).tolist() == [0, 0, 0, 1, 1, 3, 3, 3, 3, 0]
    # The range is widened to hold zero; without extent the scale is 1
    assert integer.activation_parameters(1.0, 255.0, 8) == (1.0, 0)
    assert integer.activation_parameters(-255.0, -3.0, 8) == (1.0, 255)
    assert integer.activation_parameters(0.0, 0.0, 8) == (1.0, 0)
    assert integer.activation_parameters(0.0, 1e-40, 8) == (1.0, 0)
    assert integer.quantize_activations(np.float32([70000]), np.float32(1), 0, 16).dtype == np.uint16
    assert integer.quantize_activations(np.float32([70000]), np.float32(1), 0, 16)[0] == 65535


def test_pixels_are_exact_at_eight_bits():
    pixels = np.arange(256, dtype=np.uint8)
    scale, zero_point = integer.activation_parameters(0.0, 1.0, 8)
    scaled = (th.from_numpy(pixels).float() / 255.0).numpy()  # as Stable-Baselines3 does it
    assert zero_point == 0
    assert np.array_equal(integer.quantize_activations(scaled, scale, zero_point, 8), pixels)


# --- Layers ---


def random_layer(rng, shape, weight_bits, input_bits, convolution=None, bias=True):
    weight = rng.standard_normal(shape).astype(np.float32)
    scales = integer.weight_scales(weight, weight_bits)
    scale, zero_point = integer.activation_parameters(-1.0, 1.7, input_bits)
    return IntegerLayer(
        weight=integer.quantize_weights(weight, scales, weight_bits),
        weight_scales=scales,
        bias=rng.standard_normal(shape[0]).astype(np.float32) if bias else None,
        weight_bits=weight_bits,
        input_bits=input_bits,
        input_scale=scale,
        input_zero_point=zero_point,
        convolution=convolution,
    )


@pytest.mark.parametrize("input_bits", [2, 8, 16])
@pytest.mark.parametrize("weight_bits", [2, 5, 8])
def test_a_linear_layer_in_plain_python(weight_bits, input_bits):
    rng = np.random.default_rng(weight_bits)
    layer = random_layer(rng, (3, 5), weight_bits, input_bits)
    inputs = rng.uniform(-2, 2, (4, 5)).astype(np.float32)
    quantized = layer.quantize_input(inputs)
    sums = layer.accumulate(quantized)
    outputs = layer(inputs)
    assert sums.dtype == np.int32
    for row, out in itertools.product(range(4), range(3)):
        pairs = zip(quantized[row].tolist(), layer.weight[out].tolist(), strict=True)
        expected = sum((q - layer.input_zero_point) * w for q, w in pairs)
        assert sums[row, out] == expected
        multiplier = float32(float(layer.input_scale) * float(layer.weight_scales[out]))
        assert outputs[row, out] == float32(float32(float32(expected) * multiplier) + float(layer.bias[out]))


@settings(max_examples=25)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.tuples(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.tuples(st.integers(0, 2), st.integers(0, 2))),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_a_convolution_in_plain_python(stride, padding, dilation, groups, bias):
    rng = np.random.default_rng(0)
    layer = random_layer(rng, (4, 4 // groups, 2, 3), 8, 8, Convolution(stride, padding, dilation, groups), bias)
    inputs = rng.uniform(-2, 2, (2, 4, 6, 7)).astype(np.float32)
    quantized = layer.quantize_input(inputs)
    sums = layer.accumulate(quantized)
    (top, _), (left, _) = padding
    for n, out, y, x in itertools.product(*map(range, sums.shape)):
        expected, first = 0, out // (4 // groups) * (4 // groups)
        for channel, ky, kx in itertools.product(range(4 // groups), range(2), range(3)):
            iy, ix = y * stride[0] + ky * dilation[0] - top, x * stride[1] + kx * dilation[1] - left
            if 0 <= iy < 6 and 0 <= ix < 7:
                difference = int(quantized[n, first + channel, iy, ix]) - layer.input_zero_point
                expected += difference * int(layer.weight[out, channel, ky, kx])
        assert sums[n, out, y, x] == expected
    outputs = sums.astype(np.float32) * layer.multipliers[:, None, None]
    assert np.array_equal(layer(inputs), outputs + layer.bias[:, None, None] if bias else outputs)


def test_the_accumulator_limit_is_reached_and_not_exceeded():
    for bits, input_bits in ((8, 8), (2, 2), (8, 16)):
        fan_in = INT32_LIMIT // accumulator_limit(1, bits, input_bits)
        fan_in = min(fan_in, 70_000)
        layer = IntegerLayer(
            weight=np.full((2, fan_in), weight_limit(bits), np.int8) * np.array([[1], [-1]], np.int8),
            weight_scales=np.ones(2, np.float32),
            bias=None,
            weight_bits=bits,
            input_bits=input_bits,
            input_scale=np.float32(1),
            input_zero_point=0,
        )
        sums = layer.accumulate(np.full((1, fan_in), activation_limit(input_bits), np.uint16))
        assert sums.tolist() == [[accumulator_limit(fan_in, bits, input_bits), -accumulator_limit(fan_in, bits, input_bits)]]
    assert accumulator_limit(66_312, 8, 8) > INT32_LIMIT >= accumulator_limit(66_311, 8, 8)
    assert accumulator_limit(259, 8, 16) > INT32_LIMIT >= accumulator_limit(258, 8, 16)


LAYERS = {
    "linear": lambda: th.nn.Linear(9, 6),
    "no-bias": lambda: th.nn.Linear(9, 6, bias=False),
    "wide": lambda: th.nn.Linear(3000, 4),
    "conv": lambda: th.nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "conv-many": lambda: th.nn.Conv2d(90, 6, 3, padding="same", dilation=2),
    "conv-even-kernel": lambda: th.nn.Conv2d(4, 6, (2, 4), padding="same", dilation=2),
    "conv-valid": lambda: th.nn.Conv2d(4, 6, 2, padding="valid"),
    "conv-groups": lambda: th.nn.Conv2d(128, 6, 5, groups=2, bias=False),
}


def made_layer(kind):
    th.manual_seed(0)
    layer = LAYERS[kind]()
    return (SparseConv2d if isinstance(layer, th.nn.Conv2d) else SparseLinear).from_dense(layer)


def inputs_for(layer, n=3):
    generator = th.Generator().manual_seed(1)
    shape = (n, layer.in_channels, 7, 8) if isinstance(layer, th.nn.Conv2d) else (n, layer.in_features)
    return th.rand(shape, generator=generator) * 3 - 1.2


@pytest.mark.parametrize(("bits", "input_bits"), [(8, 8), (2, 4), (8, 16), (5, 2)])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_torch_layer_computes_what_the_reference_computes(kind, bits, input_bits):
    layer = made_layer(kind)
    layer.replace_mask(th.rand(layer.weight.shape, generator=th.Generator().manual_seed(2)) > 0.3)
    inputs = inputs_for(layer)
    layer.set_quantizer(Quantizer(bits, input_bits))
    layer.quantizer.set_range(-1.0, 1.5)  # some inputs saturate
    reference = integer_layer(layer)
    assert layer.weight_bits == bits
    assert not reference.weight[~layer.weight_mask.numpy()].any()
    with th.no_grad():
        outputs = layer(inputs)
        assert np.array_equal(outputs.numpy(), reference(inputs.numpy()))
        # ... whatever the batch, and in other shapes of it
        assert th.equal(layer(inputs[:1]), outputs[:1])
        if kind == "linear":
            assert th.equal(layer(inputs.view(3, 1, 9)), outputs.view(3, 1, 6))
    # With gradients, sums that float32 cannot hold are rounded on their way
    layer.eval()
    with_gradients = layer(inputs)
    if accumulator_limit(layer.weight[0].numel(), bits, input_bits) <= 2**24:
        assert th.equal(with_gradients, outputs)
    products = integer_layer(layer)
    magnitude = products.accumulate(products.quantize_input(inputs.numpy())).astype(np.float64)
    bound = layer.weight[0].numel() * 2.0**-24 * accumulator_limit(layer.weight[0].numel(), bits, input_bits)
    bound = bound * products.multipliers.max() + np.abs(magnitude).max() * products.multipliers.max() * 2**-23
    assert (with_gradients - outputs).abs().max() <= bound


@pytest.mark.skipif(not th.backends.nnpack.is_available(), reason="torch has no other algorithm to choose")
def test_convolutions_are_exact_without_onednn(monkeypatch):
    """On some processors torch has none, and 3 x 3 kernels would go the way of Winograd from 16 images on."""
    monkeypatch.setattr(th.backends.mkldnn, "enabled", False)
    layer = SparseConv2d.from_dense(th.nn.Conv2d(3, 16, 3))
    layer.set_quantizer(Quantizer())
    layer.quantizer.set_range(0.0, 1.0)
    inputs = th.rand(16, 3, 32, 32, generator=th.Generator().manual_seed(0))
    expected = integer_layer(layer)(inputs.numpy())
    layer.eval()  # ... in which no range moves
    assert np.array_equal(layer(inputs).detach().numpy(), expected)
    with th.no_grad():
        assert np.array_equal(layer(inputs).numpy(), expected)


@pytest.mark.parametrize(
    ("kind", "input_bits"), [("wide", 8), ("conv-many", 8), ("conv-groups", 8), ("linear", 16), ("conv", 16)]
)
def test_sums_that_float32_cannot_hold_are_exact_all_the_same(kind, input_bits):
    layer = made_layer(kind)
    with th.no_grad():
        layer.weight.abs_().clamp_min_(0.9 * float(layer.weight.max()))
    layer.set_quantizer(Quantizer(8, input_bits))
    layer.quantizer.set_range(0.0, 1.0)
    inputs = inputs_for(layer).abs() + 0.7
    reference = integer_layer(layer)
    sums = reference.accumulate(reference.quantize_input(inputs.numpy()))
    assert 2**24 < sums.max() <= accumulator_limit(layer.weight[0].numel(), 8, input_bits) <= INT32_LIMIT
    with th.no_grad():
        assert np.array_equal(layer(inputs).numpy(), reference(inputs.numpy()))
        # ... which plain float32 gets wrong
        assert (quantizer._product(layer, *integers(layer, inputs)).double().numpy() != sums).any()


def integers(layer, inputs):
    scale, zero_point = layer.quantizer.input_parameters()
    values = quantizer.quantize_activations(inputs, scale, zero_point, layer.quantizer.input_bits)
    return values, quantizer.quantize_weights(layer.weight, quantizer.weight_scales(layer.weight, 8))


@pytest.mark.parametrize("kind", LAYERS)
def test_float_inputs_keep_only_the_weights_quantized(kind):
    layer = made_layer(kind)
    inputs = inputs_for(layer)
    layer.set_quantizer(Quantizer(8, None))
    assert layer.quantizer.is_ready
    with th.no_grad():
        outputs = layer(inputs)
        weight = th.from_numpy(integer.dequantize_weights(integer_layer(layer).weight, integer_layer(layer).weight_scales))
        assert th.equal(weight, layer.quantizer.dequantized(layer.weight))
    reference = integer_layer(layer)(inputs.numpy())
    assert np.allclose(outputs.numpy(), reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("input_bits", [8, None])
@pytest.mark.parametrize("kind", ["linear", "conv", "conv-groups", "no-bias"])
def test_straight_through_gradients(kind, input_bits):
    """The gradients of the layer on dequantized values, but none to inputs that saturate."""
    layer = made_layer(kind)
    layer.replace_mask(th.rand(layer.weight.shape, generator=th.Generator().manual_seed(2)) > 0.3)
    layer.set_quantizer(Quantizer(4, input_bits))
    layer.quantizer.set_range(-1.0, 1.5)
    layer.eval()
    inputs = inputs_for(layer).requires_grad_()
    outputs = layer(inputs)
    seed = th.randn(outputs.shape, generator=th.Generator().manual_seed(3))
    outputs.backward(seed)

    values = inputs.detach()
    inside = th.ones_like(values, dtype=th.bool)
    if input_bits is not None:
        scale, zero_point = integer.activation_parameters(-1.0, 1.5, input_bits)
        quantized = integer.quantize_activations(values.numpy(), scale, zero_point, input_bits)
        unbounded = np.rint(values.numpy() / scale) + zero_point
        inside = th.from_numpy((unbounded >= 0) & (unbounded <= activation_limit(input_bits)))
        values = th.from_numpy(integer.dequantize_activations(quantized, scale, zero_point))
        assert not inside.all()
    values = values.requires_grad_()
    weight = layer.quantizer.dequantized(layer.weight.detach()).requires_grad_()
    product = layer._conv_forward(values, weight, None) if kind.startswith("conv") else th.nn.functional.linear(values, weight)
    product.backward(seed)
    assert th.allclose(inputs.grad, values.grad * inside, rtol=1e-4, atol=1e-5)
    assert th.allclose(layer.weight.grad, weight.grad * layer.weight_mask, rtol=1e-4, atol=1e-4)
    assert not layer.weight.grad[~layer.weight_mask].any()
    assert not inputs.grad[~inside].any()
    if layer.bias is not None:
        dimensions = [dim for dim in range(seed.ndim) if dim != 1]
        assert th.allclose(layer.bias.grad, seed.sum(dimensions), rtol=1e-5, atol=1e-5)


# --- Ranges ---


def test_moving_average_by_hand():
    one = Quantizer(8, 8, averaging=0.25)
    assert not one.is_ready
    one.observe(th.tensor([2.0, -1.0]))
    assert (float(one.low), float(one.high)) == (-1.0, 2.0)  # the first batch's own
    one.observe(th.tensor([6.0, -1.0, 0.0]))
    assert (float(one.low), float(one.high)) == (-1.0, 3.0)
    one.observe(th.tensor([[1.0], [3.0]]))
    assert (float(one.low), float(one.high)) == (-0.5, 3.0)
    one.observe(th.tensor([float("nan"), 1.0]))
    one.observe(th.tensor([float("inf"), 1.0]))
    one.observe(th.empty(0, 3))
    assert (float(one.low), float(one.high)) == (-0.5, 3.0)


def test_a_range_does_not_begin_with_what_is_not_finite():
    one = Quantizer()
    one.observe(th.tensor([float("nan"), 1.0]))
    assert not one.is_ready
    one.observe(th.tensor([4.0, 1.0]))
    assert (float(one.low), float(one.high)) == (1.0, 4.0)


def test_ranges_freeze():
    one = Quantizer(averaging=0.5, freeze_after=2)
    for value in (1.0, 3.0, 100.0):
        one.observe(th.tensor([value]))
    assert (float(one.high), int(one.n_observed)) == (2.0, 2)
    again = Quantizer()
    again.load_state_dict(one.state_dict())
    again.observe(th.tensor([100.0]))
    assert float(again.high) == 2.0
    assert again.same_settings(one)
    assert not again.same_settings(Quantizer(averaging=0.5))


def test_only_training_passes_with_gradients_are_observed():
    layer = made_layer("linear")
    layer.set_quantizer(Quantizer())
    inputs = inputs_for(layer)
    stock = th.nn.functional.linear(inputs, layer.weight, layer.bias)
    with th.no_grad():
        assert th.equal(layer(inputs), stock)  # float, as long as there is no range
    layer.eval()
    layer(inputs)
    assert int(layer.quantizer.n_observed) == 0
    layer.train()
    assert not th.equal(layer(inputs), stock)
    assert int(layer.quantizer.n_observed) == 1
    assert (layer.quantizer.low, layer.quantizer.high) == (inputs.min(), inputs.max())


def test_other_dtypes():
    layer = made_layer("linear").double()
    layer.set_quantizer(Quantizer().double())
    outputs = layer(inputs_for(layer).double())
    assert outputs.dtype == th.float64
    outputs.sum().backward()
    assert layer.weight.grad.dtype == th.float64
