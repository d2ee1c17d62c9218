"""Between layers: activation functions and quantization."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sb3_sparse_runtime import functions
from sb3_sparse_runtime.integer import SMALLEST_SCALE, activation_limit
from sb3_sparse_runtime.operations.base import Float32, Operation, Value, require, require_kind

#: Functions between layers, and the names of their parameters.
ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "relu": (),
    "leaky_relu": ("slope",),
    "elu": ("alpha",),
    "tanh": (),
    "sigmoid": (),
    "clip": ("low", "high"),
}


@dataclass(frozen=True, eq=False)
class Activate(Operation):
    """
    A function of every number.

    :param function: One of :data:`ACTIVATIONS`.
    :param parameters: Its parameters, float32 numbers.
    """

    name: ClassVar[str] = "activate"

    function: str
    parameters: tuple[float, ...] = ()

    def infer(self, inputs: Sequence[Value]) -> Value:
        require_kind(self, inputs[0], "float")
        require(self.function in ACTIVATIONS, f"an activation function {self.function!r} is unknown")
        wanted = ACTIVATIONS[self.function]
        require(len(self.parameters) == len(wanted), f"{self.function!r} needs {wanted}, got {self.parameters}")
        require(all(map(math.isfinite, self.parameters)), f"{self.function!r} with {self.parameters}")
        return Value(inputs[0].shape)

    def compute(self, inputs: Sequence[NDArray]) -> NDArray:
        x = inputs[0]
        parameters = tuple(map(np.float32, self.parameters))
        if self.function == "relu":
            return np.maximum(x, np.float32(0))
        if self.function == "leaky_relu":
            return np.where(x > 0, x, x * parameters[0])
        if self.function == "elu":
            return functions.elu(x, parameters[0])
        if self.function == "clip":
            return np.clip(x, *parameters)
        return functions.tanh(x) if self.function == "tanh" else functions.sigmoid(x)


@dataclass(frozen=True, eq=False)
class Quantize(Operation):
    """
    A function of every number, then ``saturate(rint(y / scale) + zero_point) - zero_point``.

    With ``steps`` both are a staircase, ``lowest`` plus the number of steps that are not above x: exact where a function such
    as tanh has other last bits in every library.

    :param scale: What one step of the result stands for, float32.
    :param zero_point: From 0 to ``2**bits - 1``.
    :param bits: 2 to 8, or 16.
    :param function: The function, one of :data:`ACTIVATIONS`, or ``""`` for none. Others than ReLU need ``steps``.
    :param parameters: Its parameters.
    :param steps: Float32, rising: where the staircase rises by one.
    :param lowest: Where the staircase begins.
    """

    name: ClassVar[str] = "quantize"

    scale: float
    zero_point: int
    bits: int
    function: str = ""
    parameters: tuple[float, ...] = ()
    steps: Float32 | None = None
    lowest: int = 0

    @property
    def limits(self) -> tuple[int, int]:
        """Least and greatest result."""
        if self.steps is not None:
            return self.lowest, self.lowest + len(self.steps)
        return 0 if self.function == "relu" else -self.zero_point, activation_limit(self.bits) - self.zero_point

    def infer(self, inputs: Sequence[Value]) -> Value:
        require_kind(self, inputs[0], "float")
        scale = np.float32(self.scale)
        require(np.isfinite(scale) and scale >= SMALLEST_SCALE, f"a scale of {self.scale} is not a positive normal number")
        require(self.bits == 16 or 2 <= self.bits <= 8, f"inputs of {self.bits} bits")
        limit = activation_limit(self.bits)
        require(0 <= self.zero_point <= limit, f"a zero point of {self.zero_point} with {self.bits} bits")
        wanted = ACTIVATIONS.get(self.function, ())
        require(self.function in ("", *ACTIVATIONS) and len(self.parameters) == len(wanted), f"a function {self.function!r}")
        require(all(map(math.isfinite, self.parameters)), f"{self.function!r} with {self.parameters}")
        require(self.function in ("", "relu") or self.steps is not None, f"the function {self.function!r} needs steps")
        if self.steps is not None:
            require(self.steps.ndim == 1 and (np.diff(self.steps) >= 0).all(), "steps of a staircase do not rise")
            low, high = self.limits
            require(-self.zero_point <= low <= high <= limit - self.zero_point, "a staircase out of range")
        return Value(inputs[0].shape, "integer", scale, self.limits)

    def compute(self, inputs: Sequence[NDArray]) -> NDArray:
        if self.steps is not None:
            return (np.searchsorted(self.steps, inputs[0], side="right") + self.lowest).astype(np.int32)
        low, high = self.limits
        with np.errstate(over="ignore"):
            quotients = inputs[0] / np.float32(self.scale)
        # Rounding leaves integers as they are, so it may come after
        return np.rint(np.clip(quotients, np.float32(low), np.float32(high))).astype(np.int32)
