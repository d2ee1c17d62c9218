"""A graph as the body of a C function."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_sparse.export.c.kernels import Kernels
from sb3_sparse.export.c.layers import LayerWriter, either
from sb3_sparse.export.c.tables import Tables, literal
from sb3_sparse.export.c.workspace import Lifetime, lifetimes, place, shared
from sb3_sparse_runtime.graph import Graph
from sb3_sparse_runtime.layouts import WINDOW
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
    Linear,
    Normalize,
    OneHot,
    Operation,
    Quantize,
    Unscale,
)

#: Layouts: the fastest on a PC, the smallest, and for comparisons the same two with zeros stored and multiplied.
LAYOUTS = ("fast", "small", "dense", "small-dense")


@dataclass(frozen=True)
class Program:
    """
    The body of a function, and what it needs around it.

    :param body: Statements of the function.
    :param tables: Constant tables.
    :param kernels: Functions that are called.
    :param n_floats: Float32 numbers of the workspace.
    :param n_integers: Its integers.
    :param n_sums: Further integers of 32 bits.
    :param integer_type: Their type.
    :param table_bytes: Bytes of the tables (those for AVX-512 alone not counted).
    :param uses_avx512: Whether there are tables for AVX-512.
    """

    body: tuple[str, ...]
    tables: Tables
    kernels: Kernels
    n_floats: int
    n_integers: int
    n_sums: int
    integer_type: str
    table_bytes: int
    uses_avx512: bool

    @property
    def workspace_bytes(self) -> int:
        """Bytes of the workspace."""
        return 4 * (self.n_floats + self.n_sums) + (4 if self.integer_type == "int32_t" else 2) * self.n_integers


class Compiler:
    """
    Turns a graph into statements.

    :param graph: A decision.
    :param layout: One of :data:`LAYOUTS`.
    """

    def __init__(self, graph: Graph, layout: str) -> None:
        self.graph, self.layout = graph, layout
        self.small = layout.startswith("small")
        self.kernels, self.tables = Kernels(), Tables(aligned=not self.small)
        self.body: list[str] = []
        self.by_output = {operation.output: operation for operation in graph.operations}
        wide = not self.small or any(isinstance(one, Quantize) and one.bits == 16 for one in graph.operations)
        self.integer_type = "int32_t" if wide else "int16_t"
        self.raw: dict[str, int] = {}
        self.n_raw = 0
        for name in graph.inputs:
            self.raw[name] = self.n_raw
            self.n_raw += graph.values[name].size
        self._merged = self._find_merged()
        self._fused = self._find_fused()
        self._place()
        self.layers = LayerWriter(graph, self.tables, self.kernels, layout, self.integer_type)

    # --- What is done in one step ---

    def _find_merged(self) -> dict[str, list[Operation]]:
        """Chains from an observation to integers that need no floats in between, by the name of the integers."""
        readers = Counter(name for operation in self.graph.operations for name in operation.inputs)
        found: dict[str, list[Operation]] = {}
        for operation in self.graph.operations:
            if not isinstance(operation, Quantize) or operation.steps is not None:
                continue
            chain: list[Operation] = [operation]
            while (before := self.by_output.get(chain[0].inputs[0])) is not None and readers[before.output] == 1:
                chain.insert(0, before)
            names = [type(one) for one in chain if not isinstance(one, Flatten)]
            space = self.graph.inputs.get(chain[0].inputs[0])
            if space is None:
                continue
            of_bytes = space.kind == "box" and space.dtype == "uint8"
            if (names in ([AsFloat, Quantize], [AsFloat, Divide, Quantize]) and of_bytes) or (
                names == [Normalize, Quantize] and self.small
            ):
                found[operation.output] = chain
        return found

    def _find_fused(self) -> dict[str, Quantize]:
        """Integer layers that quantize what ReLU leaves at once, by name of what they give."""
        found: dict[str, Quantize] = {}
        readers = Counter(name for operation in self.graph.operations for name in operation.inputs)
        for operation in self.graph.operations:
            before = self.by_output.get(operation.inputs[0])
            is_relu = isinstance(operation, Quantize) and operation.function == "relu" and operation.steps is None
            if self.small and is_relu and isinstance(before, Linear) and before.is_integer and readers[before.output] == 1:
                assert isinstance(operation, Quantize)
                found[before.output] = operation
        return found

    def _place(self) -> None:
        graph = self.graph
        #: Room for the sums of one plane of a convolution of integers.
        self.n_sums = 0
        skipped = {one.output for chain in self._merged.values() for one in chain[:-1]} | set(self._fused)
        fixed = set(graph.inputs)
        if self.small:
            # Read where the caller has them
            fixed |= {one.output for one in graph.operations if isinstance(one, AsFloat)}
        self.roots = shared(graph, fixed)
        found = lifetimes(graph, self.roots, 1 if self.small else WINDOW)
        for name, quantize in self._fused.items():
            # They are there while the layer still reads
            found[quantize.output].begin = found[name].begin
        floats: dict[str, Lifetime] = {}
        integers: dict[str, Lifetime] = {}
        for name, lifetime in found.items():
            kind = graph.values[name].kind
            if name in skipped or kind == "action" or (self.small and isinstance(self.by_output.get(name), AsFloat)):
                continue
            (integers if kind == "integer" else floats)[name] = lifetime
        for index, operation in enumerate(graph.operations):
            if isinstance(operation, Convolve):
                room = _padded_size(graph, operation)
                taken = integers if operation.is_integer else floats
                if room:
                    taken[f"{operation.output} padded"] = Lifetime(index, index, room)
                if operation.is_integer:
                    height, width = graph.values[operation.output].shape[1:]
                    self.n_sums = max(self.n_sums, height * width)
        if not self.small:
            # One more for the row that does not exist
            for lifetime in floats.values():
                lifetime.size += WINDOW if lifetime.size % WINDOW == 0 else 0
        self.floats, self.n_floats = place(floats)
        self.integers, self.n_integers = place(integers)
        self.skipped = skipped

    def where(self, name: str) -> str:
        """
        Say where a value lies.

        :param name: A value.
        :return: C for a pointer to it.
        """
        root = self.roots.get(name, name)
        if root in self.raw:
            return _offset("observation", self.raw[root])
        before = self.by_output.get(root)
        if self.small and isinstance(before, AsFloat):
            return _offset("observation", self.raw[before.inputs[0]])
        if root in self.integers:
            return _offset("q", self.integers[root])
        return _offset("f", self.floats[root])

    # --- Statements ---

    def line(self, text: str) -> None:
        """Add a statement."""
        self.body.append(text)

    def loop(self, size: int, statement: str) -> None:
        """Add a loop over ``i``."""
        self.line(f"for (i = 0; i < {size}; i++) {statement}")

    def compile(self) -> Program:
        """
        Write all operations down.

        :return: The function's body, and what it needs.
        """
        self._checks()
        for operation in self.graph.operations:
            if operation.output in {one.output for one in self._fused.values()}:
                continue  # its layer has done it
            if operation.output in self._merged:
                self._write_merged(self._merged[operation.output])
            elif operation.output not in self.skipped or operation.output in self._fused:
                self._write(operation)
        for output in ("mean", "std"):
            if output in self.graph.outputs:
                source = self.where(self.graph.outputs[output])
                self.loop(self.graph.action.size, f"{output}[i] = ({source})[i];")
        return Program(
            tuple(self.body),
            self.tables,
            self.kernels,
            self.n_floats,
            self.n_integers,
            self.n_sums,
            self.integer_type,
            self.tables.n_bytes,
            self.kernels.uses("avx512"),
        )

    def _checks(self) -> None:
        for name, space in self.graph.inputs.items():
            at = _offset("observation", self.raw[name])
            if space.kind == "box":
                # The difference of a finite number with itself is 0, of others NaN
                self.loop(space.size, f"if (!(({at})[i] - ({at})[i] == 0.0f)) return 1;")
            elif space.kind == "multi_binary":
                self.loop(space.size, f"if (({at})[i] != 0.0f && ({at})[i] != 1.0f) return 1;")
            else:
                sizes = self.tables.add(f"sizes_{name}", np.array(space.sizes, np.float32))
                valid = f"({at})[i] >= 0.0f && ({at})[i] < {sizes}[i] && (float)(int)({at})[i] == ({at})[i]"
                self.loop(space.size, f"if (!({valid})) return 1;")

    def _write_merged(self, chain: list[Operation]) -> None:
        quantize = chain[-1]
        assert isinstance(quantize, Quantize)
        name = chain[0].inputs[0]
        at, to, size = _offset("observation", self.raw[name]), self.where(quantize.output), self.graph.values[name].size
        if isinstance(chain[0], Normalize):
            self._quantize_normalized(chain[0], quantize, at, to)
            return
        pixels: NDArray[Any] = np.arange(256, dtype=np.uint8)[:, None]
        for operation in chain:
            pixels = operation.compute([pixels])
        self.loop(size, f"if (!(({at})[i] >= 0.0f && ({at})[i] < 256.0f)) return 1;")
        integer = f"(int)({at})[i]"
        if not np.array_equal(pixels.ravel(), np.arange(256)):
            # Of 16 bits they may reach beyond those of int16
            dtype = np.int16 if np.abs(pixels).max() < 2**15 else np.int32
            integer = f"{self.tables.add(f'pixels_{name}', pixels.ravel().astype(dtype))}[{integer}]"
        self.loop(size, f"({to})[i] = (sb3s_integer){integer};")

    def _quantize_normalized(self, normalize: Normalize, quantize: Quantize, at: str, to: str) -> None:
        found = fast_normalization(normalize, quantize)
        name = normalize.inputs[0]
        add = self.tables.add
        arrays = [
            add(f"mean_{name}", found.mean),
            add(f"factors_{name}", found.factors),
            literal(found.safe),
            literal(found.low),
            literal(found.high),
            add(f"exact_mean_{name}", normalize.mean),
            add(f"deviation_{name}", normalize.deviation),
            literal(quantize.scale),
        ]
        kernel = self.kernels.use("quantize_normalized")
        self.line(f"{kernel}({normalize.mean.size}, {', '.join(arrays)}, {at}, {to});")

    def _write(self, operation: Operation) -> None:
        value = self.graph.values[operation.output]
        size, source = value.size, operation.inputs[0]
        if isinstance(operation, (Bound, Unscale, ArgMax, Above)):
            self._action(operation, self.where(source))
            return
        then = self._fused.get(operation.output)
        x, y = self.where(source), self.where(operation.output if then is None else then.output)
        match operation:
            case Flatten():
                pass
            case Linear() | Convolve():
                where, array = (self.integers, "q") if operation.is_integer else (self.floats, "f")
                padded = where.get(f"{operation.output} padded")
                room = None if padded is None else _offset(array, padded)
                self.body += self.layers.write(operation, x, y, room, then)
            case Activate():
                self._activate(operation, x, y, size)
            case Quantize():
                self._quantize(operation, x, y, size)
            case AverageQuantiles(n_quantiles=n_quantiles):
                self.line(f"{self.kernels.use('average_quantiles')}({n_quantiles}, {size}, {x}, {y});")
            case Exponential(low=low, high=high):
                self.loop(size, f"({y})[i] = ({x})[i];")
                self.line(f"{self.kernels.use('exp_all')}({size}, {literal(low)}, {literal(high)}, {y});")
            case Constant(values=values):
                self.loop(size, f"({y})[i] = {self.tables.add(f'constant_{operation.output}', values)}[i];")
            case _:
                self._features(operation, x, y, size)

    def _features(self, operation: Operation, x: str, y: str, size: int) -> None:
        match operation:
            case AsFloat():
                if not self.small:
                    self.loop(size, f"({y})[i] = ({x})[i];")
            case Normalize():
                self._normalize(operation, x, y)
            case Divide(divisor=divisor):
                self.loop(size, f"({y})[i] = ({x})[i] / {literal(divisor)};")
            case OneHot(sizes=sizes):
                self.loop(size, f"({y})[i] = 0.0f;")
                starts = self.tables.add(f"starts_{operation.output}", np.cumsum((0, *sizes[:-1])).astype(np.int32))
                self.loop(len(sizes), f"({y})[{starts}[i] + (int)({x})[i]] = 1.0f;")
            case Concatenate(inputs=inputs):
                offset = 0
                for name in inputs:
                    n = self.graph.values[name].size
                    self.loop(n, f"({y})[{offset} + i] = ({self.where(name)})[i];")
                    offset += n
            case _:
                raise NotImplementedError(operation.name)

    def _normalize(self, operation: Normalize, x: str, y: str) -> None:
        name, size = operation.inputs[0], operation.mean.size
        add, limit = self.tables.add, float(operation.limit)
        if not self.small:
            mean, deviation = add(f"mean_{name}", operation.mean), add(f"deviation_{name}", operation.deviation)
            kernel = self.kernels.use("normalize_f64")
            # Observations are float32 here, and few
            self.line(f"{{ double d[{size}]; for (i = 0; i < {size}; i++) d[i] = ({x})[i];")
            self.line(f"{kernel}({size}, {mean}, {deviation}, {limit!r}, d, {y}); }}")
            return
        mean32 = operation.mean.astype(np.float32)
        rest = (operation.mean - mean32).astype(np.float32)
        factors = (1 / operation.deviation).astype(np.float32)
        tables = [add(f"mean_{name}", mean32), add(f"rest_{name}", rest), add(f"factors_{name}", factors)]
        self.line(f"{self.kernels.use('normalize_f32')}({size}, {', '.join(tables)}, {literal(limit)}, {x}, {y});")

    def _activate(self, operation: Activate, x: str, y: str, size: int) -> None:
        if x != y:
            self.loop(size, f"({y})[i] = ({x})[i];")
        parameters = "".join(f"{literal(parameter)}, " for parameter in operation.parameters)
        arguments = f"({size}, {parameters}{y});"
        wide = None
        if not self.small and operation.function in ("relu", "tanh"):
            wide = self.kernels.use(f"{operation.function}_all_avx512") + arguments
        self.body += either(wide, self.kernels.use(f"{operation.function}_all") + arguments)

    def _quantize(self, operation: Quantize, x: str, y: str, size: int) -> None:
        low, high = operation.limits
        if operation.steps is not None:
            steps = self.tables.add(f"steps_{operation.output}", operation.steps)
            kernel = self.kernels.use("staircase_all")
            self.line(f"{kernel}({size}, {len(operation.steps)}, {steps}, {operation.lowest}, {x}, {y});")
        else:
            arguments = f"({size}, {literal(operation.scale)}, {literal(low)}, {literal(high)}, {x}, {y});"
            wide = None if self.small else self.kernels.use("quantize_all_avx512") + arguments
            self.body += either(wide, self.kernels.use("quantize_all") + arguments)

    def _action(self, operation: Operation, x: str) -> None:
        size = self.graph.action.size
        add = self.tables.add
        match operation:
            case Bound(low=low, high=high):
                first, second = add("action_low", low), add("action_high", high)
                self.loop(size, f"action[i] = ({x})[i] > {first}[i] ? ({x})[i] : {first}[i];")
                self.loop(size, f"action[i] = action[i] < {second}[i] ? action[i] : {second}[i];")
            case Unscale(low=low, high=high):
                first, second = add("action_low", low), add("action_range", high - low)
                self.loop(size, f"action[i] = {first}[i] + (0.5f * (({x})[i] + 1.0f)) * {second}[i];")
            case Above(threshold=threshold):
                self.loop(size, f"action[i] = ({x})[i] > {literal(threshold)} ? 1.0f : 0.0f;")
            case ArgMax(sizes=sizes, maskable=maskable):
                kernel, start = self.kernels.use("arg_max"), 0
                for index, group in enumerate(sizes):
                    allowed = f"allowed ? allowed + {start} : 0" if maskable else "0"
                    self.line(f"action[{index}] = (float){kernel}({group}, {x} + {start}, {allowed});")
                    start += group


@dataclass(frozen=True)
class FastNormalization:
    """
    What ``quantize_normalized`` in ``kernels.h`` needs.

    :param mean: Float32.
    :param factors: One over deviation and scale, float32.
    :param safe: How far a float32 result may be from an integer to round to the right one.
    :param low: Least integer.
    :param high: Greatest integer.
    """

    mean: NDArray[np.float32]
    factors: NDArray[np.float32]
    safe: float
    low: int
    high: int


def fast_normalization(normalize: Normalize, quantize: Quantize) -> FastNormalization:
    """
    The float32 result is off the exact one by what rounding the mean does, times the factor, and by five roundings of a number
    that is at most one more than the greatest integer.

    :param normalize: Normalisation.
    :param quantize: The quantization behind it.
    :return: Numbers for both in one step.
    """
    scale = np.float32(quantize.scale)
    mean = normalize.mean.astype(np.float32).ravel()
    factors = (1 / (normalize.deviation.ravel() * float(scale))).astype(np.float32)
    ends = quantize.compute([np.array([-normalize.limit, normalize.limit], np.float32)])
    low, high = int(ends[0]), int(ends[1])
    largest = max(abs(low), abs(high)) + 1
    moved = float((np.abs(normalize.mean.ravel() - mean.astype(np.float64)) * np.abs(factors.astype(np.float64))).max())
    margin = 1.01 * moved + 5.1 * largest * 2.0**-24 + 1e-6
    return FastNormalization(mean, factors, max(0.5 - margin, -1.0) if math.isfinite(margin) else -1.0, low, high)


def _padded_size(graph: Graph, layer: Convolve) -> int:
    (top, bottom), (left, right) = layer.geometry.padding
    channels, height, width = graph.values[layer.inputs[0]].shape
    if not (top or bottom or left or right):
        return 0
    return channels * (height + top + bottom) * (width + left + right)


def _offset(name: str, offset: int) -> str:
    return f"{name} + {offset}" if offset else name
