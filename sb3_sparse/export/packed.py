"""Packed policies: one file of numbers and names, see :mod:`sb3_sparse_runtime.file`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_sparse.masks.encodings import Encoding, candidates, value_bytes
from sb3_sparse.masks.patterns import Unstructured, parse_pattern
from sb3_sparse.utils.files import replacing
from sb3_sparse_runtime.description import describe_operation, describe_outputs, describe_spaces, describe_weight
from sb3_sparse_runtime.file import to_bytes
from sb3_sparse_runtime.graph import Graph
from sb3_sparse_runtime.operations import Layer


def choose_encoding(layer: Layer) -> tuple[Encoding, NDArray[np.bool_]]:
    """
    The encoding with the fewest bytes for values and indices together. What counts as existing are the weights that are not
    zero, or those that the mask says if its pattern makes that smaller.

    :param layer: A layer.
    :return: The encoding, and which weights exist, a matrix.
    """
    present = layer.matrix != 0
    sized = [(encoding, present) for encoding in candidates(present, Unstructured())]
    if layer.mask is not None:
        mask = layer.mask.reshape(present.shape)
        sized += [(encoding, mask) for encoding in candidates(mask, parse_pattern(layer.pattern))]

    def size(item: tuple[Encoding, NDArray[np.bool_]]) -> float:
        encoding, mask = item
        n_bytes = encoding.size(mask)
        if n_bytes is None:
            return np.inf
        return n_bytes + value_bytes(mask.size if encoding.stores_all else int(mask.sum()), layer.bits)

    return min(sized, key=size)


def in_half_precision(graph: Graph) -> Graph:
    """
    Round weights to float16.

    :param graph: A decision with float32 weights.
    :return: The same with every float32 weight rounded to the nearest float16 number.
    :raises ValueError: If a weight is too large for that.
    """
    operations = []
    for operation in graph.operations:
        if isinstance(operation, Layer) and not operation.is_quantized:
            with np.errstate(over="ignore"):
                rounded = operation.weight.astype(np.float16).astype(np.float32)
            if not np.isfinite(rounded).all():
                raise ValueError(f"`bits`=16: a weight of {np.abs(operation.weight).max():g} is too large for float16")
            operation = replace(operation, weight=rounded, bits=16)
        operations.append(operation)
    return replace(graph, operations=tuple(operations))


def pack(graph: Graph, report: Mapping[str, Any], provenance: Mapping[str, Any]) -> bytes:
    """
    Make a policy file.

    :param graph: A decision.
    :param report: What of it is sparse, JSON values.
    :param provenance: Where it comes from, JSON values.
    :return: The file.
    """
    operations: list[dict[str, Any]] = []
    tensors: dict[str, NDArray] = {}
    for index, operation in enumerate(graph.operations):
        said, own = describe_operation(operation)
        if isinstance(operation, Layer):
            said["weight"], of_weight = describe_weight(operation, *choose_encoding(operation))
            own |= of_weight
        operations.append(said)
        tensors |= {f"{index}.{role}": array for role, array in own.items()}
    description = {
        "observation": describe_spaces(graph.observation),
        "action": describe_spaces(graph.action),
        "operations": operations,
        "outputs": describe_outputs(graph.outputs),
        "report": dict(report),
        "provenance": dict(provenance),
    }
    return to_bytes(description, tensors)


def write_packed(path: Path, graph: Graph, report: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """
    Write a policy file.

    :param path: The file; it is replaced as a whole.
    :param graph: A decision.
    :param report: As of :func:`pack`.
    :param provenance: As of :func:`pack`.
    """
    data = pack(graph, report, provenance)
    with replacing(path) as partial:
        partial.write_bytes(data)
