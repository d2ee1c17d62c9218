"""Observation and action spaces as far as a deployed policy needs them: what an observation must look like, and batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_sparse_runtime.errors import InvalidPolicyError

KINDS = ("box", "discrete", "multi_discrete", "multi_binary")
#: What arrays of observations and actions may consist of.
DTYPES = ("float32", "float64", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool")
_MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class Space:
    """
    One space of gymnasium's that is no dictionary.

    :param kind: ``"box"``, ``"discrete"``, ``"multi_discrete"`` or ``"multi_binary"``.
    :param shape: Shape of one observation or action.
    :param dtype: Name of numpy's dtype.
    :param sizes: Number of values of each entry, for ``"discrete"`` (one number) and ``"multi_discrete"``.
    :param image: Whether it is an image, channels first, which may come channels last too.
    :raises InvalidPolicyError: If these do not go together.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: str
    sizes: tuple[int, ...] = ()
    image: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.dtype not in DTYPES:
            raise InvalidPolicyError(f"a space of kind {self.kind!r} and dtype {self.dtype!r} is unknown")
        if len(self.shape) > _MAX_DIMENSIONS or any(size < 1 for size in (*self.shape, *self.sizes)):
            raise InvalidPolicyError(f"a space of shape {self.shape} with {self.sizes} values is not possible")
        wanted = {"discrete": 1, "multi_discrete": math.prod(self.shape)}.get(self.kind, 0)
        if len(self.sizes) != wanted or (self.kind == "discrete") != (self.shape == () and self.kind != "box"):
            raise InvalidPolicyError(f"a {self.kind} space of shape {self.shape} with {self.sizes} values is not possible")
        if self.image and (self.kind != "box" or len(self.shape) != 3):
            raise InvalidPolicyError(f"an image has three dimensions, not the shape {self.shape}")

    @property
    def size(self) -> int:
        """Numbers in one observation or action."""
        return math.prod(self.shape)

    def batch(self, observation: Any, name: str = "observation") -> tuple[NDArray, bool]:
        """
        Check an observation and make a batch of it.

        :param observation: One observation, or several in a batch.
        :param name: What errors call it.
        :return: Array ``[n, *shape]``, and whether it was a batch.
        :raises ValueError: For another shape, numbers that are not finite, or values that the space does not have.
        """
        array = np.asarray(observation)
        if array.dtype == object or not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
            raise ValueError(f"`{name}` must hold numbers of shape {self.shape}, or a batch of such, got {observation!r}")
        if self.image and array.shape != self.shape and array.shape[1:] != self.shape and array.ndim in (3, 4):
            last_first = np.moveaxis(array, -1, -3)
            if last_first.shape == self.shape or last_first.shape[1:] == self.shape:
                array = last_first
        if array.shape == self.shape:
            array, vectorized = array[None], False
        elif array.ndim == len(self.shape) + 1 and array.shape[1:] == self.shape:
            vectorized = True
        else:
            raise ValueError(
                f"`{name}` must have the shape {self.shape}, or {('n', *self.shape)} in a batch, got {array.shape}"
            )
        self._check_values(array, name)
        return array, vectorized

    def _check_values(self, array: NDArray, name: str) -> None:
        if self.kind == "box":
            if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
                raise ValueError(f"`{name}` must be finite, got {array[~np.isfinite(array)][0]}")
        elif self.kind == "multi_binary":
            if not ((array == 0) | (array == 1)).all():
                raise ValueError(f"`{name}` must be 0 or 1, got {array[(array != 0) & (array != 1)][0]}")
        else:
            sizes = np.reshape(self.sizes, self.shape)
            wrong = (array < 0) | (array >= sizes) | (array != np.floor(array))
            if wrong.any():
                raise ValueError(f"`{name}` must hold integers from 0 below {sizes.tolist()}, got {array[wrong][0]}")


#: A space, or one for each key of a dictionary.
Spaces = Space | Mapping[str, Space]


def batch_of(spaces: Spaces, observation: Any) -> tuple[dict[str, NDArray], bool]:
    """
    Check observations and make a batch of them.

    :param spaces: What observations must look like.
    :param observation: One observation or a batch: an array, or a dictionary of arrays.
    :return: Arrays ``[n, *shape]`` by key (``"observation"`` where there are no keys), and whether it was a batch.
    :raises ValueError: For anything else, naming what is wrong.
    """
    if isinstance(observation, tuple) and len(observation) == 2 and isinstance(observation[1], dict):
        raise ValueError(
            "`observation` is a pair: `env.reset()` returns the observation and a dictionary; give the first alone"
        )
    if isinstance(spaces, Space):
        if isinstance(observation, Mapping):
            raise ValueError(f"`observation` must be an array of shape {spaces.shape}, got a dictionary")
        array, vectorized = spaces.batch(observation)
        return {"observation": array}, vectorized
    if not isinstance(observation, Mapping) or set(observation) != set(spaces):
        got = sorted(observation) if isinstance(observation, Mapping) else type(observation).__name__
        raise ValueError(f"`observation` must be a dictionary with the keys {', '.join(spaces)}, got {got}")
    found = {key: space.batch(observation[key], f"observation[{key!r}]") for key, space in spaces.items()}
    lengths = {(vectorized, len(array)) for array, vectorized in found.values()}
    if len(lengths) > 1:
        raise ValueError(f"`observation` must have as many rows under every key, got {sorted(n for _, n in lengths)}")
    return {key: array for key, (array, _) in found.items()}, lengths.pop()[0]
