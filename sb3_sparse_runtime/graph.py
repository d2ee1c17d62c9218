"""A whole decision, from an observation to an action: spaces, a list of operations, and which values are the answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sb3_sparse_runtime.errors import InvalidPolicyError
from sb3_sparse_runtime.operations import FORBIDDEN, ArgMax, Layer, Operation, Value
from sb3_sparse_runtime.operations.base import require
from sb3_sparse_runtime.spaces import Space, Spaces

#: What a graph may answer: the deterministic action, and mean and standard deviation of a Gaussian before it is squashed or
#: clipped.
OUTPUTS = ("action", "mean", "std")


@dataclass(frozen=True, eq=False)
class Graph:
    """
    Every format is made of this and nothing else.

    :param observation: Observation space. The values that operations read are called by its keys, or ``"observation"``
        where there are none.
    :param action: Action space.
    :param operations: Operations, each behind those that it reads.
    :param outputs: Names of values by :data:`OUTPUTS`; ``"action"`` is always there.
    :raises InvalidPolicyError: If this is no decision: a value that is missing or given twice, shapes or numbers that do not
        go together, an action that is none of the space.
    """

    observation: Spaces
    action: Space
    operations: tuple[Operation, ...]
    outputs: Mapping[str, str]

    def __post_init__(self) -> None:
        _ = self.values

    @property
    def inputs(self) -> dict[str, Space]:
        """Observation spaces by the name of the value."""
        return {"observation": self.observation} if isinstance(self.observation, Space) else dict(self.observation)

    @cached_property
    def values(self) -> dict[str, Value]:
        """All values by name, observations first."""
        values = {name: Value(space.shape, "raw") for name, space in self.inputs.items()}
        require(values, "there is no observation")
        for operation in self.operations:
            n_inputs = len(operation.inputs)
            require(n_inputs == (operation.n_inputs or max(n_inputs, 1)), f"{operation.name!r} reads {n_inputs} values")
            missing = [name for name in operation.inputs if name not in values]
            require(not missing, f"{operation.name!r} reads {missing}, which is not there")
            require(operation.output not in values, f"the value {operation.output!r} is given twice")
            try:
                values[operation.output] = operation.infer([values[name] for name in operation.inputs])
            except InvalidPolicyError as error:
                raise InvalidPolicyError(f"operation {operation.name!r}, which gives {operation.output!r}: {error}") from error
        require("action" in self.outputs and set(self.outputs) <= set(OUTPUTS), f"the outputs are {sorted(self.outputs)}")
        require(("mean" in self.outputs) == ("std" in self.outputs), "a mean comes with a standard deviation")
        for output, name in self.outputs.items():
            require(name in values, f"the output {output!r} is {name!r}, which is not there")
            wanted = self.action.size
            require(values[name].size == wanted, f"the output {output!r} has {values[name].size} numbers, not {wanted}")
        require(
            values[self.outputs["action"]].kind == "action", "the output 'action' is not the result of an action's operation"
        )
        return values

    @property
    def layers(self) -> list[Layer]:
        """Operations that have weights, in order."""
        return [operation for operation in self.operations if isinstance(operation, Layer)]

    @property
    def is_exact(self) -> bool:
        """Whether every sum is one of integers, so that all that computes it agrees to the last bit."""
        return all(layer.is_integer for layer in self.layers)

    @property
    def chooser(self) -> ArgMax | None:
        """The operation that chooses among discrete actions, if they may be forbidden."""
        last = self._last
        return last if isinstance(last, ArgMax) and last.maskable else None

    @property
    def _last(self) -> Operation:
        return next(operation for operation in self.operations if operation.output == self.outputs["action"])

    @property
    def chooses(self) -> bool:
        """Whether the action consists of choices, which are integers."""
        return isinstance(self._last, ArgMax)

    def evaluate(self, observations: Mapping[str, NDArray], action_masks: NDArray | None = None) -> dict[str, NDArray]:
        """
        Compute everything in numpy.

        :param observations: Arrays ``[n, *shape]`` by the names of :attr:`inputs`.
        :param action_masks: Bool ``[n, number of choices]``, False where a choice is forbidden; only with a :attr:`chooser`.
        :return: All values by name.
        """
        arrays = dict(observations)
        for operation in self.operations:
            inputs = [arrays[name] for name in operation.inputs]
            if action_masks is not None and operation is self.chooser:
                inputs = [np.where(action_masks, inputs[0], FORBIDDEN)]
            arrays[operation.output] = operation.compute(inputs)
        return arrays
