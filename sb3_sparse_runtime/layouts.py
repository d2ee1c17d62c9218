"""
How the weights of a layer lie in memory for the kernels in ``csrc/kernels.h``, and which of them is the fastest.

The numbers of :func:`cheapest` are cycles, measured on an Ice Lake server core; only their order matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Rows that are taken at a time.
GROUP, PANEL = 4, 16
#: Inputs that two registers hold.
WINDOW = 32


@dataclass(frozen=True)
class Groups:
    """
    Rows by falling length, four at a time; the shorter ones are filled up with zeros.

    :param lengths: Length of each group, uint16.
    :param rows: Which rows they are, uint16 ``[4 * groups]``; the number of rows for one too many.
    :param columns: Inputs, uint16 ``[4 * sum of lengths]``.
    :param weights: Weights, the same.
    """

    lengths: NDArray[np.uint16]
    rows: NDArray[np.uint16]
    columns: NDArray[np.uint16]
    weights: NDArray

    @classmethod
    def of(cls, matrix: NDArray) -> Groups:
        """
        Arrange a weight.

        :param matrix: Weights ``[out, in]``.
        :return: They, arranged.
        """
        n_rows = len(matrix)
        counts = (matrix != 0).sum(axis=1)
        order = np.argsort(-counts, kind="stable")
        rank = np.empty(n_rows, np.int64)
        rank[order] = np.arange(n_rows)
        n_groups = -(-n_rows // GROUP)
        rows = np.full(n_groups * GROUP, n_rows, np.uint16)
        rows[:n_rows] = order
        lengths = counts[order[::GROUP]]
        starts = GROUP * (np.cumsum(lengths) - lengths)
        row, column = np.nonzero(matrix)
        index_in_row = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        place = starts[rank[row] // GROUP] + GROUP * index_in_row + rank[row] % GROUP
        size = GROUP * int(lengths.sum())
        columns, weights = np.zeros(size, np.uint16), np.zeros(size, matrix.dtype)
        columns[place], weights[place] = column, matrix[row, column]
        return cls(lengths.astype(np.uint16), rows, columns, weights)


@dataclass(frozen=True)
class Panels:
    """
    Sixteen rows at a time, in each of them windows of 32 inputs, in each of those as many steps as the longest row needs.

    :param steps: Steps by panel and window, uint8.
    :param places: Of each step and row which input of the window, uint8.
    :param weights: Weights, the same.
    """

    steps: NDArray[np.uint8]
    places: NDArray[np.uint8]
    weights: NDArray

    @property
    def n_windows(self) -> int:
        """Windows of a panel."""
        return self.steps.shape[1]

    @classmethod
    def of(cls, matrix: NDArray, *, zeros: bool = False) -> Panels:
        """
        Arrange a weight.

        :param matrix: Weights ``[out, in]``.
        :param zeros: Whether zeros are stored too.
        :return: They, arranged.
        """
        n_panels, n_windows = -(-matrix.shape[0] // PANEL), -(-matrix.shape[1] // WINDOW)
        row, column = np.nonzero(np.ones_like(matrix) if zeros else matrix)
        cell = row * n_windows + column // WINDOW
        counts = np.bincount(cell, minlength=n_panels * PANEL * n_windows)
        index_in_cell = np.arange(len(row)) - (np.cumsum(counts) - counts)[cell]
        steps = counts.reshape(n_panels, PANEL, n_windows).max(axis=1)
        starts = (np.cumsum(steps) - steps.ravel()).reshape(steps.shape)
        place = PANEL * (starts[row // PANEL, column // WINDOW] + index_in_cell) + row % PANEL
        size = PANEL * int(steps.sum())
        places, weights = np.zeros(size, np.uint8), np.zeros(size, matrix.dtype)
        places[place], weights[place] = column % WINDOW, matrix[row, column]
        return cls(steps.astype(np.uint8), places, weights)


def tiles(matrix: NDArray) -> NDArray:
    """
    Arrange a dense weight for sixteen outputs at a time.

    :param matrix: Weights ``[out, in]``.
    :return: Sixteen outputs at a time ``[tiles, in, 16]``, filled up with zeros.
    """
    padded = np.zeros((-(-len(matrix) // PANEL) * PANEL, matrix.shape[1]), matrix.dtype)
    padded[: len(matrix)] = matrix
    return np.ascontiguousarray(padded.reshape(-1, PANEL, matrix.shape[1]).transpose(0, 2, 1))


def padded(values: NDArray, multiple: int = PANEL) -> NDArray:
    """
    Fill a vector up with zeros.

    :param values: A vector.
    :param multiple: What its length shall be a multiple of.
    :return: It with zeros behind.
    """
    return np.pad(values, (0, -len(values) % multiple))


def cheapest(matrix: NDArray, *, avx512: bool) -> str:
    """
    Choose the fastest kernel for a weight.

    :param matrix: Weights ``[out, in]``, float32.
    :param avx512: Whether the kernels for AVX-512 can be used.
    :return: ``"groups"`` or ``"panels"``, ``"tiles"`` or ``"dots"``.
    """
    n_outputs, n_inputs = matrix.shape
    n_tiles = -(-n_outputs // PANEL)
    # Beyond half of a first-level cache weights come from the second level
    far = 1.4 if n_tiles * n_inputs * 64 > 2**15 else 1.0
    if avx512:
        arranged = Panels.of(matrix)
        costs = {
            "panels": 2.3 * int(arranged.steps.sum()) + 3 * arranged.steps.size,
            "tiles": far * n_tiles * n_inputs + 10 * n_tiles,
            "dots": n_outputs * (n_inputs / 16 * far + 14),
        }
    else:
        lengths = Groups.of(matrix).lengths
        costs = {
            "groups": 3.9 * int(lengths.sum()) + 6 * len(lengths),
            "tiles": 4.2 * far * n_tiles * n_inputs + 12 * n_tiles,
            "dots": n_outputs * (n_inputs / 4 * far + 20),
        }
    return min(costs, key=lambda name: costs[name])


def panels_are_cheaper(matrix: NDArray, *, zeros: bool = False) -> bool:
    """
    Choose between the kernels for integers and AVX-512.

    :param matrix: Weights ``[out, in]``, int8.
    :param zeros: Whether zeros are stored too.
    :return: Whether panels are faster than dot products of whole rows, of which each costs a sum across a register.
    """
    steps = Panels.of(matrix, zeros=zeros).steps
    return 3 * int(steps.sum()) + 3 * steps.size < len(matrix) * (1.5 * -(-matrix.shape[1] // WINDOW) + 10)
