"""The modules of a stock network as operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch as th
from torch import nn

from sb3_sparse.engine.sequence import SparseSequential
from sb3_sparse.export.staircase import staircase
from sb3_sparse.nn.integer_layers import convolution_of, integer_layer
from sb3_sparse.nn.layers import SparseConv2d, SparseLayer, SparseLinear
from sb3_sparse.utils.arrays import array_of
from sb3_sparse_runtime.operations import Activate, Concatenate, Convolve, Flatten, Layer, Linear, Operation, Quantize

#: What has no effect when a policy is used.
_WITHOUT_EFFECT = (nn.Identity, nn.Dropout)
_FUNCTIONS: dict[type[nn.Module], Callable[[Any], tuple[str, tuple[float, ...]]]] = {
    nn.ReLU: lambda module: ("relu", ()),
    nn.LeakyReLU: lambda module: ("leaky_relu", (module.negative_slope,)),
    nn.ELU: lambda module: ("elu", (module.alpha,)),
    nn.Tanh: lambda module: ("tanh", ()),
    nn.Sigmoid: lambda module: ("sigmoid", ()),
    nn.Hardtanh: lambda module: ("clip", (module.min_val, module.max_val)),
    nn.ReLU6: lambda module: ("clip", (0.0, 6.0)),
}


def _rounded(parameters: Sequence[float]) -> tuple[float, ...]:
    """As torch's float32 kernels see them."""
    return tuple(float(np.float32(parameter)) for parameter in parameters)


@dataclass(frozen=True)
class Flow:
    """
    Where in the network one is: a value, and a function of it that is not yet written down, because a quantized layer takes
    both in one step.

    :param name: Name of the value.
    :param module: The activation function, None for none.
    """

    name: str
    module: nn.Module | None = None


class Writer:
    """
    Collects operations.

    :param taken: Names that values must not have: those of the observations.
    :param patterns: Which masks are legal, by layer.
    """

    def __init__(self, taken: Sequence[str], patterns: Mapping[nn.Module, str]) -> None:
        self.operations: list[Operation] = []
        self._taken = set(taken)
        self._patterns = patterns
        self._known: dict[Any, str] = {}
        #: Float32 numbers near the steps of a staircase that are on the wrong side of theirs.
        self.n_uneven = 0

    def add(self, kind: type[Operation], *inputs: str, **fields: Any) -> str:
        """
        Add an operation.

        :param kind: Class of the operation.
        :param inputs: What it reads.
        :param fields: Its other arguments.
        :return: Name of what it gives.
        """
        number = len(self.operations)
        while (name := f"v{number}") in self._taken:
            number += 1
        self._taken.add(name)
        self.operations.append(kind(inputs, name, **fields))
        return name

    def value(self, flow: Flow) -> str:
        """
        Write down a function that waits.

        :param flow: Where one is.
        :return: Name of the value there, its function applied.
        """
        if flow.module is None:
            return flow.name
        function, parameters = _FUNCTIONS[type(flow.module)](flow.module)
        return self._once(("value", flow), lambda: self._activate(flow.name, function, parameters))

    def _activate(self, name: str, function: str, parameters: Sequence[float]) -> str:
        return self.add(Activate, name, function=function, parameters=_rounded(parameters))

    def _once(self, key: Any, make: Callable[[], str]) -> str:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def _quantized(self, flow: Flow, scale: np.float32, zero_point: int, bits: int) -> str:
        def make() -> str:
            fields: dict[str, Any] = dict(scale=float(scale), zero_point=zero_point, bits=bits)
            if flow.module is None:
                return self.add(Quantize, flow.name, **fields)
            function, parameters = _FUNCTIONS[type(flow.module)](flow.module)
            fields |= dict(function=function, parameters=_rounded(parameters))
            if function == "relu":
                return self.add(Quantize, flow.name, **fields)
            steps, lowest, n_uneven = staircase(flow.module, scale, zero_point, bits)
            self.n_uneven += n_uneven
            return self.add(Quantize, flow.name, steps=steps, lowest=lowest, **fields)

        return self._once(("quantized", flow, float(scale), zero_point, bits), make)

    def concatenate(self, flows: Sequence[Flow]) -> Flow:
        """
        Put vectors behind each other.

        :param flows: Vectors.
        :return: All of them behind each other.
        """
        names = [self.value(flow) for flow in flows]
        return Flow(names[0] if len(names) == 1 else self.add(Concatenate, *names))

    def module(self, module: nn.Module, flow: Flow, name: str) -> Flow:
        """
        Write down a module.

        :param module: A layer, an activation function, or a sequence of them.
        :param flow: What it reads.
        :param name: Its path in the policy, for messages.
        :return: What it gives.
        :raises ValueError: If it cannot be exported, naming it.
        """
        kind = type(module)
        if kind in (nn.Sequential, SparseSequential):
            for index, part in module.named_children():
                flow = self.module(part, flow, f"{name}.{index}")
            return flow
        if kind in _WITHOUT_EFFECT:
            return flow
        if kind is nn.Flatten:
            if (module.start_dim, module.end_dim) != (1, -1):
                raise ValueError(f"layer {name!r} is {module}, which cannot be exported: it must flatten everything")
            return replace(flow, name=self._once(("flat", flow.name), lambda: self.add(Flatten, flow.name)))
        if kind in _FUNCTIONS:
            return Flow(self.value(flow), module)
        if kind in (nn.Linear, nn.Conv2d, SparseLinear, SparseConv2d):
            return Flow(self._layer(module, flow, name))
        known = ", ".join(
            sorted(known.__name__ for known in (nn.Linear, nn.Conv2d, nn.Flatten, *_WITHOUT_EFFECT, *_FUNCTIONS))
        )
        raise ValueError(f"layer {name!r} is a {kind.__name__}, which cannot be exported; supported are: {known}")

    def _layer(self, module: Any, flow: Flow, name: str) -> str:
        fields = layer_fields(module, f"layer {name!r}")
        fields["pattern"] = self._patterns.get(module, "unstructured")
        quantizer = getattr(module, "quantizer", None)
        kind: type[Layer] = Linear
        if isinstance(module, nn.Conv2d):
            if module.padding_mode != "zeros":
                raise ValueError(
                    f"layer {name!r} has padding_mode={module.padding_mode!r}, which cannot be exported; supported is 'zeros'"
                )
            kind, fields = Convolve, {**fields, "geometry": convolution_of(module)}
        if quantizer is None or quantizer.input_bits is None:
            return self.add(kind, self.value(flow), **fields)
        layer = integer_layer(module, f"layer {name!r}")
        source = self._quantized(flow, layer.input_scale, layer.input_zero_point, quantizer.input_bits)
        return self.add(kind, source, input_scale=float(layer.input_scale), **fields)


def layer_fields(module: Any, name: str) -> dict[str, Any]:
    """
    Read the numbers of a layer.

    :param module: A linear layer or a convolution, sparse or stock.
    :param name: How errors name it.
    :return: Weight, bias and what belongs to them, as :class:`~sb3_sparse_runtime.operations.Layer` takes them. Zeros
        of a stock layer are pruned weights.
    :raises ValueError: If it has values that are not finite, or is to be quantized and has seen no data yet.
    """
    if isinstance(module, SparseLayer) and module.quantizer is not None:
        layer = integer_layer(module, name)
        values: dict[str, Any] = dict(weight=layer.weight, scales=layer.weight_scales, bits=layer.weight_bits)
    else:
        values = dict(weight=as_float32(module.weight, name))
    if isinstance(module, SparseLayer):
        values["mask"] = array_of(module.weight_mask)
    return {**values, "bias": None if module.bias is None else as_float32(module.bias, name)}


def as_float32(tensor: th.Tensor, name: str) -> np.ndarray:
    """
    Copy numbers out of torch.

    :param tensor: Numbers.
    :param name: Whose they are.
    :return: A copy, float32.
    :raises ValueError: If they are not finite.
    """
    array = array_of(tensor.float())
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are not finite: its training has diverged")
    return array
