"""
The definition of integer arithmetic. It stands in :mod:`sb3_sparse_runtime.integer`, so that a deployed policy computes by the
same lines as training imitates, without torch.
"""

from sb3_sparse_runtime.integer import (
    INT32_LIMIT,
    SMALLEST_SCALE,
    Convolution,
    IntegerLayer,
    accumulator_limit,
    activation_limit,
    activation_parameters,
    dequantize_activations,
    dequantize_weights,
    quantize_activations,
    quantize_weights,
    weight_limit,
    weight_scales,
)

__all__ = [
    "INT32_LIMIT",
    "SMALLEST_SCALE",
    "Convolution",
    "IntegerLayer",
    "accumulator_limit",
    "activation_limit",
    "activation_parameters",
    "dequantize_activations",
    "dequantize_weights",
    "quantize_activations",
    "quantize_weights",
    "weight_limit",
    "weight_scales",
]
