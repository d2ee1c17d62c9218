"""
The operations a decision consists of. Each is a value: what it reads, what it gives, its numbers. It knows which shapes it
takes, and computes itself in numpy, a batch at a time; that is the definition which the compiled runner and every exported
format follow. Floating-point operations are single float32 operations in the order written, except sums of products of
float32, whose order is free, and :class:`Normalize`, which computes in float64 as ``VecNormalize`` does.
"""

from sb3_sparse_runtime.operations.actions import (
    FORBIDDEN,
    Above,
    ArgMax,
    AverageQuantiles,
    Bound,
    Constant,
    Exponential,
    Unscale,
)
from sb3_sparse_runtime.operations.base import Operation, Value
from sb3_sparse_runtime.operations.between import ACTIVATIONS, Activate, Quantize
from sb3_sparse_runtime.operations.layers import Convolve, Layer, Linear
from sb3_sparse_runtime.operations.observations import AsFloat, Concatenate, Divide, Flatten, Normalize, OneHot

__all__ = [
    "ACTIVATIONS",
    "FORBIDDEN",
    "OPERATIONS",
    "Above",
    "Activate",
    "ArgMax",
    "AsFloat",
    "AverageQuantiles",
    "Bound",
    "Concatenate",
    "Constant",
    "Convolve",
    "Divide",
    "Exponential",
    "Flatten",
    "Layer",
    "Linear",
    "Normalize",
    "OneHot",
    "Operation",
    "Quantize",
    "Unscale",
    "Value",
]

#: All operations by the names that files know.
OPERATIONS: dict[str, type[Operation]] = {
    operation.name: operation
    for operation in (
        AsFloat,
        Normalize,
        Divide,
        OneHot,
        Flatten,
        Concatenate,
        Linear,
        Convolve,
        Activate,
        Quantize,
        AverageQuantiles,
        Bound,
        Unscale,
        ArgMax,
        Above,
        Exponential,
        Constant,
    )
}
