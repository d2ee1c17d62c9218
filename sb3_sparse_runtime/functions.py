"""
Functions of one float32 number, each a fixed sequence of float32 additions, multiplications and divisions: the same bits in
numpy, in the compiled runner and in generated C on any machine, which no two mathematics libraries promise. The generated C
(``csrc/kernels.h``) has them line by line.

Accuracy, as the tests measure it: :func:`tanh` and :func:`exp` within 1.5 units in the last place, :func:`sigmoid` within 3,
:func:`elu` within 1e-7 of alpha. The polynomials are least-maximum fits of the relative error, made for this file.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

#: Adding and subtracting it rounds a float32 of less than 2**22 to an integer, halves to even.
ROUNDING = np.float32(1.5 * 2**23)
#: Arguments of :func:`exp` are clipped to this range, where the result is a normal number.
EXP_RANGE = (np.float32(-87.0), np.float32(88.0))
_LOG2_E = np.float32(1.44269504)
#: log(2) in two parts; products of the first with integers of up to 8 bits are exact.
_LOG_2_HIGH, _LOG_2_LOW = np.float32(0.693359375), np.float32(-0.000212194440)
#: ``(exp(r) - 1 - r) / r**2`` in powers of r, which is at most log(2) / 2 away from 0.
EXP_COEFFICIENTS = tuple(
    map(np.float32, (0.49999994, 0.166665196, 0.0416683964, 0.00836879667, 0.00138144335)),
)
#: ``(tanh(x) - x) / x**3`` in powers of ``x**2``, up to 0.625 away from 0.
TANH_COEFFICIENTS = tuple(
    map(np.float32, (-0.333332807, 0.133314401, -0.0537395217, 0.0206384305, -0.00570422178)),
)
#: Where :func:`tanh` changes from the polynomial to the exponential.
TANH_SWITCH = np.float32(0.625)
#: From here on :func:`tanh` is 1.
TANH_LIMIT = np.float32(10)


def _polynomial(coefficients: Sequence[np.float32], values: Array) -> Array:
    result = np.full_like(values, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result * values + coefficient
    return result


def exp(values: Array) -> Array:
    """
    The exponential function.

    :param values: Float32, any shape, no NaN.
    :return: exp(x), with x clipped to :data:`EXP_RANGE`.
    """
    clipped = np.clip(values, *EXP_RANGE)
    n = (clipped * _LOG2_E + ROUNDING) - ROUNDING
    rest = (clipped - n * _LOG_2_HIGH) - n * _LOG_2_LOW
    mantissa = (_polynomial(EXP_COEFFICIENTS, rest) * rest) * rest + rest + np.float32(1)
    return mantissa * ((n.astype(np.int32) + 127) << 23).view(np.float32)


def tanh(values: Array) -> Array:
    """
    The hyperbolic tangent.

    :param values: Float32, any shape, no NaN.
    :return: tanh(x).
    """
    bounded = np.clip(values, -TANH_LIMIT, TANH_LIMIT)
    size, square = np.abs(bounded), bounded * bounded
    small = (_polynomial(TANH_COEFFICIENTS, square) * square) * bounded + bounded
    large = np.float32(1) - np.float32(2) / (exp(size + size) + np.float32(1))
    return np.where(size < TANH_SWITCH, small, np.copysign(large, bounded))


def sigmoid(values: Array) -> Array:
    """
    The logistic function.

    :param values: Float32, any shape, no NaN.
    :return: 1 / (1 + exp(-x)).
    """
    return np.float32(1) / (np.float32(1) + exp(-values))


def elu(values: Array, alpha: np.float32) -> Array:
    """
    The exponential linear unit.

    :param values: Float32, any shape, no NaN.
    :param alpha: Minus the limit at minus infinity.
    :return: x where x > 0, alpha (exp(x) - 1) elsewhere.
    """
    return np.where(values > 0, values, alpha * (exp(np.minimum(values, np.float32(0))) - np.float32(1)))
