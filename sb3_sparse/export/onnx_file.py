"""
ONNX: float32, or integers as quantize-dequantize pairs (QDQ), which ONNX Runtime turns into integer kernels where it has some.

Zeros are stored and multiplied: ONNX Runtime does not exploit them. Weights of up to 4 bits take 4, others 8.
Quantized layers round as the integers' definition says; the sums are the runtime's, so results agree to the last bits of a
float32 number, or, where such a number lies on the edge between two integers, to one step of a quantized value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_sparse_runtime.graph import OUTPUTS, Graph
from sb3_sparse_runtime.integer import activation_limit
from sb3_sparse_runtime.operations import (
    FORBIDDEN,
    Above,
    Activate,
    ArgMax,
    AsFloat,
    AverageQuantiles,
    Bound,
    Concatenate,
    Constant,
    Convolve,
    Divide,
    Exponential,
    Flatten,
    Layer,
    Linear,
    Normalize,
    OneHot,
    Operation,
    Quantize,
    Unscale,
)
from sb3_sparse_runtime.spaces import Space

#: Version of the operators: the first with quantization to 16 bits.
OPSET = 21
#: Version of the file format that goes with it.
IR_VERSION = 10
#: Name of the input with a choice's permissions, of policies that MaskablePPO trained.
MASKS = "action_masks"


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f"ONNX needs the package onnx ({error}): pip install 'sb3-sparse[export]'") from error
    return onnx


def require_onnx() -> None:
    """
    Say that a package is missing before any work.

    :raises ImportError: If it is, saying what to install.
    """
    _onnx()


class _Writer:
    def __init__(self, graph: Graph) -> None:
        self.onnx = _onnx()
        self.graph = graph
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.by_output = {operation.output: operation for operation in graph.operations}
        #: ONNX's name of each value.
        self.names: dict[str, str] = {name: name for name in graph.inputs}
        self._taken = {*graph.inputs, *graph.outputs, MASKS}

    def name(self, wanted: str) -> str:
        """Make a name that is not taken."""
        found, number = wanted, 0
        while found in self._taken:
            number += 1
            found = f"{wanted}_{number}"
        self._taken.add(found)
        return found

    def tensor(self, wanted: str, values: Any) -> str:
        """Add numbers that are known."""
        name = self.name(wanted)
        self.initializers.append(self.onnx.numpy_helper.from_array(np.array(values, order="C"), name))
        return name

    def node(self, kind: str, *inputs: str, to: str | None = None, **attributes: Any) -> str:
        """Add an operator; ``to`` is the name of what it gives."""
        output = to or self.name(kind.lower())
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def cast(self, value: str, dtype: Any) -> str:
        """Convert a value."""
        output = self.name("cast")
        target = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.nodes.append(self.onnx.helper.make_node("Cast", [value], [output], to=target))
        return output

    # --- Operations ---

    def write(self, operation: Operation) -> None:
        """Add what computes an operation."""
        x = self.names[operation.inputs[0]]
        if isinstance(operation, (Bound, Unscale, ArgMax, Above)):
            self.names[operation.output] = self._action(operation, x)
        elif isinstance(operation, Layer):
            self.names[operation.output] = self._layer(operation, x)
        elif isinstance(operation, Quantize):
            self.names[operation.output] = self._quantize(operation, x)
        elif isinstance(operation, Activate):
            self.names[operation.output] = self._activate(operation, x)
        else:
            self.names[operation.output] = self._other(operation, x)

    def _other(self, operation: Operation, x: str) -> str:
        match operation:
            case AsFloat():
                space = self.graph.inputs[operation.inputs[0]]
                return x if input_dtype(space) == np.float32 else self.cast(x, np.float32)
            case Normalize(mean=mean, deviation=deviation, limit=limit):
                shifted = self.node("Sub", self.cast(x, np.float64), self.tensor("mean", mean))
                scaled = self.node("Div", shifted, self.tensor("deviation", deviation))
                low, high = self.tensor("low", np.float64(-limit)), self.tensor("high", np.float64(limit))
                return self.cast(self.node("Clip", scaled, low, high), np.float32)
            case Divide(divisor=divisor):
                return self.node("Div", x, self.tensor("divisor", np.float32(divisor)))
            case OneHot(sizes=sizes):
                return self._one_hot(x, sizes, self.graph.inputs[operation.inputs[0]])
            case Flatten():
                return self.node("Flatten", x, axis=1)
            case Concatenate(inputs=inputs):
                return self.node("Concat", *(self.names[name] for name in inputs), axis=1)
            case AverageQuantiles(n_quantiles=n_quantiles):
                shape = self.tensor("shape", np.array([-1, n_quantiles, self.graph.values[operation.output].size]))
                rows = self.node("Reshape", x, shape)
                return self.node("ReduceMean", rows, self.tensor("axes", np.array([1])), keepdims=0)
            case Exponential(low=low, high=high):
                ends = self.tensor("low", np.float32(low)), self.tensor("high", np.float32(high))
                return self.node("Exp", self.node("Clip", x, *ends))
            case Constant(values=values):
                zeros = self.node("Mul", x, self.tensor("zero", np.float32(0)))
                return self.node("Add", zeros, self.tensor("values", values))
        raise NotImplementedError(operation.name)

    def _one_hot(self, x: str, sizes: Sequence[int], space: Space) -> str:
        x = x if space.dtype == "int64" else self.cast(x, np.int64)
        values = self.tensor("off_on", np.array([0, 1], np.float32))
        if space.shape == ():
            return self.node("OneHot", x, self.tensor("depth", np.array(sizes[0])), values)
        parts = []
        for index, size in enumerate(sizes):
            column = self.node("Gather", x, self.tensor("index", np.array(index)), axis=1)
            parts.append(self.node("OneHot", column, self.tensor("depth", np.array(size)), values))
        return self.node("Concat", *parts, axis=1)

    def _weight(self, layer: Layer, weight: NDArray, axis: int) -> str:
        if not layer.is_quantized:
            return self.tensor("weight", weight)
        assert layer.scales is not None
        if layer.bits <= 4:
            # Two in a byte: of fewer bits ONNX Runtime knows none
            weight = weight.astype(self.onnx.helper.tensor_dtype_to_np_dtype(self.onnx.TensorProto.INT4))
        return self.node("DequantizeLinear", self.tensor("weight", weight), self.tensor("scales", layer.scales), axis=axis)

    def _layer(self, layer: Layer, x: str) -> str:
        bias = None if layer.bias is None or layer.is_quantized else self.tensor("bias", layer.bias)
        if isinstance(layer, Linear):
            if layer.is_quantized:
                return self._plus(layer, self.node("MatMul", x, self._weight(layer, layer.weight.T, 1)), 1)
            return self.node("Gemm", x, self._weight(layer, layer.weight, 0), *([bias] if bias else []), transB=1)
        assert isinstance(layer, Convolve)
        (top, bottom), (left, right) = layer.geometry.padding
        product = self.node(
            "Conv",
            x,
            self._weight(layer, layer.weight, 0),
            *([bias] if bias else []),
            strides=list(layer.geometry.stride),
            pads=[top, left, bottom, right],
            dilations=list(layer.geometry.dilation),
            group=layer.geometry.groups,
        )
        return self._plus(layer, product, 3) if layer.is_quantized else product

    def _plus(self, layer: Layer, product: str, ndim: int) -> str:
        """Add a quantized layer's bias. ONNX Runtime rounds one that is added to products of integers, not one subtracted."""
        if layer.bias is None:
            return product
        return self.node("Sub", product, self.tensor("minus_bias", -layer.bias.reshape(-1, *(1,) * (ndim - 1))))

    def _quantize(self, operation: Quantize, x: str) -> str:
        if operation.function:
            x = self._function(operation.function, operation.parameters, x)
        if operation.bits < 8:
            low, high = -operation.zero_point, activation_limit(operation.bits) - operation.zero_point
            ends = (np.float32(end) * np.float32(operation.scale) for end in (low, high))
            x = self.node("Clip", x, *(self.tensor("end", end) for end in ends))
        scale = self.tensor("scale", np.float32(operation.scale))
        dtype = np.uint16 if operation.bits == 16 else np.uint8
        zero_point = self.tensor("zero_point", np.array(operation.zero_point, dtype))
        return self.node("DequantizeLinear", self.node("QuantizeLinear", x, scale, zero_point), scale, zero_point)

    def _activate(self, operation: Activate, x: str) -> str:
        return self._function(operation.function, operation.parameters, x)

    def _function(self, function: str, parameters: Sequence[float], x: str) -> str:
        if function == "clip":
            return self.node("Clip", x, *(self.tensor("end", np.float32(end)) for end in parameters))
        kinds = {"relu": "Relu", "leaky_relu": "LeakyRelu", "elu": "Elu", "tanh": "Tanh", "sigmoid": "Sigmoid"}
        attributes: dict[str, Any] = {"alpha": parameters[0]} if parameters else {}
        return self.node(kinds[function], x, **attributes)

    def _action(self, operation: Operation, x: str) -> str:
        match operation:
            case Bound(low=low, high=high):
                return self.node("Min", self.node("Max", x, self.tensor("low", low)), self.tensor("high", high))
            case Unscale(low=low, high=high):
                half = self.node(
                    "Mul", self.node("Add", x, self.tensor("one", np.float32(1))), self.tensor("half", np.float32(0.5))
                )
                return self.node("Add", self.node("Mul", half, self.tensor("range", high - low)), self.tensor("low", low))
            case Above(threshold=threshold):
                return self.cast(self.node("Greater", x, self.tensor("threshold", np.float32(threshold))), np.float32)
            case ArgMax(sizes=sizes, maskable=maskable):
                if maskable:
                    x = self.node("Where", MASKS, x, self.tensor("forbidden", FORBIDDEN))
                if len(sizes) == 1:
                    return self.node("ArgMax", x, axis=1, keepdims=1)
                starts = np.cumsum((0, *sizes))
                axes = self.tensor("axes", np.array([1]))
                parts = []
                for first, last in pairwise(starts):
                    ends = (self.tensor("end", np.array([end])) for end in (first, last))
                    parts.append(self.node("ArgMax", self.node("Slice", x, *ends, axes), axis=1, keepdims=1))
                return self.node("Concat", *parts, axis=1)
        raise NotImplementedError(operation.name)


def input_dtype(space: Space) -> np.dtype:
    """
    Say which dtype an ONNX input has.

    :param space: An observation space.
    :return: Float32 for floating-point numbers of any width, otherwise the space's own.
    """
    dtype = np.dtype(space.dtype)
    return np.dtype(np.float32) if np.issubdtype(dtype, np.floating) else dtype


def to_onnx(graph: Graph, about: str, provenance: Mapping[str, Any]) -> bytes:
    """
    Make an ONNX model of a decision, checked by ``onnx.checker``.

    Its inputs are the observation, or one for each key, ``[batch, ...]``, and for policies of MaskablePPO ``action_masks``,
    bool ``[batch, choices]``. Its outputs are ``action``, and ``mean`` and ``std`` if the graph has them.

    :param graph: A decision.
    :param about: One line about the policy.
    :param provenance: Where it comes from, JSON values.
    :return: The file.
    :raises ImportError: Without the package onnx.
    """
    writer = _Writer(graph)
    onnx, helper = writer.onnx, writer.onnx.helper
    for operation in graph.operations:
        writer.write(operation)

    def declare(name: str, dtype: Any, shape: Sequence[int]) -> Any:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), ["batch", *shape])

    inputs = [declare(name, input_dtype(space), space.shape) for name, space in graph.inputs.items()]
    if graph.chooser is not None:
        inputs.append(declare(MASKS, np.bool_, (sum(graph.chooser.sizes),)))
    outputs = []
    for output in (output for output in OUTPUTS if output in graph.outputs):
        shape = writer.tensor("shape", np.array([-1, *graph.action.shape]))
        writer.node("Reshape", writer.names[graph.outputs[output]], shape, to=output)
        is_choice = output == "action" and graph.chooses
        outputs.append(declare(output, np.int64 if is_choice else np.float32, graph.action.shape))
    made = helper.make_graph(writer.nodes, "policy", inputs, outputs, writer.initializers, about)
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="sb3_sparse"
    )
    helper.set_model_props(model, {"provenance": json.dumps(dict(provenance))})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


class OnnxPolicy:
    """
    An ONNX model in ONNX Runtime, with ``predict`` as everything else has it. One thread computes.

    :param data: The file.
    :param graph: The decision that it was made of.
    :raises ImportError: Without the package onnxruntime.
    """

    def __init__(self, data: bytes, graph: Graph) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(f"running ONNX needs onnxruntime ({error}): pip install 'sb3-sparse[export]'") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self.graph = graph

    def __call__(self, observations: Mapping[str, NDArray], action_masks: NDArray | None = None) -> NDArray:
        """
        Decide for a batch.

        :param observations: Arrays ``[n, *shape]`` by the names of the graph's inputs.
        :param action_masks: Bool, False where a choice is forbidden; None where all are allowed.
        :return: Actions ``[n, numbers]``.
        """
        given = self.inputs(observations, action_masks)
        return self.session.run(["action"], given)[0].reshape(len(next(iter(given.values()))), -1)

    def inputs(self, observations: Mapping[str, NDArray], action_masks: NDArray | None = None) -> dict[str, NDArray]:
        """
        Arrange what the session takes.

        :param observations: Arrays ``[n, *shape]`` by the names of the graph's inputs.
        :param action_masks: Bool, False where a choice is forbidden; None where all are allowed.
        :return: Arrays by the names of the model's inputs.
        """
        given = {name: observations[name].astype(input_dtype(space)) for name, space in self.graph.inputs.items()}
        if self.graph.chooser is not None:
            shape = (len(next(iter(given.values()))), sum(self.graph.chooser.sizes))
            given[MASKS] = np.ones(shape, bool) if action_masks is None else action_masks.reshape(shape).astype(bool)
        return given
