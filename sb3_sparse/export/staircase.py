"""
An activation function and the quantization behind it as one staircase, so that no library's tanh has a say in it.

Both rise, so their composition does, and takes at most ``2**bits`` values: it is known exactly by the numbers at which it
rises. They are found with torch's own function, by bisection over all float32 numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch as th
from numpy.typing import NDArray

from sb3_sparse.quantization.integer import activation_limit, quantize_activations

#: Float32 numbers on each side of a step that are looked at.
NEIGHBOURS = 64


def _ordered(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Integers that are ordered as the numbers are."""
    bits = values.view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(2**31) - bits, bits)


def _number(ordered: NDArray[np.int64]) -> NDArray[np.float32]:
    bits = np.where(ordered < 0, -(2**31) - ordered, ordered)
    return bits.astype(np.int32).view(np.float32)


def staircase(
    function: Callable[[th.Tensor], th.Tensor], scale: np.float32, zero_point: int, bits: int
) -> tuple[NDArray[np.float32], int, int]:
    """
    Find where a function with quantization behind it rises.

    :param function: A function that does not fall, of float32 tensors.
    :param scale: Scale of the quantization behind it.
    :param zero_point: Its zero point.
    :param bits: Its bits.
    :return: The numbers from which on the composition, less the zero point, is one more than below; its value below all of
        them; and how many float32 numbers near the steps are on the wrong side of theirs, because the function as it is
        computed falls by a bit there.
    """

    def quantized(values: NDArray[np.float32]) -> NDArray[np.int64]:
        with th.no_grad():
            outputs = function(th.from_numpy(values.copy())).numpy()
        return quantize_activations(outputs, scale, zero_point, bits).astype(np.int64) - zero_point

    largest = np.finfo(np.float32).max
    lowest, highest = (int(value) for value in quantized(np.array([-largest, largest], np.float32)))
    wanted = np.arange(lowest + 1, highest + 1)
    assert len(wanted) <= activation_limit(bits)
    low = np.full(len(wanted), _ordered(np.array([-largest], np.float32))[0])
    high = np.full(len(wanted), _ordered(np.array([largest], np.float32))[0])
    while (high - low > 1).any():
        middle = (low + high) // 2
        reached = quantized(_number(middle)) >= wanted
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    steps = _number(high)
    near = high[:, None] + np.arange(-NEIGHBOURS, NEIGHBOURS)
    got = quantized(_number(near.ravel())).reshape(near.shape)
    expected = lowest + np.searchsorted(steps, _number(near), side="right")
    return steps, lowest, int((got != expected).sum())
