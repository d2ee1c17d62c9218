"""Where values lie in memory while a policy decides: one that is not needed any more makes room for others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sb3_sparse_runtime.graph import Graph
from sb3_sparse_runtime.operations import Activate, Flatten


@dataclass
class Lifetime:
    """
    When a value is needed, and how much room it takes.

    :param begin: Index of the operation that gives it.
    :param end: Index of the last one that reads it.
    :param size: Items it takes.
    """

    begin: int
    end: int
    size: int


def place(lifetimes: Mapping[str, Lifetime]) -> tuple[dict[str, int], int]:
    """
    First fit, in order of birth.

    :param lifetimes: What needs room.
    :return: Where each begins, and how much there must be in all.
    """
    offsets: dict[str, int] = {}
    total = 0
    for name, own in sorted(lifetimes.items(), key=lambda item: item[1].begin):
        others = sorted(
            (offsets[other], lifetimes[other].size)
            for other in offsets
            if lifetimes[other].begin <= own.end and own.begin <= lifetimes[other].end
        )
        offset = 0
        for start, size in others:
            if offset + own.size <= start:
                break
            offset = max(offset, start + size)
        offsets[name] = offset
        total = max(total, offset + own.size)
    return offsets, total


def shared(graph: Graph, fixed: Collection[str]) -> dict[str, str]:
    """
    Find values that may lie where another one lies.

    :param graph: A decision.
    :param fixed: Values that must stay as they are.
    :return: Values that lie where another one lies, by name: the same numbers in another shape, or a function of numbers that
        nobody else reads.
    """
    readers = Counter(name for operation in graph.operations for name in operation.inputs)
    readers.update(graph.outputs.values())
    roots: dict[str, str] = {}
    for operation in graph.operations:
        source = operation.inputs[0]
        root = roots.get(source, source)
        alone = isinstance(operation, Activate) and readers[source] == 1 and root not in fixed
        if isinstance(operation, Flatten) or alone:
            roots[operation.output] = root
    return roots


def lifetimes(graph: Graph, roots: Mapping[str, str], round_up: int) -> dict[str, Lifetime]:
    """
    Find when values are needed.

    :param graph: A decision.
    :param roots: What :func:`shared` found.
    :param round_up: What sizes are rounded up to a multiple of.
    :return: Of every value that is given by an operation and has memory of its own.
    """
    found: dict[str, Lifetime] = {}
    for index, operation in enumerate(graph.operations):
        for name in operation.inputs:
            if (root := roots.get(name, name)) in found:
                found[root].end = index
        root = roots.get(operation.output, operation.output)
        if root not in graph.inputs:
            size = -(-graph.values[operation.output].size // round_up) * round_up
            found.setdefault(root, Lifetime(index, index, size)).end = index
    for name in graph.outputs.values():
        if (root := roots.get(name, name)) in found:
            found[root].end = len(graph.operations)
    return found
