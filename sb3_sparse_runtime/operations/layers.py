"""Layers: sums of products with weights that are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sb3_sparse_runtime.integer import INT32_LIMIT, SMALLEST_SCALE, Convolution, product, weight_limit
from sb3_sparse_runtime.operations.base import Float32, Operation, Shape, Value, require, require_finite, require_kind


@dataclass(frozen=True, eq=False)
class Layer(Operation):
    """
    Sums of products with weights, then the bias. With float32 weights ``y = sum(w * x) + bias``. With int8 weights and a
    quantized input ``y = float32(sum(q_w * q_x)) * (input_scale * scale) + bias``, see :mod:`sb3_sparse_runtime.integer`; with
    int8 weights and a float32 input ``y = sum(q_w * scale * x) + bias``.

    :param weight: Float32 or int8, pruned weights are zeros.
    :param bias: Float32 ``[out]``, or None.
    :param scales: Of int8 weights, float32 ``[out]``.
    :param input_scale: The scale of a quantized input, None for a float32 input.
    :param bits: Bits that a weight takes when it is packed: 32, 16 (float32 numbers that are float16 numbers), or 2 to 8.
    :param mask: Positions that exist, if they are to be told apart from other zeros. Not part of what is computed.
    :param pattern: The mask's pattern, for choosing an encoding. Not part of what is computed.
    """

    weight: NDArray[np.float32] | NDArray[np.int8]
    bias: Float32 | None
    scales: Float32 | None = None
    input_scale: float | None = None
    bits: int = 32
    mask: NDArray[np.bool_] | None = field(default=None, repr=False)
    pattern: str = "unstructured"

    @property
    def is_quantized(self) -> bool:
        """Whether its weights are integers."""
        return self.weight.dtype == np.int8

    @property
    def matrix(self) -> NDArray:
        """The weight as a matrix ``[out, in]``."""
        return self.weight.reshape(len(self.weight), -1)

    @property
    def is_integer(self) -> bool:
        """Whether its sums are those of integers."""
        return self.is_quantized and self.input_scale is not None

    @property
    def multipliers(self) -> Float32:
        """``s_x * s_w`` of integer sums, float32 ``[out]``."""
        assert self.scales is not None
        assert self.input_scale is not None
        return np.float32(self.input_scale) * self.scales

    def _check(self, value: Value) -> None:
        require_kind(self, value, "float", "integer")
        n_outputs = len(self.weight)
        require(
            (self.input_scale is not None) == (value.kind == "integer"), "a scale for inputs that have none, or none that have"
        )
        require(
            self.input_scale is None or np.float32(self.input_scale) == value.scale, "another scale than that of the inputs"
        )
        require(self.weight.ndim >= 2 and self.weight.size > 0, f"a weight of shape {self.weight.shape}")
        if self.bias is not None:
            require(self.bias.shape == (n_outputs,), f"a bias of shape {self.bias.shape} for {n_outputs} outputs")
            require_finite(self.bias, "the bias")
        if not self.is_quantized:
            require(value.kind == "float" and self.bits in (16, 32), f"weights of {self.bits} bits in float32")
            require_finite(self.weight, "the weight")
            return
        require(2 <= self.bits <= 8 and self.scales is not None, f"weights of {self.bits} bits need scales")
        assert self.scales is not None
        require(self.scales.shape == (n_outputs,), f"{self.scales.shape} scales for {n_outputs} outputs")
        valid = np.isfinite(self.scales) & (self.scales >= SMALLEST_SCALE)
        require(valid.all(), f"a scale of {self.scales[~valid][:1]} is not a positive normal number")
        most = int(np.abs(self.matrix.astype(np.int16)).max())
        require(most <= weight_limit(self.bits), f"a weight of {most} does not fit into {self.bits} bits")
        if value.kind == "integer":
            largest = max(map(abs, value.limits))
            sums = np.abs(self.matrix.astype(np.int64)).sum(axis=1).max()
            require(sums * largest <= INT32_LIMIT, "sums could overflow an int32")
            with np.errstate(over="ignore"):
                require_finite(self.multipliers, "a product of scales")

    @cached_property
    def _factors(self) -> NDArray:
        """The weight as it is multiplied. Integers in float64: their sums are exact, and BLAS has it."""
        if not self.is_quantized:
            return self.weight
        if self.is_integer:
            return self.weight.astype(np.float64)
        assert self.scales is not None
        return self.weight.astype(np.float32) * self.scales.reshape(-1, *(1,) * (self.weight.ndim - 1))

    def _compute(self, inputs: NDArray, convolution: Convolution | None) -> NDArray:
        ndim = 1 if convolution is None else 3

        def per_channel(values: NDArray) -> NDArray:
            return values.reshape(-1, *(1,) * (ndim - 1))

        if self.is_integer:
            sums = product(inputs.astype(np.float64), self._factors, convolution).astype(np.float32)
            outputs = sums * per_channel(self.multipliers)
        else:
            outputs = product(inputs, self._factors, convolution)
        return outputs if self.bias is None else outputs + per_channel(self.bias)


@dataclass(frozen=True, eq=False)
class Linear(Layer):
    """A weight ``[out, in]``."""

    name: ClassVar[str] = "linear"

    def infer(self, inputs: Sequence[Value]) -> Value:
        self._check(inputs[0])
        require(self.weight.ndim == 2, f"a linear layer has a weight of shape {self.weight.shape}")
        require(inputs[0].shape == (self.weight.shape[1],), f"{self.weight.shape[1]} inputs, given {inputs[0].shape}")
        return Value((len(self.weight),))

    def compute(self, inputs: Sequence[NDArray]) -> NDArray:
        return self._compute(inputs[0], None)


@dataclass(frozen=True, eq=False)
class Convolve(Layer):
    """
    A weight ``[out, in / groups, height, width]``, as ``torch.nn.Conv2d``.

    :param geometry: Stride, padding, dilation, groups.
    """

    name: ClassVar[str] = "convolve"

    geometry: Convolution = field(default_factory=Convolution)

    def infer(self, inputs: Sequence[Value]) -> Value:
        self._check(inputs[0])
        geometry, shape = self.geometry, inputs[0].shape
        require(self.weight.ndim == 4 and len(shape) == 3, f"a convolution of {shape} with a weight of {self.weight.shape}")
        numbers = (*geometry.stride, *geometry.dilation, geometry.groups)
        require(all(0 < number < 2**15 for number in numbers), f"a convolution with {geometry}")
        pads = [pad for pair in geometry.padding for pad in pair]
        require(len(pads) == 4 and all(0 <= pad < 2**15 for pad in pads), f"a convolution with padding {geometry.padding}")
        n_outputs, n_channels = self.weight.shape[:2]
        require(
            shape[0] == n_channels * geometry.groups and n_outputs % geometry.groups == 0,
            f"{n_channels} x {geometry.groups} channels, given {shape[0]}",
        )
        return Value((n_outputs, *self.output_size(shape)))

    def output_size(self, shape: Shape) -> tuple[int, int]:
        """
        Compute the size of an image behind the convolution.

        :param shape: Shape of the input.
        :return: Height and width of the output.
        """
        sizes = []
        for axis in range(2):
            kernel = (self.weight.shape[2 + axis] - 1) * self.geometry.dilation[axis] + 1
            room = shape[1 + axis] + sum(self.geometry.padding[axis]) - kernel
            require(room >= 0, f"a kernel of {kernel} does not fit into {shape}")
            sizes.append(room // self.geometry.stride[axis] + 1)
        return sizes[0], sizes[1]

    def compute(self, inputs: Sequence[NDArray]) -> NDArray:
        return self._compute(inputs[0], self.geometry)
