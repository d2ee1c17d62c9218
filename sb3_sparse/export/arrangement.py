"""
The order of hidden units. It is of no consequence for what a network computes, but kernels that take sixteen rows and windows
of 32 inputs at a time need as many steps as the longest row of each: units are put where they leave the fewest gaps.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_sparse_runtime.graph import Graph
from sb3_sparse_runtime.layouts import PANEL, WINDOW
from sb3_sparse_runtime.operations import Activate, Linear, Quantize

#: Swaps of two units that are tried for each hidden layer.
N_TRIES = 8000


class _Layer:
    """
    How many weights each row has in each window.

    :param weight: Weights ``[out, in]``.
    """

    def __init__(self, weight: NDArray) -> None:
        n_rows, n_columns = weight.shape
        padding = ((0, -n_rows % PANEL), (0, -n_columns % WINDOW))
        self.exists = np.pad((weight != 0).astype(np.int32), padding)
        self.counts = self.exists.reshape(len(self.exists), -1, WINDOW).sum(axis=2)

    @property
    def n_steps(self) -> int:
        """Steps of all panels and windows."""
        return int(self.counts.reshape(-1, PANEL, self.counts.shape[1]).max(axis=1).sum())

    def _steps_of(self, a: int, b: int) -> int:
        """Steps of the panels of two rows."""
        return int(sum(self.counts[one : one + PANEL].max(axis=0).sum() for one in (a // PANEL * PANEL, b // PANEL * PANEL)))

    def swap_rows(self, a: int, b: int) -> int:
        """Swap two rows; answers how many steps more that makes."""
        if a // PANEL == b // PANEL:
            self._swap(a, b)
            return 0
        before = self._steps_of(a, b)
        self._swap(a, b)
        return self._steps_of(a, b) - before

    def _swap(self, a: int, b: int) -> None:
        self.counts[[a, b]] = self.counts[[b, a]]
        self.exists[[a, b]] = self.exists[[b, a]]

    def swap_columns(self, a: int, b: int) -> int:
        """Swap two columns; answers how many steps more that makes."""
        windows = [a // WINDOW, b // WINDOW]
        if windows[0] != windows[1]:
            before = self.counts[:, windows]
            moved = self.exists[:, b] - self.exists[:, a]
            after = before + np.stack([moved, -moved], axis=1)
            self.counts[:, windows] = after
            difference = after.reshape(-1, PANEL, 2).max(axis=1).sum() - before.reshape(-1, PANEL, 2).max(axis=1).sum()
        else:
            difference = 0
        self.exists[:, [a, b]] = self.exists[:, [b, a]]
        return int(difference)


@dataclass(frozen=True)
class _Hidden:
    """
    Units between two layers, which nobody else reads.

    :param first: Index of the layer that gives them.
    :param second: Index of the one that reads them.
    """

    first: int
    second: int


def _hidden_layers(graph: Graph) -> list[_Hidden]:
    readers = Counter(name for operation in graph.operations for name in operation.inputs)
    readers.update(graph.outputs.values())
    found = []
    for index, layer in enumerate(graph.operations):
        name = layer.output
        if not isinstance(layer, Linear):
            continue
        for later, operation in enumerate(graph.operations[index + 1 :], index + 1):
            if operation.inputs != (name,) or readers[name] != 1:
                continue
            if isinstance(operation, (Activate, Quantize)):
                name = operation.output
                continue
            # Blocks and N:M are written down by their places
            if isinstance(operation, Linear) and {layer.pattern, operation.pattern} == {"unstructured"}:
                found.append(_Hidden(index, later))
            break
    return found


def _search(layers: dict[int, _Layer], hidden: list[_Hidden], orders: list[NDArray[np.intp]], n_tries: int) -> None:
    rng = np.random.default_rng(0)
    for which in rng.integers(len(hidden), size=n_tries * len(hidden)):
        order, one = orders[which], hidden[which]
        a, b = rng.integers(len(order), size=2)
        more = layers[one.first].swap_rows(a, b) + layers[one.second].swap_columns(a, b)
        if more > 0:
            layers[one.first].swap_rows(a, b)
            layers[one.second].swap_columns(a, b)
        else:
            order[[a, b]] = order[[b, a]]


def _columns(matrix: Any, order: NDArray[np.intp]) -> Any:
    return np.ascontiguousarray(matrix[:, order])


def arranged(graph: Graph, n_tries: int = N_TRIES) -> Graph:
    """
    Put the hidden units of sparse layers into an order in which kernels leave fewer gaps: a local search, always the same.

    :param graph: A decision.
    :param n_tries: Swaps that are tried for each hidden layer.
    :return: The same decision; integers answer the same bits, float32 sums have another order. The graph itself where there is
        nothing to gain.
    """
    hidden = _hidden_layers(graph)
    operations = list(graph.operations)
    weights = {index: operations[index].weight for one in hidden for index in (one.first, one.second)}  # type: ignore[attr-defined]
    wide = [weight for weight in weights.values() if len(weight) > PANEL and 2 * np.count_nonzero(weight) < weight.size]
    if not wide:
        return graph
    orders = []
    for one in hidden:
        # Rows of like length beside each other, to begin with
        order = np.argsort(-(weights[one.first] != 0).sum(axis=1), kind="stable")
        orders.append(order)
        weights[one.first] = weights[one.first][order]
        weights[one.second] = weights[one.second][:, order]
    layers = {index: _Layer(weight) for index, weight in weights.items()}
    _search(layers, hidden, orders, n_tries)
    for one, order in zip(hidden, orders, strict=True):
        first, second = operations[one.first], operations[one.second]
        assert isinstance(first, Linear)
        assert isinstance(second, Linear)
        operations[one.first] = replace(
            first,
            weight=first.weight[order],
            bias=None if first.bias is None else first.bias[order],
            scales=None if first.scales is None else first.scales[order],
            mask=None if first.mask is None else first.mask[order],
        )
        operations[one.second] = replace(
            second,
            weight=_columns(second.weight, order),
            mask=None if second.mask is None else _columns(second.mask, order),
        )
    return Graph(graph.observation, graph.action, tuple(operations), graph.outputs)
