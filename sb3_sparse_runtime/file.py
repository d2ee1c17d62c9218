"""
Policy files (``.sb3s``): a safetensors file (8 bytes of length, a JSON header, tensors) whose metadata describe the policy. No
pickle; numbers and names alone.

Nothing in a file is trusted. The checksum tells damage from intention; whatever passes it is checked again, value by value,
and no array is made that is not in proportion to the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_sparse_runtime.description import array_of, integer, mapping, parse_operation, parse_outputs, parse_spaces, text
from sb3_sparse_runtime.errors import InvalidPolicyError
from sb3_sparse_runtime.graph import Graph
from sb3_sparse_runtime.operations.base import require
from sb3_sparse_runtime.spaces import Space

FORMAT = "sb3s"
SCHEMA = 1
#: Tensors' dtypes by safetensors' names.
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I8": np.int8, "U8": np.uint8}
_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
_METADATA = {"format", "schema", "policy", "sha256"}
_POLICY = {"observation", "action", "operations", "outputs", "report", "provenance"}
_LARGEST_HEADER = 2**24
#: Numbers in memory for each byte of the file, at most: 99.9 % sparse, in two bits and with indices, has 600.
_LARGEST_GROWTH = 4096


@dataclass(frozen=True)
class PolicyFile:
    """
    What a policy file holds.

    :param graph: The decision.
    :param report: What of the policy is sparse, JSON values.
    :param provenance: Where it comes from, JSON values.
    """

    graph: Graph
    report: Mapping[str, Any]
    provenance: Mapping[str, Any]


def checksum(policy: str, tensors: Iterable[tuple[str, str, tuple[int, ...], bytes]]) -> str:
    """
    Compute the checksum of a policy file.

    :param policy: The description.
    :param tensors: Name, dtype, shape and bytes of every tensor.
    :return: SHA-256 over all of that, hexadecimal.
    """
    digest = hashlib.sha256(policy.encode())
    for name, dtype, shape, data in sorted(tensors):
        digest.update(f"\n{name} {dtype} {shape} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()


def to_bytes(description: Mapping[str, Any], tensors: Mapping[str, NDArray]) -> bytes:
    """
    Write a policy file.

    :param description: JSON values of a policy.
    :param tensors: Arrays by name, little-endian, of :data:`DTYPES`.
    :return: The file.
    """
    policy = json.dumps(description, separators=(",", ":"), allow_nan=False)
    # Wide numbers first: then each tensor begins at a multiple of its item's size, as safetensors wants it
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    data = {name: np.ascontiguousarray(tensors[name]).tobytes() for name in order}
    entries: dict[str, Any] = {}
    offset = 0
    for name in order:
        entries[name] = {
            "dtype": _NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, offset + len(data[name])],
        }
        offset += len(data[name])
    digest = checksum(policy, ((name, _NAMES[tensors[name].dtype], tensors[name].shape, data[name]) for name in order))
    metadata = {"format": FORMAT, "schema": str(SCHEMA), "policy": policy, "sha256": digest}
    header = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + b"".join(data.values())


def _json(data: bytes | str, name: str) -> Any:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        require(len(found) == len(pairs), f"{name} has a key twice")
        return found

    def refuse(constant: str) -> None:
        raise InvalidPolicyError(f"{name} holds {constant}")

    try:
        return json.loads(data, object_pairs_hook=no_duplicates, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        if isinstance(error, InvalidPolicyError):
            raise
        raise InvalidPolicyError(f"{name} is no JSON: {error!s:.100}") from error


def _split(data: bytes) -> tuple[dict[str, Any], dict[str, tuple[str, tuple[int, ...], bytes]]]:
    """Metadata, and dtype, shape and bytes of the tensors."""
    require(len(data) >= 8, f"it has {len(data)} bytes")
    length = int.from_bytes(data[:8], "little")
    require(2 <= length <= min(_LARGEST_HEADER, len(data) - 8), "it is truncated, or no policy file at all")
    header = mapping(_json(data[8 : 8 + length], "the header"), "the header")
    metadata = mapping(header.pop("__metadata__", None), "the metadata")
    body = data[8 + length :]
    tensors = {}
    spans = []
    for name, value in header.items():
        entry = mapping(value, f"tensor {name!r:.40}", {"dtype", "shape", "data_offsets"})
        dtype = text(entry["dtype"], "a dtype")
        require(dtype in DTYPES, f"tensor {name!r:.40} has the dtype {dtype!r}; known are {', '.join(DTYPES)}")
        shape = array_of(integer)(entry["shape"], "a shape")
        offsets = array_of(integer)(entry["data_offsets"], "offsets")
        require(len(shape) <= 8 and all(0 <= size < 2**31 for size in shape), f"tensor {name!r:.40} has the shape {shape}")
        require(len(offsets) == 2 and 0 <= offsets[0] <= offsets[1] <= len(body), f"tensor {name!r:.40} is truncated")
        n_bytes = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
        require(
            offsets[1] - offsets[0] == n_bytes, f"tensor {name!r:.40} of shape {shape} has {offsets[1] - offsets[0]} bytes"
        )
        spans.append(offsets)
        tensors[name] = (dtype, shape, body[offsets[0] : offsets[1]])
    end = 0
    for first, last in sorted(spans):
        require(first == end, "tensors overlap, or there are bytes between them")
        end = last
    require(end == len(body), f"{len(body) - end} bytes follow the last tensor")
    return metadata, tensors


def from_bytes(data: bytes) -> PolicyFile:
    """
    Read the bytes of a policy file.

    :param data: The bytes of a policy file.
    :return: What it holds.
    :raises InvalidPolicyError: If it is anything else, with the reason.
    """
    metadata, tensors = _split(data)
    require(
        metadata.get("format") == FORMAT,
        f"it is a safetensors file, but no policy: its format is {metadata.get('format')!r:.40}",
    )
    schema = text(metadata.get("schema"), "the schema")
    require(schema.isdecimal() and schema.isascii() and len(schema) < 10, f"the schema is {schema!r}")
    require(
        int(schema) <= SCHEMA,
        f"it was written by a newer version: schema {schema}, known here is up to {SCHEMA}. Upgrade sb3-sparse",
    )
    require(int(schema) == SCHEMA, f"schema {schema} is unknown")
    mapping(metadata, "the metadata", _METADATA)
    require(type(metadata["policy"]) is str, "the metadata's policy must be a string")
    digest = checksum(metadata["policy"], ((name, *tensor) for name, tensor in tensors.items()))
    require(digest == metadata["sha256"], "the checksum is another: it was damaged or changed")
    policy = mapping(_json(metadata["policy"], "the policy"), "the policy", _POLICY)
    left, budget = dict(tensors), [_LARGEST_GROWTH * len(data)]

    def take(name: str) -> NDArray | None:
        if name not in left:
            return None
        dtype, shape, raw = left.pop(name)
        # A copy: aligned, and not the whole file kept alive
        return np.frombuffer(raw, np.dtype(DTYPES[dtype]).newbyteorder("<")).astype(DTYPES[dtype]).reshape(shape)

    def allow(n_numbers: int, what: str = "a weight") -> None:
        budget[0] -= n_numbers
        require(budget[0] >= 0, f"{what} of {n_numbers} numbers is out of all proportion to a file of {len(data)} bytes")

    require(type(policy["operations"]) is list, "operations must be a list")
    operations = tuple(
        parse_operation(value, lambda role, index=index: take(f"{index}.{role}"), allow)  # type: ignore[misc]
        for index, value in enumerate(policy["operations"])
    )
    require(not left, f"there are tensors that belong to nothing: {sorted(left)!r:.100}")
    observation = parse_spaces(policy["observation"], "the observation space")
    action = parse_spaces(policy["action"], "the action space")
    require(isinstance(action, Space), "the action space must have no keys")
    assert isinstance(action, Space)
    graph = Graph(observation, action, operations, parse_outputs(policy["outputs"]))
    for name, value in graph.values.items():
        allow(value.size, f"the value {name!r:.40}")
    return PolicyFile(graph, mapping(policy["report"], "the report"), mapping(policy["provenance"], "the provenance"))


def read(path: str | os.PathLike[str]) -> PolicyFile:
    """
    Read a policy file.

    :param path: A policy file.
    :return: What it holds.
    :raises FileNotFoundError: If there is none.
    :raises InvalidPolicyError: If it is no policy file, with the reason.
    """
    try:
        return from_bytes(Path(path).read_bytes())
    except InvalidPolicyError as error:
        raise InvalidPolicyError(f"{path} is refused: {error}") from error
