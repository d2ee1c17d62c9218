"""
What a policy file says in JSON about its operations, and what it keeps in tensors: one rule for writing and for reading, from
the types of the operations' own arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_sparse_runtime.encodings import Bitmap, Blocks, Dense, Encoding, Gaps, Positions, Rice, Rows, value_bytes
from sb3_sparse_runtime.errors import InvalidPolicyError
from sb3_sparse_runtime.integer import Convolution, weight_limit
from sb3_sparse_runtime.operations import OPERATIONS, Layer, Operation
from sb3_sparse_runtime.operations.base import require
from sb3_sparse_runtime.spaces import Space, Spaces

ENCODINGS: dict[str, type[Encoding]] = {
    encoding.name: encoding for encoding in (Dense, Bitmap, Rows, Gaps, Rice, Positions, Blocks)
}
#: Arguments that are tensors, by the type they are annotated with.
_TENSORS = {"Float32": np.float32, "Float32 | None": np.float32, "NDArray[np.float64]": np.float64}
#: Arguments that have rules of their own, or do not belong into a file.
_SPECIAL = ("inputs", "output", "weight", "geometry", "mask", "pattern")
_LARGEST_INTEGER = 2**40


# --- JSON values, as strictly as possible ---


def integer(value: Any, name: str) -> int:
    """
    Take an integer.

    :param value: What the file says.
    :param name: What the error calls it.
    :return: An integer.
    :raises InvalidPolicyError: If it is none, or far too large.
    """
    require(type(value) is int and abs(value) <= _LARGEST_INTEGER, f"{name} must be an integer, got {value!r:.40}")
    return int(value)


def number(value: Any, name: str) -> float:
    """As :func:`integer`, for a finite number."""
    require(
        type(value) in (int, float) and abs(value) <= 1e300 and math.isfinite(value),
        f"{name} must be a number, got {value!r:.40}",
    )
    return float(value)


def text(value: Any, name: str) -> str:
    """As :func:`integer`, for a short string."""
    require(type(value) is str and len(value) <= 200, f"{name} must be a short string, got {value!r:.40}")
    return str(value)


def boolean(value: Any, name: str) -> bool:
    """As :func:`integer`, for true or false."""
    require(type(value) is bool, f"{name} must be true or false, got {value!r:.40}")
    return bool(value)


def array_of(item: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    """
    Make a parser of lists.

    :param item: What each item must be.
    :return: As :func:`integer`, for a list of them.
    """

    def parse(value: Any, name: str) -> tuple[Any, ...]:
        require(type(value) is list, f"{name} must be a list, got {value!r:.40}")
        return tuple(item(part, name) for part in value)

    return parse


def mapping(value: Any, name: str, keys: set[str] | None = None, optional: frozenset[str] = frozenset()) -> dict[str, Any]:
    """
    As :func:`integer`, for a JSON object.

    :param keys: The keys it must have; None for any.
    :param optional: Keys it may have too.
    """
    require(type(value) is dict, f"{name} must be an object, got {value!r:.40}")
    if keys is not None:
        require(
            keys <= set(value) <= keys | optional,
            f"{name} must have the keys {sorted(keys | optional)}, got {sorted(value)!r:.200}",
        )
    return dict(value)


_PARSERS: dict[str, Callable[[Any, str], Any]] = {
    "int": integer,
    "float": number,
    "float | None": lambda value, name: None if value is None else number(value, name),
    "str": text,
    "bool": boolean,
    "tuple[int, ...]": array_of(integer),
    "tuple[float, ...]": array_of(number),
}


# --- Spaces ---


def describe_spaces(spaces: Spaces) -> dict[str, Any]:
    """
    Describe spaces.

    :param spaces: Spaces.
    :return: JSON values.
    """
    if isinstance(spaces, Space):
        return asdict(spaces)
    return {"keys": {key: asdict(space) for key, space in spaces.items()}}


def _parse_space(value: Any, name: str) -> Space:
    found = mapping(value, name, {field.name for field in fields(Space)})
    return Space(
        **{field.name: _PARSERS[str(field.type)](found[field.name], f"{name}.{field.name}") for field in fields(Space)}
    )


def parse_spaces(value: Any, name: str) -> Spaces:
    """
    Read spaces.

    :param value: What :func:`describe_spaces` made.
    :param name: What errors call it.
    :return: The spaces.
    :raises InvalidPolicyError: If it is anything else.
    """
    if type(value) is dict and set(value) == {"keys"}:
        found = mapping(value["keys"], name)
        require(
            found and all(key.isidentifier() and key.isascii() for key in found), f"{name} has keys that are no identifiers"
        )
        return {key: _parse_space(space, f"{name}.{key}") for key, space in found.items()}
    return _parse_space(value, name)


# --- Weights ---


def pack_values(values: NDArray, bits: int) -> NDArray:
    """
    Pack values bit by bit.

    :param values: Float32 or int8, flat.
    :param bits: Bits each: 32, 16, or 2 to 8.
    :return: What is stored: float32, float16, int8, or bytes that are filled from the lowest bit with ``value + limit``.
    """
    if bits == 32:
        return values.astype(np.float32)
    if bits == 16:
        return values.astype(np.float16)
    if bits == 8:
        return values.astype(np.int8)
    shifted = (values.astype(np.int16) + weight_limit(bits)).astype(np.uint8)
    return np.packbits(shifted[:, None] >> np.arange(bits, dtype=np.uint8) & 1, bitorder="little")


def unpack_values(stored: NDArray, bits: int, n_values: int) -> NDArray:
    """
    Unpack values.

    :param stored: What :func:`pack_values` made.
    :param bits: Bits each.
    :param n_values: How many.
    :return: Float32 or int8, flat.
    :raises InvalidPolicyError: If it is anything else.
    """
    dtype = {32: np.float32, 16: np.float16, 8: np.int8}.get(bits, np.uint8)
    n_stored = n_values if bits >= 8 else value_bytes(n_values, bits)
    require(
        stored.dtype == dtype and stored.shape == (n_stored,),
        f"{n_values} values of {bits} bits, got {stored.shape} {stored.dtype}",
    )
    if bits >= 8:
        return stored.astype(np.int8 if bits == 8 else np.float32)
    rows = np.unpackbits(stored, bitorder="little")[: n_values * bits].reshape(n_values, bits)
    shifted = (rows.astype(np.int16) << np.arange(bits)).sum(axis=1) - weight_limit(bits)
    return shifted.astype(np.int8)


def describe_weight(layer: Layer, encoding: Encoding, mask: NDArray[np.bool_]) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """
    Describe a weight.

    :param layer: A layer.
    :param encoding: How to write down which weights exist.
    :param mask: Which do, a matrix; all others are zeros.
    :return: JSON values, and tensors by name.
    """
    values = layer.matrix[np.ones_like(mask) if encoding.stores_all else mask]
    said = {"shape": list(layer.weight.shape), "bits": layer.bits, "encoding": encoding.name, **encoding.parameters}
    tensors = {"values": pack_values(values, layer.bits)}
    if not encoding.stores_all:
        tensors["indices"] = np.frombuffer(encoding.encode(mask), np.uint8)
    return said, tensors


def _parse_weight(value: Any, take: Callable[[str], NDArray | None], allow: Callable[[int], None]) -> dict[str, Any]:
    found = mapping(value, "a weight")
    name = text(found.get("encoding"), "an encoding")
    require(name in ENCODINGS, f"the encoding {name!r} is unknown")
    parameters = [field.name for field in fields(ENCODINGS[name])]  # type: ignore[arg-type]
    mapping(value, "a weight", {"shape", "bits", "encoding", *parameters})
    shape = array_of(integer)(found["shape"], "a weight's shape")
    require(len(shape) in (2, 4) and all(0 < size < 2**31 for size in shape), f"a weight of shape {shape}")
    allow(math.prod(shape))
    bits = integer(found["bits"], "bits")
    require(bits in (32, 16) or 2 <= bits <= 8, f"weights of {bits} bits")
    numbers = {parameter: integer(found[parameter], parameter) for parameter in parameters}
    require(all(0 <= one < 2**31 for one in numbers.values()), f"an encoding with {numbers}")
    require("m" not in numbers or 0 < numbers["n"] <= numbers["m"], f"an encoding with {numbers}")
    require("rows" not in numbers or min(numbers.values()) > 0, f"an encoding with {numbers}")
    indices = take("indices")
    require(indices is None or (indices.dtype == np.uint8 and indices.ndim == 1), "indices must be bytes")
    matrix_shape = (shape[0], math.prod(shape[1:]))
    try:
        mask = ENCODINGS[name](**numbers).decode(b"" if indices is None else indices.tobytes(), matrix_shape)
    except ValueError as error:
        raise InvalidPolicyError(f"the indices of a weight: {error}") from error
    stored = take("values")
    require(stored is not None, "a weight without values")
    assert stored is not None
    values = unpack_values(stored, bits, int(mask.sum()))
    weight = np.zeros(matrix_shape, values.dtype)
    weight[mask] = values
    return {"weight": weight.reshape(shape), "bits": bits}


# --- Operations ---


def describe_operation(operation: Operation) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """
    Describe an operation.

    :param operation: An operation.
    :return: JSON values and tensors by name, a layer's weight (and its bits) excepted.
    """
    said: dict[str, Any] = {"op": operation.name, "in": list(operation.inputs), "out": operation.output}
    tensors = {}
    for field in fields(operation):
        value = getattr(operation, field.name)
        if field.name == "geometry":
            said["geometry"] = asdict(value)
        elif field.name not in _SPECIAL and not (isinstance(operation, Layer) and field.name == "bits"):
            if field.type in _TENSORS:
                if value is not None:
                    tensors[field.name] = value
            else:
                said[field.name] = list(value) if isinstance(value, tuple) else value
    return said, tensors


def _parse_geometry(value: Any) -> Convolution:
    found = mapping(value, "a geometry", {field.name for field in fields(Convolution)})
    pair = array_of(integer)
    stride, dilation = pair(found["stride"], "a stride"), pair(found["dilation"], "a dilation")
    padding = array_of(pair)(found["padding"], "a padding")
    require(
        len(stride) == len(dilation) == len(padding) == 2 and all(len(side) == 2 for side in padding), "a geometry of pairs"
    )
    return Convolution(stride, padding, dilation, integer(found["groups"], "groups"))


def parse_operation(value: Any, take: Callable[[str], NDArray | None], allow: Callable[[int], None]) -> Operation:
    """
    Read an operation.

    :param value: What :func:`describe_operation` made, with a layer's weight under ``"weight"``.
    :param take: Gives a tensor of the operation by name, None if there is none.
    :param allow: Is told how many numbers a weight will take, and refuses too many.
    :return: The operation.
    :raises InvalidPolicyError: If it is anything else.
    """
    name = text(mapping(value, "an operation").get("op"), "an operation's name")
    require(name in OPERATIONS, f"the operation {name!r} is unknown")
    kind = OPERATIONS[name]
    is_layer = issubclass(kind, Layer)
    plain = [field for field in fields(kind) if field.name not in _SPECIAL and not (is_layer and field.name == "bits")]
    keys = {"op", "in", "out", *(field.name for field in plain if field.type not in _TENSORS)}
    keys |= {"weight"} if is_layer else set()
    keys |= {"geometry"} if name == "convolve" else set()
    found = mapping(value, f"operation {name!r}", keys)
    arguments: dict[str, Any] = {
        "inputs": array_of(text)(found["in"], "inputs"),
        "output": text(found["out"], "an output"),
    }
    for field in plain:
        if field.type in _TENSORS:
            tensor = take(field.name)
            require(tensor is not None or "None" in str(field.type), f"operation {name!r} lacks {field.name!r}")
            require(
                tensor is None or tensor.dtype == _TENSORS[str(field.type)],
                f"{field.name!r} of operation {name!r} has a wrong dtype",
            )
            arguments[field.name] = tensor
        else:
            arguments[field.name] = _PARSERS[str(field.type)](found[field.name], f"{field.name!r} of operation {name!r}")
    if is_layer:
        arguments |= _parse_weight(found["weight"], take, allow)
    if name == "convolve":
        arguments["geometry"] = _parse_geometry(found["geometry"])
    return kind(**arguments)


def describe_outputs(outputs: Mapping[str, str]) -> dict[str, str]:
    """
    Describe outputs.

    :param outputs: Names of values by output.
    :return: JSON values.
    """
    return dict(outputs)


def parse_outputs(value: Any) -> dict[str, str]:
    """
    Read outputs.

    :param value: What :func:`describe_outputs` made.
    :return: Names of values by output.
    """
    return {key: text(name, "an output") for key, name in mapping(value, "outputs").items()}
