"""What every operation is, and what passes between them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sb3_sparse_runtime.errors import InvalidPolicyError

Shape = tuple[int, ...]
Float32 = NDArray[np.float32]


def require(condition: object, message: str) -> None:
    """
    Refuse what is not possible.

    :param condition: What must hold.
    :param message: What to say if it does not.
    :raises InvalidPolicyError: If it does not.
    """
    if not condition:
        raise InvalidPolicyError(message)


@dataclass(frozen=True)
class Value:
    """
    What passes from one operation to the next.

    :param shape: Shape of one sample.
    :param kind: ``"raw"``: an observation as it comes. ``"float"``: float32. ``"integer"``: quantized, less the zero point.
        ``"action"``: float32 or integers.
    :param scale: Of an integer value: what one step stands for.
    :param limits: Of an integer value: its least and its greatest value.
    """

    shape: Shape
    kind: str = "float"
    scale: np.float32 = np.float32(1)  # noqa: RUF009  # an immutable number
    limits: tuple[int, int] = (0, 0)

    @property
    def size(self) -> int:
        """Numbers of one sample."""
        return math.prod(self.shape)


def require_finite(array: NDArray, name: str) -> None:
    """
    Refuse NaN and infinite numbers.

    :param array: Numbers.
    :param name: What the error calls them.
    :raises InvalidPolicyError: If one is not finite.
    """
    require(np.isfinite(array).all(), f"{name} has values that are not finite")


@dataclass(frozen=True, eq=False)
class Operation(ABC):
    """
    One step of a decision.

    :param inputs: Names of the values it reads.
    :param output: Name of the value it gives.
    """

    #: How files call it.
    name: ClassVar[str]
    #: How many inputs it has; None for any number from 1.
    n_inputs: ClassVar[int | None] = 1

    inputs: tuple[str, ...]
    output: str

    @abstractmethod
    def infer(self, inputs: Sequence[Value]) -> Value:
        """
        Find out what it gives, and check its numbers.

        :param inputs: What it reads.
        :return: What it gives.
        :raises InvalidPolicyError: If it cannot read that, or its own numbers do not go together.
        """

    @abstractmethod
    def compute(self, inputs: Sequence[NDArray]) -> NDArray:
        """
        Compute it.

        :param inputs: Arrays ``[n, *shape]``.
        :return: Array ``[n, *shape]``.
        """


def require_kind(operation: Operation, value: Value, *kinds: str) -> None:
    """
    Refuse a value of another kind.

    :param operation: An operation.
    :param value: What it reads.
    :param kinds: What it can read.
    :raises InvalidPolicyError: If it cannot read that.
    """
    require(
        value.kind in kinds,
        f"operation {operation.name!r} cannot read {operation.inputs[0]!r}, a value of kind {value.kind!r}",
    )
