"""
What a quantized layer computes: rounding, saturation, zero points and the order of every floating-point operation.

This is the definition that everything else agrees with bit for bit: the torch functions that training uses
(:mod:`sb3_sparse.quantization.fake_quantizer`) and every exported format. It is numpy alone, so that it can be read and run
without torch.

All floating-point operations are single float32 operations of IEEE 754 with rounding to nearest, ties to even, in the order
written here; none may be contracted to a fused multiply-add. ``rint`` rounds halves to even. A division is a division, not a
multiplication by the reciprocal. The guide's page on quantization says the same in formulas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

#: Smallest normal float32. A scale is never below it: such numbers are flushed to zero by some hardware.
SMALLEST_SCALE = np.float32(2.0**-126)
#: Largest magnitude an int32 accumulator can hold with either sign.
INT32_LIMIT = 2**31 - 1


def weight_limit(bits: int) -> int:
    """
    Largest magnitude of a quantized weight.

    :param bits: Bits of a weight, 2 to 8.
    :return: Largest magnitude of a quantized weight, ``2**(bits - 1) - 1``: the range is symmetric.
    """
    return 2 ** (bits - 1) - 1


def activation_limit(bits: int) -> int:
    """
    Largest quantized input.

    :param bits: Bits of an activation, 2 to 8, or 16.
    :return: Largest quantized activation, ``2**bits - 1``; the smallest is 0.
    """
    return 2**bits - 1


def accumulator_limit(fan_in: int, weight_bits: int, input_bits: int) -> int:
    """
    Largest magnitude that a sum of products can reach.

    :param fan_in: Products that are added up in one output.
    :param weight_bits: Bits of a weight.
    :param input_bits: Bits of an input.
    :return: Magnitude that no accumulator can exceed, whatever the weights, the inputs and the zero point.
    """
    return fan_in * weight_limit(weight_bits) * activation_limit(input_bits)


def weight_scales(weight: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """
    One scale per output channel: ``max|w| / limit``, or 1 where that is below :data:`SMALLEST_SCALE` (a row of zeros).

    :param weight: Weights, float32 ``[out, ...]``.
    :param bits: Bits of a weight.
    :return: Float32 ``[out]``.
    """
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    scales = largest / np.float32(weight_limit(bits))
    return np.where(scales >= SMALLEST_SCALE, scales, np.float32(1))


def _per_channel(values: NDArray[np.float32], n_dimensions: int) -> NDArray[np.float32]:
    """Values of output channels, shaped to go with a weight ``[out, ...]``."""
    return values.reshape(-1, *(1,) * (n_dimensions - 1))


def quantize_weights(weight: NDArray[np.float32], scales: NDArray[np.float32], bits: int) -> NDArray[np.int8]:
    """
    ``q = saturate(rint(w / s))``. Zero stays zero.

    :param weight: Weights, float32 ``[out, ...]``.
    :param scales: Scales, float32 ``[out]``.
    :param bits: Bits of a weight.
    :return: Int8, shape of ``weight``, in ``[-limit, limit]``.
    """
    limit = weight_limit(bits)
    return np.clip(np.rint(weight / _per_channel(scales, weight.ndim)), -limit, limit).astype(np.int8)


def dequantize_weights(quantized: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """
    Turn integer weights back into numbers.

    :param quantized: Int8 ``[out, ...]``.
    :param scales: Scales, float32 ``[out]``.
    :return: ``q * s``, float32.
    """
    return quantized.astype(np.float32) * _per_channel(scales, quantized.ndim)


def activation_parameters(low: float, high: float, bits: int) -> tuple[np.float32, int]:
    """
    Scale and zero point of a range: ``s = (high - low) / limit`` and ``z = saturate(rint(-low / s))``, with the range first
    widened to hold 0, which is then represented exactly. ``s`` is 1 where it would be below :data:`SMALLEST_SCALE`.

    :param low: Lower end of the range, taken as float32.
    :param high: Upper end.
    :param bits: Bits of an activation.
    :return: Scale and zero point.
    """
    limit = np.float32(activation_limit(bits))
    bottom, top = np.minimum(np.float32(low), np.float32(0)), np.maximum(np.float32(high), np.float32(0))
    scale = np.float32((top - bottom) / limit)
    if not scale >= SMALLEST_SCALE:
        scale = np.float32(1)
    return scale, int(np.clip(np.rint(-bottom / scale), np.float32(0), limit))


def quantize_activations(
    values: NDArray[np.float32], scale: np.float32, zero_point: int, bits: int
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """
    ``q = saturate(rint(x / s) + z)``. Infinite values saturate, NaN is not allowed.

    :param values: Float32, any shape.
    :param scale: Scale.
    :param zero_point: Zero point.
    :param bits: Bits of an activation.
    :return: Uint8, or uint16 with more than 8 bits, same shape.
    """
    with np.errstate(over="ignore"):
        quantized = np.clip(
            np.rint(values / scale) + np.float32(zero_point), np.float32(0), np.float32(activation_limit(bits))
        )
    return quantized.astype(np.uint8 if bits <= 8 else np.uint16)


def dequantize_activations(quantized: NDArray, scale: np.float32, zero_point: int) -> NDArray[np.float32]:
    """
    Turn integer inputs back into numbers.

    :param quantized: Uint8 or uint16.
    :param scale: Scale.
    :param zero_point: Zero point.
    :return: ``(q - z) * s``, float32.
    """
    return (quantized.astype(np.int32) - np.int32(zero_point)).astype(np.float32) * scale


@dataclass(frozen=True)
class Convolution:
    """
    Geometry of a convolution; each pair is height, width.

    :param stride: Stride.
    :param padding: Zeros before and after, ``((top, bottom), (left, right))``.
    :param dilation: Dilation.
    :param groups: Groups of channels.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


def product(inputs: NDArray, weight: NDArray, convolution: Convolution | None) -> NDArray:
    """
    Sums of products in the arrays' own dtype, without bias.

    :param inputs: ``[n, in]``, or ``[n, in, height, width]``.
    :param weight: ``[out, in]``, or ``[out, in / groups, height, width]``.
    :param convolution: Geometry of a convolution, None for a linear layer.
    :return: ``[n, out]``, or ``[n, out, height, width]``.
    """
    if convolution is None:
        return inputs @ weight.T
    (down, right), (dilation_y, dilation_x) = convolution.stride, convolution.dilation
    padded = np.pad(inputs, ((0, 0), (0, 0), *convolution.padding))
    kernel = ((weight.shape[2] - 1) * dilation_y + 1, (weight.shape[3] - 1) * dilation_x + 1)
    windows = sliding_window_view(padded, kernel, axis=(2, 3))[:, :, ::down, ::right, ::dilation_y, ::dilation_x]
    columns = windows.transpose(0, 2, 3, 1, 4, 5)  # [n, height, width, channels, kernel, kernel]
    n_groups, shape = convolution.groups, columns.shape[:3]
    outputs = [
        group.reshape(*shape, -1) @ rows.reshape(len(rows), -1).T
        for group, rows in zip(np.split(columns, n_groups, axis=3), np.split(weight, n_groups), strict=True)
    ]
    return np.concatenate(outputs, axis=3).transpose(0, 3, 1, 2)


@dataclass(frozen=True, eq=False)
class IntegerLayer:
    """
    A quantized layer, ready to be computed anywhere.

    :param weight: Int8 ``[out, in]``, or ``[out, in / groups, height, width]`` of a convolution.
    :param weight_scales: Float32 ``[out]``.
    :param bias: Float32 ``[out]``, or None.
    :param weight_bits: Bits of a weight.
    :param input_bits: Bits of an input; None: the input stays float32.
    :param input_scale: Scale of the input; 1 if it stays float32.
    :param input_zero_point: Zero point of the input; 0 if it stays float32.
    :param convolution: Its geometry; None for a linear layer.
    """

    weight: NDArray[np.int8]
    weight_scales: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    weight_bits: int
    input_bits: int | None
    input_scale: np.float32
    input_zero_point: int
    convolution: Convolution | None = None

    @property
    def multipliers(self) -> NDArray[np.float32]:
        """``s_x * s_w``, one float32 product per output channel, ``[out]``."""
        return self.input_scale * self.weight_scales

    def quantize_input(self, inputs: NDArray[np.float32]) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """
        Turn the layer's input into integers.

        :param inputs: Float32 ``[n, in]``, or ``[n, in, height, width]``.
        :return: Quantized, same shape.
        """
        assert self.input_bits is not None
        return quantize_activations(inputs, self.input_scale, self.input_zero_point, self.input_bits)

    def accumulate(self, quantized: NDArray) -> NDArray[np.int32]:
        """
        The integer sums ``sum (q_x - z) * q_w``. The padding of a convolution is real zeros, so it adds nothing.

        :param quantized: Quantized inputs.
        :return: Int32 ``[n, out]``, or ``[n, out, height, width]``.
        """
        differences = quantized.astype(np.int32) - np.int32(self.input_zero_point)
        return product(differences, self.weight.astype(np.int32), self.convolution)

    def __call__(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """
        ``y = float32(acc) * (s_x * s_w) + bias``: one rounding of the accumulator, one multiplication, one addition.

        With float32 inputs the sums of ``x * (q_w * s_w)`` are float32, and the result is defined up to their order.

        :param inputs: Float32 ``[n, in]``, or ``[n, in, height, width]``.
        :return: Float32 ``[n, out]``, or ``[n, out, height, width]``.
        """
        ndim = 2 if self.convolution is None else 4
        if self.input_bits is None:
            outputs = product(inputs, dequantize_weights(self.weight, self.weight_scales), self.convolution)
        else:
            sums = self.accumulate(self.quantize_input(inputs)).astype(np.float32)
            outputs = sums * _per_channel(self.multipliers, ndim - 1)
        return outputs if self.bias is None else outputs + _per_channel(self.bias, ndim - 1)
