"""A function and the quantization behind it, as the numbers at which both together rise."""

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_sparse.export.staircase import staircase
from sb3_sparse.quantization.integer import quantize_activations
from sb3_sparse_runtime.operations import Quantize, Value


def composition(function, values, scale, zero_point, bits):
    outputs = function(th.from_numpy(values)).numpy()
    return quantize_activations(outputs, scale, zero_point, bits).astype(np.int64) - zero_point


@pytest.mark.parametrize("function", [nn.Tanh(), nn.Sigmoid(), nn.ELU(), nn.LeakyReLU(0.1), nn.Hardtanh(-1, 2), nn.ReLU6()])
@pytest.mark.parametrize(
    ("scale", "zero_point", "bits"), [(2 / 255, 127, 8), (0.013, 0, 8), (0.3, 3, 3), (0.2, 15, 4), (1, 0, 2)]
)
def test_it_is_the_composition(function, scale, zero_point, bits):
    scale = np.float32(scale)
    steps, lowest, _ = staircase(function, scale, zero_point, bits)
    operation = Quantize(("x",), "y", float(scale), zero_point, bits, steps=steps, lowest=lowest)
    operation.infer([Value((1,))])
    values = np.concatenate([np.linspace(-6, 6, 20_011), np.random.default_rng(0).normal(size=20_000), [-1e30, 1e30, 0, -0.0]])
    values = values.astype(np.float32)
    # At the steps themselves a function's last bits may go down; those are counted, and as rare as float32 numbers there
    expected = composition(function, values, scale, zero_point, bits)
    assert np.array_equal(operation.compute([values]), expected)


def test_relu_by_hand():
    # rint(relu(x) / 0.5) in [0, 3]: 1 from the first number above 0.25 on (halves go to even), 2 from 0.75, 3 above 1.25
    steps, lowest, n_uneven = staircase(nn.ReLU(), np.float32(0.5), 0, 2)
    above = [np.nextafter(np.float32(value), np.float32(9)) for value in (0.25, 1.25)]
    assert (steps.tolist(), lowest, n_uneven) == ([above[0], 0.75, above[1]], 0, 0)


def test_a_range_that_a_function_does_not_fill_has_fewer_steps():
    # A sigmoid is at most 1, so with a scale of 0.5 it reaches 2 of 255
    steps, lowest, _ = staircase(nn.Sigmoid(), np.float32(0.5), 0, 8)
    assert (len(steps), lowest) == (2, 0)
