"""Layers in C: which kernel, and the tables it reads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sb3_sparse.export.c.kernels import Kernels
from sb3_sparse.export.c.tables import Tables, literal
from sb3_sparse_runtime.compiled import float_weight, taps
from sb3_sparse_runtime.graph import Graph
from sb3_sparse_runtime.layouts import PANEL, Groups, Panels, cheapest, padded, panels_are_cheaper, tiles
from sb3_sparse_runtime.operations import Convolve, Layer, Linear, Quantize

_AVX512 = "SB3S_AVX512"
_ESCAPE = 255


def nibbles(rows: list[NDArray]) -> NDArray[np.uint8]:
    """
    Pack integers of four bits.

    :param rows: Integers from -8 to 7 of each row.
    :return: Two in a byte, each plus 8, the first in the lower half; a row begins with a new byte.
    """
    found = []
    for row in rows:
        shifted = np.append(row.astype(np.int16) + 8, [8] * (len(row) % 2)).astype(np.uint8)
        found.append(shifted[::2] | shifted[1::2] << 4)
    return np.concatenate(found) if found else np.zeros(0, np.uint8)


def gaps_of(columns: list[NDArray]) -> NDArray[np.uint8]:
    """
    Write columns as gaps between them.

    :param columns: Columns of each row, rising.
    :return: As the sections of ``kernels.h`` that are called gaps read them.
    """
    found: list[int] = []
    for row in columns:
        for gap in np.diff(row, prepend=0):
            found += [_ESCAPE] * (int(gap) // _ESCAPE) + [int(gap) % _ESCAPE]
    return np.array(found, np.uint8)


def either(avx512: str | None, portable: str) -> list[str]:
    """
    Choose between two calls when the program runs.

    :param avx512: A call for processors with AVX-512, None for none.
    :param portable: A call for all others.
    :return: Statements.
    """
    if avx512 is None:
        return [portable]
    return [f"#ifdef {_AVX512}", "if (fast)", f"    {avx512}", "else", "#endif", f"    {portable}"]


class LayerWriter:
    """
    Writes layers down as calls of kernels.

    :param graph: The decision.
    :param tables: Where tables go.
    :param kernels: Where kernels are named.
    :param layout: One of :data:`sb3_sparse.export.c.program.LAYOUTS`.
    :param integer_type: C's type of integer values.
    """

    def __init__(self, graph: Graph, tables: Tables, kernels: Kernels, layout: str, integer_type: str) -> None:
        self.graph, self.tables, self.kernels = graph, tables, kernels
        self.layout, self.integer_type = layout, integer_type
        self.small, self.dense = layout.startswith("small"), layout.endswith("dense")
        self.n_layers = 0

    def write(self, layer: Layer, x: str, y: str, room: str | None, then: Quantize | None = None) -> list[str]:
        """
        Write a layer down.

        :param layer: A layer.
        :param x: C for its input.
        :param y: C for its output.
        :param then: The quantization behind ReLU that small integer layers do at once, None for none.
        :param room: C for where a convolution's input goes with zeros around it, None if it needs none.
        :return: Statements.
        """
        self.n_layers += 1
        if isinstance(layer, Convolve):
            return self._convolve(layer, x, y, room)
        assert isinstance(layer, Linear)
        if self.small:
            return [self._small_integer(layer, x, y, then) if layer.is_integer else self._small_float(layer, x, y)]
        return self._fast_integer(layer, x, y) if layer.is_integer else self._fast_float(layer, x, y)

    def _add(self, role: str, values: NDArray, *, guard: str | None = None, kind: str | None = None) -> str:
        return self.tables.add(f"{role}_{self.n_layers}", values, guard=guard, kind=kind)

    def _bias(self, layer: Layer) -> NDArray[np.float32]:
        return np.zeros(len(layer.weight), np.float32) if layer.bias is None else layer.bias

    # --- Fast ---

    def _fast_float(self, layer: Linear, x: str, y: str) -> list[str]:
        weight = float_weight(layer)
        n_outputs, n_inputs = weight.shape
        bias = self._add("bias", padded(np.append(self._bias(layer), np.float32(0))))
        n_tiles = -(-n_outputs // PANEL)
        choices = []
        for avx512 in (True, False):
            choice = cheapest(weight, avx512=avx512)
            if self.dense and choice in ("panels", "groups"):
                choice = "tiles" if n_outputs > PANEL else "dots"
            choices.append("tiles" if choice == "groups" and max(weight.shape) >= 2**16 else choice)
        # What both need lies there once
        guards = [_AVX512 if choice == "panels" else None for choice in choices]
        names: dict[str, list[str]] = {}
        arrays: list[tuple[str, NDArray]]
        for choice, guard in zip(choices, guards, strict=True):
            if choice in names:
                continue
            if choice == "panels":
                panels = Panels.of(weight)
                arrays = [("steps", panels.steps), ("places", panels.places), ("panels", panels.weights)]
            elif choice == "groups":
                groups = Groups.of(weight)
                arrays = [
                    ("lengths", groups.lengths),
                    ("rows", groups.rows),
                    ("columns", groups.columns),
                    ("weights", groups.weights),
                ]
            else:
                arrays = [(choice, tiles(weight) if choice == "tiles" else weight)]
            if choice in ("tiles", "dots") and choices[1] != choice:
                guard = _AVX512
            names[choice] = [self._add(role, array, guard=guard) for role, array in arrays]
        calls = []
        for choice, suffix in zip(choices, ("_f32_avx512", "_f32"), strict=True):
            joined = ", ".join((*names[choice], bias, x, y))
            if choice == "panels":
                n_windows = Panels.of(weight).n_windows
                calls.append(f"{self.kernels.use('panels_f32')}({n_tiles}, {n_windows}, {joined});")
            elif choice == "groups":
                calls.append(f"{self.kernels.use('groups_f32')}({-(-n_outputs // 4)}, {joined});")
            else:
                n = n_tiles if choice == "tiles" else n_outputs
                calls.append(f"{self.kernels.use(choice + suffix)}({n}, {n_inputs}, {joined});")
        return either(calls[0], calls[1])

    def _fast_integer(self, layer: Linear, x: str, y: str) -> list[str]:
        weight = layer.weight
        n_outputs, n_inputs = weight.shape
        zero = np.float32(0)
        factors = ", ".join(
            (
                self._add("multipliers", padded(np.append(layer.multipliers, zero))),
                self._add("bias", padded(np.append(self._bias(layer), zero))),
            )
        )
        fits = max(map(abs, self.graph.values[layer.inputs[0]].limits)) < 2**15
        is_sparse = not self.dense and 2 * np.count_nonzero(weight) < weight.size
        avx512 = None
        if fits and panels_are_cheaper(weight, zeros=self.dense):
            panels = Panels.of(weight, zeros=self.dense)
            arrays = (("steps", panels.steps), ("places", panels.places), ("panels", panels.weights))
            names = ", ".join(self._add(role, array, guard=_AVX512) for role, array in arrays)
            n_panels = -(-n_outputs // PANEL)
            avx512 = f"{self.kernels.use('panels_i16')}({n_panels}, {panels.n_windows}, {names}, {factors}, {x}, {y});"
        if is_sparse and max(weight.shape) < 2**16:
            groups = Groups.of(weight)
            tables = (
                ("lengths", groups.lengths),
                ("rows", groups.rows),
                ("columns", groups.columns),
                ("weights", groups.weights),
            )
            joined = ", ".join(self._add(role, array) for role, array in tables)
            portable = f"{self.kernels.use('groups_i8')}({len(groups.lengths)}, {joined}, {factors}, {x}, {y});"
            if avx512 is not None or not fits:
                return either(avx512, portable)
        # Rows as they are, also for AVX-512 alone
        guard = _AVX512 if is_sparse and max(weight.shape) < 2**16 else None
        arguments = f"({n_outputs}, {n_inputs}, {self._add('dense', weight, guard=guard)}, {factors}, {x}, {y});"
        if guard is None:
            portable = self.kernels.use("dots_i8") + arguments
        if fits and avx512 is None:
            avx512 = self.kernels.use("dots_i8_avx512") + arguments
        return either(avx512, portable)

    # --- Small ---

    def _rows(self, matrix: NDArray) -> tuple[list[NDArray], list[NDArray]]:
        """Columns and weights of each row."""
        columns = [np.flatnonzero(row) for row in matrix]
        return columns, [row[column] for row, column in zip(matrix, columns, strict=True)]

    def _indices(self, columns: list[NDArray], n_inputs: int) -> tuple[str, str]:
        """How to call the kernel, and its tables of lengths and columns."""
        lengths = np.array([len(row) for row in columns])
        flat = np.concatenate(columns) if columns else np.zeros(0, int)
        if n_inputs <= 2**8 and lengths.max(initial=0) < 2**8:
            return "rows8", f"{self._add('lengths', lengths.astype(np.uint8))}, {self._add('columns', flat.astype(np.uint8))}"
        if n_inputs > 2**8:
            kind = "gaps8" if lengths.max(initial=0) < 2**8 else "gaps16"
            table = self._add("gaps", gaps_of(columns))
            return kind, f"{self._add('lengths', lengths.astype(np.uint8 if kind == 'gaps8' else np.uint16))}, {table}"
        return "rows16", f"{self._add('lengths', lengths.astype(np.uint16))}, {self._add('columns', flat.astype(np.uint16))}"

    def _small_float(self, layer: Linear, x: str, y: str) -> str:
        weight = float_weight(layer)
        n_outputs, n_inputs = weight.shape
        bias = self._add("bias", self._bias(layer))
        if self.dense or 5 * np.count_nonzero(weight) + n_outputs >= 4 * weight.size:
            return (
                f"{self.kernels.use('dense_f32')}({n_outputs}, {n_inputs}, {self._add('weights', weight)}, {bias}, {x}, {y});"
            )
        columns, values = self._rows(weight)
        kind, indices = self._indices(columns, n_inputs)
        weights = self._add("weights", np.concatenate(values))
        return f"{self.kernels.use(f'{kind}_f32')}({n_outputs}, {indices}, {weights}, {bias}, {x}, {y});"

    def _small_integer(self, layer: Linear, x: str, y: str, then: Quantize | None) -> str:
        call, suffix = f"{x}, {y}", ""
        if then is not None:
            call, suffix = f"{x}, {literal(then.scale)}, {literal(then.limits[1])}, {y}", "_relu"

        def kernel(name: str) -> str:
            return self.kernels.use(name + suffix)

        weight = layer.weight
        n_outputs, n_inputs = weight.shape
        n_active = np.count_nonzero(weight)
        factors = f"{self._add('multipliers', layer.multipliers)}, {self._add('bias', self._bias(layer))}, {call}"
        columns, values = self._rows(weight)
        few_bits = layer.bits <= 4
        dense_bytes = n_outputs * -(-n_inputs // 2) if few_bits else weight.size
        narrow = n_inputs <= 2**8
        if layer.bits == 2 and narrow and not self.dense and n_active + 2 * n_outputs < dense_bytes:
            plus, minus = ([np.flatnonzero(row == sign) for row in weight] for sign in (1, -1))
            lengths = np.array([[len(one), len(other)] for one, other in zip(plus, minus, strict=True)])
            both = np.concatenate([part for pair in zip(plus, minus, strict=True) for part in pair])
            kind = "rows8" if lengths.max() < 2**8 else "rows16"
            dtype = np.uint8 if kind == "rows8" else np.uint16
            tables = f"{self._add('lengths', lengths.astype(dtype))}, {self._add('columns', both.astype(dtype))}"
            return f"{kernel(f'{kind}_i2')}({n_outputs}, {tables}, {factors});"
        sparse_bytes = n_active * (1.5 if few_bits and narrow else 2) + n_outputs
        if self.dense or sparse_bytes >= dense_bytes:
            if few_bits:
                table = self._add("weights", nibbles(list(weight)), kind="unsigned char")
                return f"{kernel('dense_i4')}({n_outputs}, {n_inputs}, {table}, {factors});"
            return f"{kernel('dense_i8')}({n_outputs}, {n_inputs}, {self._add('weights', weight)}, {factors});"
        kind, indices = self._indices(columns, n_inputs)
        if few_bits and kind.startswith("rows"):
            table = self._add("weights", nibbles(values), kind="unsigned char")
            return f"{kernel(f'{kind}_i4')}({n_outputs}, {indices}, {table}, {factors});"
        table = self._add("weights", np.concatenate(values))
        return f"{kernel(f'{kind}_i8')}({n_outputs}, {indices}, {table}, {factors});"

    # --- Convolutions ---

    def _convolve(self, layer: Convolve, x: str, y: str, room: str | None) -> list[str]:
        (top, bottom), (left, right) = layer.geometry.padding
        channels, height, width = shape = self.graph.values[layer.inputs[0]].shape
        lines = []
        if room is not None:
            shape = (channels, height + top + bottom, width + left + right)
            n = channels * shape[1] * shape[2]
            lines.append(f"for (i = 0; i < {n}; i++) ({room})[i] = 0;")
            place = (
                f"(i / {width} / {height} * {shape[1]} + i / {width} % {height} + {top}) * {shape[2]} + i % {width} + {left}"
            )
            lines.append(f"for (i = 0; i < {channels * height * width}; i++) ({room})[{place}] = ({x})[i];")
            x = room
        counts, begin, weights = taps(layer, shape)
        if not layer.is_integer:
            weights = float_weight(layer)[layer.weight != 0]
        kernel = self.kernels.use("convolve_i8" if layer.is_integer else "convolve_f32")
        tables = [self._add("n_taps", counts), self._add("taps", begin), self._add("weights", weights)]
        if layer.is_integer:
            tables.append(self._add("multipliers", layer.multipliers))
        tables.append(self._add("bias", self._bias(layer)))
        n_outputs, out_height, out_width = self.graph.values[layer.output].shape
        down, across = layer.geometry.stride
        numbers = f"{n_outputs}, {out_height}, {out_width}, {shape[2]}, {down}, {across}"
        sums = ", sums" if layer.is_integer else ""
        lines.append(f"{kernel}({numbers}, {', '.join(tables)}, {x}{sums}, {y});")
        return lines
