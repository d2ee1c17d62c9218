"""From a network's output to an action, or to a distribution of actions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sb3_sparse_runtime import functions
from sb3_sparse_runtime.operations.base import Float32, Operation, Value, require, require_finite, require_kind


@dataclass(frozen=True, eq=False)
class AverageQuantiles(Operation):
    """
    Means over quantiles: ``[quantiles * actions]`` to ``[actions]``.

    :param n_quantiles: Number of quantiles.
    """

    name: ClassVar[str] = "average_quantiles"

    n_quantiles: int

    def infer(self, inputs: Sequence[Value]) -> Value:
        require_kind(self, inputs[0], "float")
        size = inputs[0].size
        require(
            0 < self.n_quantiles <= size and size % self.n_quantiles == 0, f"{self.n_quantiles} quantiles of {size} numbers"
        )
        return Value((size // self.n_quantiles,))

    def compute(self, inputs: Sequence[NDArray]) -> NDArray:
        rows = inputs[0].reshape(len(inputs[0]), self.n_quantiles, -1)
        sums = rows[:, 0]
        for index in range(1, self.n_quantiles):
            sums = sums + rows[:, index]
        return sums / np.float32(self.n_quantiles)


@dataclass(frozen=True, eq=False)
class Bound(Operation):
    """
    Actions clipped to the bounds of their space, which may be infinite.

    :param low: Float32.
    :param high: Float32.
    """

    name: ClassVar[str] = "bound"

    low: Float32
    high: Float32

    def infer(self, inputs: Sequence[Value]) -> Value:
        require_kind(self, inputs[0], "float")
        require(self.low.shape == self.high.shape == inputs[0].shape, f"bounds of shape {self.low.shape}")
        require((self.low <= self.high).all(), "a lower bound is above the upper one")
        return Value(inputs[0].shape, "action")

    def compute(self, inputs: Sequence[NDArray]) -> NDArray:
        return np.clip(inputs[0], self.low, self.high)


@dataclass(frozen=True, eq=False)
class Unscale(Operation):
    """
    Actions from [-1, 1] to the bounds of their space: ``low + (0.5 * (a + 1)) * (high - low)``.

    :param low: Float32.
    :param high: Float32.
    """

    name: ClassVar[str] = "unscale"

    low: Float32
    high: Float32

    def infer(self, inputs: Sequence[Value]) -> Value:
        require_kind(self, inputs[0], "float")
        require(self.low.shape == self.high.shape == inputs[0].shape, f"bounds of shape {self.low.shape}")
        require_finite(self.low, "a lower bound")
        require_finite(self.high, "an upper bound")
        require((self.low <= self.high).all(), "a lower bound is above the upper one")
        return Value(inputs[0].shape, "action")

    def compute(self, inputs: Sequence[NDArray]) -> NDArray:
        return self.low + (np.float32(0.5) * (inputs[0] + np.float32(1))) * (self.high - self.low)


@dataclass(frozen=True, eq=False)
class ArgMax(Operation):
    """
    The index of the greatest number, of the first if there are several, in each of some groups.

    :param sizes: Size of each group.
    :param maskable: Whether a choice may be forbidden: it then counts as :data:`FORBIDDEN`, as in sb3-contrib's MaskablePPO.
    """

    name: ClassVar[str] = "arg_max"

    sizes: tuple[int, ...]
    maskable: bool = False

    def infer(self, inputs: Sequence[Value]) -> Value:
        require_kind(self, inputs[0], "float")
        require(self.sizes and min(self.sizes) > 0 and sum(self.sizes) == inputs[0].size, f"groups of {self.sizes}")
        return Value((len(self.sizes),), "action")

    def compute(self, inputs: Sequence[NDArray]) -> NDArray:
        groups = np.split(inputs[0], np.cumsum(self.sizes)[:-1], axis=1)
        return np.stack([group.argmax(axis=1) for group in groups], axis=1)


#: What sb3-contrib sets the logit of a forbidden action to.
FORBIDDEN = np.float32(-1e8)


@dataclass(frozen=True, eq=False)
class Above(Operation):
    """
    1 where a number is above a threshold, otherwise 0: the more likely value of a Bernoulli distribution, from its logit.

    :param threshold: Float32.
    """

    name: ClassVar[str] = "above"

    threshold: float

    def infer(self, inputs: Sequence[Value]) -> Value:
        require_kind(self, inputs[0], "float")
        require(math.isfinite(self.threshold), f"a threshold of {self.threshold}")
        return Value(inputs[0].shape, "action")

    def compute(self, inputs: Sequence[NDArray]) -> NDArray:
        return (inputs[0] > np.float32(self.threshold)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Exponential(Operation):
    """
    ``exp(clip(x, low, high))``: a standard deviation from its logarithm.

    :param low: Float32.
    :param high: Float32.
    """

    name: ClassVar[str] = "exponential"

    low: float
    high: float

    def infer(self, inputs: Sequence[Value]) -> Value:
        require_kind(self, inputs[0], "float")
        require(-87 <= self.low <= self.high <= 88, f"an exponential of numbers from {self.low} to {self.high}")
        return Value(inputs[0].shape)

    def compute(self, inputs: Sequence[NDArray]) -> NDArray:
        return functions.exp(np.clip(inputs[0], np.float32(self.low), np.float32(self.high)))


@dataclass(frozen=True, eq=False)
class Constant(Operation):
    """
    The same numbers whatever is observed; it reads a value only for the size of the batch.

    :param values: Float32.
    """

    name: ClassVar[str] = "constant"

    values: Float32

    def infer(self, inputs: Sequence[Value]) -> Value:
        require_finite(self.values, "a constant")
        return Value(self.values.shape)

    def compute(self, inputs: Sequence[NDArray]) -> NDArray:
        return np.broadcast_to(self.values, (len(inputs[0]), *self.values.shape)).copy()
