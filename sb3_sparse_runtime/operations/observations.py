"""From an observation to the features that a network reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sb3_sparse_runtime.operations.base import Operation, Value, require, require_finite, require_kind


@dataclass(frozen=True, eq=False)
class AsFloat(Operation):
    """An observation rounded to float32."""

    name: ClassVar[str] = "as_float"

    def infer(self, inputs: Sequence[Value]) -> Value:
        require_kind(self, inputs[0], "raw")
        return Value(inputs[0].shape)

    def compute(self, inputs: Sequence[NDArray]) -> NDArray:
        return inputs[0].astype(np.float32)


@dataclass(frozen=True, eq=False)
class Normalize(Operation):
    """
    ``VecNormalize``: ``clip((x - mean) / deviation, -limit, limit)`` in float64, then rounded to float32.

    :param mean: Float64, shape of the observation.
    :param deviation: Float64, the same shape: ``sqrt(var + epsilon)``.
    :param limit: ``clip_obs``.
    """

    name: ClassVar[str] = "normalize"

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    limit: float

    def infer(self, inputs: Sequence[Value]) -> Value:
        require_kind(self, inputs[0], "raw")
        require(self.mean.shape == self.deviation.shape == inputs[0].shape, "statistics of another shape than the observation")
        require_finite(self.mean, "the mean")
        require(((self.deviation > 0) & np.isfinite(self.deviation)).all(), "a deviation is not positive")
        require(0 < self.limit < math.inf, f"observations are clipped to {self.limit}")
        return Value(inputs[0].shape)

    def compute(self, inputs: Sequence[NDArray]) -> NDArray:
        return np.clip((inputs[0] - self.mean) / self.deviation, -self.limit, self.limit).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Divide(Operation):
    """
    ``x / divisor``: images in [0, 1].

    :param divisor: A positive float32 number.
    """

    name: ClassVar[str] = "divide"

    divisor: float

    def infer(self, inputs: Sequence[Value]) -> Value:
        require_kind(self, inputs[0], "float")
        require(0 < self.divisor < math.inf, f"a divisor of {self.divisor}")
        return inputs[0]

    def compute(self, inputs: Sequence[NDArray]) -> NDArray:
        return inputs[0] / np.float32(self.divisor)


@dataclass(frozen=True, eq=False)
class OneHot(Operation):
    """
    Each integer as a vector of zeros with a one, all of them behind each other.

    :param sizes: Number of values of each integer.
    """

    name: ClassVar[str] = "one_hot"

    sizes: tuple[int, ...]

    def infer(self, inputs: Sequence[Value]) -> Value:
        require_kind(self, inputs[0], "raw")
        require(
            len(self.sizes) == inputs[0].size and min(self.sizes) > 0, f"{inputs[0].size} integers with {self.sizes} values"
        )
        return Value((sum(self.sizes),))

    def compute(self, inputs: Sequence[NDArray]) -> NDArray:
        integers = inputs[0].reshape(len(inputs[0]), -1).astype(np.int64)
        result = np.zeros((len(integers), sum(self.sizes)), np.float32)
        starts = np.cumsum((0, *self.sizes[:-1]))
        np.put_along_axis(result, integers + starts, np.float32(1), axis=1)
        return result


@dataclass(frozen=True, eq=False)
class Flatten(Operation):
    """The same numbers in one dimension, in row-major order."""

    name: ClassVar[str] = "flatten"

    def infer(self, inputs: Sequence[Value]) -> Value:
        require_kind(self, inputs[0], "float", "integer")
        first = inputs[0]
        return Value((first.size,), first.kind, first.scale, first.limits)

    def compute(self, inputs: Sequence[NDArray]) -> NDArray:
        return inputs[0].reshape(len(inputs[0]), -1)


@dataclass(frozen=True, eq=False)
class Concatenate(Operation):
    """Vectors behind each other."""

    name: ClassVar[str] = "concatenate"
    n_inputs: ClassVar[int | None] = None

    def infer(self, inputs: Sequence[Value]) -> Value:
        require(all(value.kind == "float" and len(value.shape) == 1 for value in inputs), "only vectors can be concatenated")
        return Value((sum(value.size for value in inputs),))

    def compute(self, inputs: Sequence[NDArray]) -> NDArray:
        return np.concatenate(inputs, axis=1)
