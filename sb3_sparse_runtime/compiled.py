"""A graph as a list of instructions for the compiled runner (``csrc/compiled.c``), where that was built."""

from __future__ import annotations

import importlib
import math
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_sparse_runtime.graph import Graph
from sb3_sparse_runtime.layouts import PANEL, WINDOW, Groups, Panels, cheapest, padded, panels_are_cheaper, tiles
from sb3_sparse_runtime.operations import (
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
    Value,
)

#: Environment variable that says which runner to use: ``"compiled"``, ``"numpy"``, or ``"auto"``.
VARIABLE = "SB3_SPARSE_RUNNER"
#: Rows and columns that 16 bits can number.
_LARGEST_INDEX = 2**16 - 1
module: Any = None
_REASON = ""
try:
    module = importlib.import_module("sb3_sparse_runtime._compiled")
except ImportError as import_error:
    _REASON = str(import_error)

# The order of `enum Code` in csrc/compiled.c
_NAMES = (
    "as_float normalize divide one_hot copy groups_f32 groups_i8 tiles_f32 dots_f32 dots_i8 panels_f32 panels_i16 "
    "tiles_f32_avx512 dots_f32_avx512 convolve_f32 convolve_i8 pad_floats pad_integers relu leaky_relu elu tanh sigmoid clip "
    "quantize staircase average_quantiles bound unscale arg_max above exponential constant "
    "dots_i8_avx512 relu_avx512 tanh_avx512 quantize_avx512"
)
_CODES = {name: code for code, name in enumerate(_NAMES.split())}


def available() -> bool:
    """Whether the compiled runner is there and wanted."""
    wanted = os.environ.get(VARIABLE) or "auto"
    if wanted not in ("auto", "compiled", "numpy"):
        raise ValueError(f"{VARIABLE} must be 'auto', 'compiled' or 'numpy', got {wanted!r}")
    if wanted == "compiled" and module is None:
        raise ImportError(
            f"{VARIABLE}='compiled': the compiled runner is not there ({_REASON}); install a C compiler and reinstall "
            "sb3-sparse"
        )
    return wanted != "numpy" and module is not None


def taps(layer: Convolve, shape: tuple[int, ...]) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray]:
    """
    List the weights of a convolution by where in the input they begin.

    :param layer: A convolution.
    :param shape: Shape of its input, padding included.
    :return: How many taps each output has, where in the input they begin, and their weights.
    """
    geometry = layer.geometry
    output, channel, y, x = np.nonzero(layer.weight)
    per_group = layer.weight.shape[0] // geometry.groups
    channel = channel + output // per_group * layer.weight.shape[1]
    begin = (channel * shape[1] + y * geometry.dilation[0]) * shape[2] + x * geometry.dilation[1]
    counts = np.bincount(output, minlength=len(layer.weight))
    return counts.astype(np.uint32), begin.astype(np.uint32), layer.weight[output, layer.weight.nonzero()[1], y, x]


class _Assembler:
    """
    Collects instructions.

    :param graph: A decision.
    :param avx512: Whether kernels for AVX-512 may be used.
    """

    def __init__(self, graph: Graph, *, avx512: bool) -> None:
        self.graph, self.avx512 = graph, avx512
        self.instructions: list[tuple[int, tuple[NDArray, ...], tuple[int, ...], tuple[float, ...]]] = []
        self.n_floats = self.n_integers = 0
        self.place: dict[str, int] = {}
        self.readers = Counter(name for operation in graph.operations for name in operation.inputs)
        self.readers.update(graph.outputs.values())
        self.n_raw = 0
        for name in graph.inputs:
            self.place[name] = self.n_raw
            self.n_raw += graph.values[name].size

    def add(self, name: str, *integers: int, arrays: tuple[NDArray, ...] = (), numbers: tuple[float, ...] = ()) -> None:
        """Add an instruction."""
        arrays = tuple(np.ascontiguousarray(array) for array in arrays)
        self.instructions.append((_CODES[name], arrays, tuple(map(int, integers)), tuple(map(float, numbers))))

    def floats(self, size: int) -> int:
        """Room for so many float32 numbers, whole panels and windows."""
        start = self.n_floats
        self.n_floats += -(-(size + 1) // WINDOW) * WINDOW
        return start

    def integers(self, size: int) -> int:
        """Room for so many integers."""
        start = self.n_integers
        self.n_integers += -(-(size + 1) // WINDOW) * WINDOW
        return start

    def assemble(self) -> None:
        """Write everything down."""
        for operation in self.graph.operations:
            value = self.graph.values[operation.output]
            if isinstance(operation, Flatten):
                self.place[operation.output] = self.place[operation.inputs[0]]
            elif isinstance(operation, ArgMax):
                self.place[operation.output] = 0
                source = self.place[operation.inputs[0]]
                self.add("arg_max", source, 0, len(operation.sizes), arrays=(np.array(operation.sizes, np.int32),))
            elif isinstance(operation, Concatenate):
                self.place[operation.output] = place = self.floats(value.size)
                for name in operation.inputs:
                    self.add("copy", self.place[name], place, self.graph.values[name].size)
                    place += self.graph.values[name].size
            elif isinstance(operation, Activate):
                self._activate(operation, value)
            else:
                is_integer = value.kind == "integer"
                self.place[operation.output] = target = (self.integers if is_integer else self.floats)(value.size)
                self._write(operation, self.place[operation.inputs[0]], target, value)

    def _activate(self, operation: Activate, value: Value) -> None:
        name = operation.inputs[0]
        place = self.place[name]
        if self.readers[name] > 1:
            # Somebody else wants it as it was
            self.add("copy", place, place := self.floats(value.size), value.size)
        self.place[operation.output] = place
        name = operation.function
        name += "_avx512" * (self.avx512 and f"{name}_avx512" in _CODES)
        self.add(name, place, place, value.size, numbers=operation.parameters)

    def _write(self, operation: Operation, source: int, target: int, value: Value) -> None:
        size = value.size
        match operation:
            case AsFloat():
                self.add("as_float", source, target, size)
            case Normalize(mean=mean, deviation=deviation, limit=limit):
                self.add("normalize", source, target, size, arrays=(mean, deviation), numbers=(limit,))
            case Divide(divisor=divisor):
                self.add("divide", source, target, size, numbers=(divisor,))
            case OneHot(sizes=sizes):
                starts = np.cumsum((0, *sizes[:-1])).astype(np.int32)
                self.add("one_hot", source, target, len(sizes), size, arrays=(starts,))
            case Linear():
                self._linear(operation, source, target)
            case Convolve():
                self._convolve(operation, source, target, value)
            case Quantize():
                self._quantize(operation, source, target, size)
            case AverageQuantiles(n_quantiles=n_quantiles):
                self.add("average_quantiles", source, target, n_quantiles, size)
            case Bound(low=low, high=high):
                self.add("bound", source, target, size, arrays=(low, high))
            case Unscale(low=low, high=high):
                self.add("unscale", source, target, size, arrays=(low, high))
            case Above(threshold=threshold):
                self.add("above", source, target, size, numbers=(threshold,))
            case Exponential(low=low, high=high):
                self.add("exponential", source, target, size, numbers=(low, high))
            case Constant(values=values):
                self.add("constant", source, target, size, arrays=(values,))
            case _:
                raise NotImplementedError(operation.name)

    def _quantize(self, operation: Quantize, source: int, target: int, size: int) -> None:
        if operation.steps is not None:
            self.add("staircase", source, target, size, len(operation.steps), operation.lowest, arrays=(operation.steps,))
        else:
            name = "quantize_avx512" if self.avx512 else "quantize"
            self.add(name, source, target, size, numbers=(float(np.float32(operation.scale)), *operation.limits))

    def _linear(self, layer: Linear, source: int, target: int) -> None:
        n_outputs, n_inputs = layer.weight.shape
        bias = np.zeros(n_outputs, np.float32) if layer.bias is None else layer.bias
        bias = padded(np.append(bias, np.float32(0)))
        if layer.is_integer:
            self._integer_linear(layer, bias, source, target)
            return
        weight = float_weight(layer)
        name = cheapest(weight, avx512=self.avx512)
        n_tiles = -(-n_outputs // PANEL)
        suffix = "_f32_avx512" if self.avx512 else "_f32"
        if name == "panels":
            panels = Panels.of(weight)
            self.add(
                "panels_f32",
                source,
                target,
                n_tiles,
                panels.n_windows,
                arrays=(panels.steps, panels.places, panels.weights, bias),
            )
        elif name == "groups" and max(weight.shape) <= _LARGEST_INDEX:
            groups = Groups.of(weight)
            arrays = (groups.lengths, groups.rows, groups.columns, groups.weights, bias)
            self.add("groups_f32", source, target, len(groups.lengths), arrays=arrays)
        elif name == "dots":
            self.add("dots" + suffix, source, target, n_outputs, n_inputs, arrays=(weight, bias))
        else:
            self.add("tiles" + suffix, source, target, n_tiles, n_inputs, arrays=(tiles(weight), bias))

    def _integer_linear(self, layer: Linear, bias: NDArray, source: int, target: int) -> None:
        n_outputs, n_inputs = layer.weight.shape
        multipliers = padded(np.append(layer.multipliers, np.float32(0)))
        fits = self.avx512 and max(map(abs, self.graph.values[layer.inputs[0]].limits)) < 2**15
        is_sparse = 2 * np.count_nonzero(layer.weight) < layer.weight.size
        if fits and panels_are_cheaper(layer.weight):
            panels = Panels.of(layer.weight)
            arrays: tuple[NDArray, ...] = (panels.steps, panels.places, panels.weights, multipliers, bias)
            self.add("panels_i16", source, target, -(-n_outputs // PANEL), panels.n_windows, arrays=arrays)
        elif is_sparse and not fits and max(layer.weight.shape) <= _LARGEST_INDEX:
            groups = Groups.of(layer.weight)
            arrays = (groups.lengths, groups.rows, groups.columns, groups.weights, multipliers, bias)
            self.add("groups_i8", source, target, len(groups.lengths), arrays=arrays)
        else:
            name = "dots_i8_avx512" if fits else "dots_i8"
            self.add(name, source, target, n_outputs, n_inputs, arrays=(layer.weight, multipliers, bias))

    def _convolve(self, layer: Convolve, source: int, target: int, value: Value) -> None:
        (top, bottom), (left, right) = layer.geometry.padding
        channels, height, width = shape = self.graph.values[layer.inputs[0]].shape
        is_integer = layer.is_integer
        if top or bottom or left or right:
            shape = (channels, height + top + bottom, width + left + right)
            room = (self.integers if is_integer else self.floats)(math.prod(shape))
            name = "pad_integers" if is_integer else "pad_floats"
            self.add(name, source, room, channels, height, width, top, left, shape[1], shape[2])
            source = room
        counts, begin, weights = taps(layer, shape)
        bias = np.zeros(len(layer.weight), np.float32) if layer.bias is None else layer.bias
        down, across = layer.geometry.stride
        integers = (source, target, *value.shape, shape[2], down, across)
        if is_integer:
            sums = self.integers(value.shape[1] * value.shape[2])
            self.add("convolve_i8", *integers, sums, arrays=(counts, begin, weights, layer.multipliers, bias))
        else:
            weights = float_weight(layer)[layer.weight != 0]
            self.add("convolve_f32", *integers, arrays=(counts, begin, weights, bias))


def float_weight(layer: Layer) -> NDArray[np.float32]:
    """
    Give the float32 weight behind a layer with float32 inputs.

    :param layer: A layer with float32 inputs.
    :return: Its weight in float32, shape of the weight.
    """
    if not layer.is_quantized:
        return layer.weight.astype(np.float32, copy=False)
    assert layer.scales is not None
    return layer.weight.astype(np.float32) * layer.scales.reshape(-1, *(1,) * (layer.weight.ndim - 1))


class CompiledRunner:
    """
    Runs a graph's action. Values live in memory of its own, so one runner serves one thread at a time.

    :param graph: A decision.
    :param avx512: Whether to use the kernels for AVX-512; None: if the processor has it.
    """

    def __init__(self, graph: Graph, *, avx512: bool | None = None) -> None:
        assembler = _Assembler(graph, avx512=module.has_avx512() if avx512 is None else avx512)
        assembler.assemble()
        name = graph.outputs["action"]
        last = next(operation for operation in graph.operations if operation.output == name)
        self.is_discrete = isinstance(last, ArgMax)
        self.n_out = graph.values[name].size
        n_choices = sum(last.sizes) if isinstance(last, ArgMax) else 0
        sizes = (assembler.n_raw, assembler.n_floats, assembler.n_integers)
        program = module.Program(
            tuple(assembler.instructions), *sizes, self.n_out, self.is_discrete, assembler.place[name], n_choices
        )
        self._keys = tuple(graph.inputs)
        #: run(observations, results, allowed or None), see ``csrc/compiled.c``.
        self.run = program.run

    def __call__(self, observations: Mapping[str, NDArray], action_masks: NDArray | None = None) -> NDArray:
        """
        Decide for a batch.

        :param observations: As :meth:`~sb3_sparse_runtime.graph.Graph.evaluate` takes them.
        :param action_masks: The same.
        :return: Actions ``[n, numbers]``.
        """
        arrays = [observations[key] for key in self._keys]
        n_rows = len(arrays[0])
        if len(arrays) == 1 and arrays[0].dtype in (np.float32, np.float64, np.uint8):
            raw = np.ascontiguousarray(arrays[0])
        else:
            raw = np.concatenate([array.reshape(n_rows, -1).astype(np.float64) for array in arrays], axis=1)
        actions = np.empty((n_rows, self.n_out), np.int64 if self.is_discrete else np.float32)
        allowed = None if action_masks is None else np.ascontiguousarray(action_masks, np.uint8)
        self.run(raw, actions, allowed)
        return actions
