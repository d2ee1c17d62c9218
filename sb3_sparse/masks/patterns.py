"""
Which masks are legal.

A weight of any rank is read as a matrix ``[outputs, inputs]``: ``Linear`` weights as they are, ``Conv2d`` weights
``[out, in, kh, kw]`` flattened to ``[out, in * kh * kw]`` (the order in which im2col multiplies them). Every pattern knows
how many positions it can keep (a *budget*), how to choose them from scores, and whether a given mask obeys it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch as th

Budget = tuple[int, ...]

PATTERN_HELP = (
    '"unstructured", "N:M" (at most N of every M consecutive inputs of a row, 1 <= N <= M, such as "2:4") '
    'or "block:RxC" (whole blocks of R outputs x C inputs, such as "block:4x1")'
)


def as_matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """
    The ``(outputs, inputs)`` view of a weight's shape.

    :param shape: Shape of a weight, at least two dimensions, outputs first.
    :return: Rows and columns of the matrix the patterns work on.
    """
    return shape[0], prod(shape[1:])


def top_mask(scores: th.Tensor, n_keep: int) -> th.Tensor:
    """
    Exactly the ``n_keep`` highest scores; of equal scores the one with the lower index wins, on every device.

    NaN scores lose against everything, so a diverged network still has an exact mask.

    :param scores: Scores of any shape and floating dtype.
    :param n_keep: How many to keep, between 0 and ``scores.numel()``.
    :return: Boolean tensor of the shape of ``scores``.
    """
    flat = th.where(scores.isnan(), -th.inf, scores).flatten()
    if n_keep >= flat.numel():
        return th.ones_like(scores, dtype=th.bool)
    if n_keep == 0:
        return th.zeros_like(scores, dtype=th.bool)
    # Selecting one value is several times faster than sorting the highest ones
    threshold = flat.kthvalue(flat.numel() - n_keep + 1).values
    mask = flat > threshold
    ties = (flat == threshold).nonzero().flatten()
    mask[ties[: n_keep - int(mask.sum())]] = True
    return mask.view(scores.shape)


class Pattern(ABC):
    """What every pattern can do. Budgets are opaque: they come from :meth:`budget` and go to :meth:`select`."""

    @property
    @abstractmethod
    def spec(self) -> str:
        """The string that :func:`parse_pattern` turns back into this pattern."""

    @property
    def fixed_sparsity(self) -> float | None:
        """The sparsity that follows from the pattern alone, or None where it is free."""
        return None

    def agrees_with(self, sparsity: float) -> bool:
        """
        Whether somebody who writes a sparsity means the one that follows from the pattern: 0.667 is 1:3.

        :param sparsity: In [0, 1).
        :return: Whether it is that sparsity, rounded to three digits or finer. True where the sparsity is free.
        """
        return self.fixed_sparsity is None or abs(sparsity - self.fixed_sparsity) <= 5e-4

    def impossible(self, shape: Sequence[int]) -> str | None:
        """
        Say why a weight cannot have this pattern.

        :param shape: Shape of a weight.
        :return: Why a weight of that shape cannot be pruned in this pattern, or None if it can.
        """
        return None

    @abstractmethod
    def budget(self, shape: Sequence[int], n_active: float) -> Budget:
        """
        The legal budget nearest to a number of positions.

        :param shape: Shape of a weight.
        :param n_active: How many positions one would like to keep.
        :return: The legal budget nearest to it that keeps at least one position; with blocks, nearest in every size class.
        """

    @abstractmethod
    def n_active(self, shape: Sequence[int], budget: Budget) -> int:
        """
        Count the positions of a budget.

        :param shape: Shape of a weight.
        :param budget: A budget for that shape.
        :return: How many positions a mask of that budget has, exactly.
        """

    @abstractmethod
    def select(self, scores: th.Tensor, budget: Budget) -> th.Tensor:
        """
        The mask of highest scores that obeys the pattern and keeps exactly ``n_active(shape, budget)`` positions.

        :param scores: Floating tensor of a weight's shape; ties go to the lower index.
        :param budget: A budget for that shape.
        :return: Boolean mask of the same shape.
        """

    @abstractmethod
    def budget_of(self, mask: th.Tensor) -> Budget:
        """
        The budget of a mask.

        :param mask: Boolean mask that obeys the pattern.
        :return: The budget it was chosen with.
        """

    @abstractmethod
    def is_legal(self, mask: th.Tensor) -> bool:
        """
        Check whether a mask obeys the pattern.

        :param mask: Boolean mask of a weight's shape.
        :return: Whether it obeys the pattern. An all-True mask (a layer that is dense as yet) always does.
        """

    def pieces(self, scores: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        What exists or not as a whole, for comparing layers with each other.

        :param scores: Scores, shape of the weight.
        :return: Mean score and number of positions of every piece, both flat.
        :raises NotImplementedError: For N:M, where every group of every layer keeps the same number.
        """
        raise NotImplementedError(f"pattern {self.spec!r} gives every layer the same sparsity: there is nothing to compare")

    def from_pieces(self, kept: th.Tensor, shape: Sequence[int]) -> th.Tensor:
        """
        Join the pieces of a mask again.

        :param kept: Bool, which of the :meth:`pieces` exist.
        :param shape: Shape of the weight.
        :return: The mask.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Any position may exist or not. The budget is the number of positions."""

    @property
    def spec(self) -> str:
        return "unstructured"

    def budget(self, shape: Sequence[int], n_active: float) -> Budget:
        return (min(max(round(n_active), 1), prod(shape)),)

    def n_active(self, shape: Sequence[int], budget: Budget) -> int:
        return budget[0]

    def select(self, scores: th.Tensor, budget: Budget) -> th.Tensor:
        return top_mask(scores, budget[0])

    def budget_of(self, mask: th.Tensor) -> Budget:
        return (int(mask.sum()),)

    def is_legal(self, mask: th.Tensor) -> bool:
        return True

    def pieces(self, scores: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        return scores.flatten(), th.ones(scores.numel(), dtype=th.int64, device=scores.device)

    def from_pieces(self, kept: th.Tensor, shape: Sequence[int]) -> th.Tensor:
        return kept.view(*shape)


@dataclass(frozen=True)
class NofM(Pattern):
    """
    At most N of every M consecutive inputs of a row exist (row-wise N:M).

    Ragged tails: where the number of inputs is no multiple of M, the last group of a row has ``inputs % M`` members and
    keeps ``min(N, inputs % M)`` of them, which is what N:M hardware sees after padding the row with zeros. So 11 inputs
    under 2:4 keep 2 + 2 + 2 of 4 + 4 + 3, and 17 inputs keep 2 + 2 + 2 + 2 + 1 of 4 + 4 + 4 + 4 + 1.

    The budget is the number kept per full group: N, or M while the layer is still dense. A layer on its way from dense to N:M
    (gradual pruning) keeps exactly K of every M, N < K < M; that is legal too. Where groups hold fewer than they may (weights
    were dropped and none grown) the budget is N and the number of positions of the whole layer.
    """

    n: int
    m: int

    @property
    def spec(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def fixed_sparsity(self) -> float | None:
        return 1.0 - self.n / self.m

    def impossible(self, shape: Sequence[int]) -> str | None:
        columns = as_matrix_shape(shape)[1]
        if self.m > columns:
            return f"it has {columns} inputs per row, fewer than M={self.m}"
        return None

    def budget(self, shape: Sequence[int], n_active: float) -> Budget:
        per_group = min(range(self.n, self.m + 1), key=lambda kept: abs(self.n_active(shape, (kept,)) - n_active))
        return (per_group,)

    def n_active(self, shape: Sequence[int], budget: Budget) -> int:
        if len(budget) > 1:
            return budget[1]
        rows, columns = as_matrix_shape(shape)
        full_groups, tail = divmod(columns, self.m)
        return rows * (full_groups * budget[0] + min(budget[0], tail))

    def _groups(self, matrix: th.Tensor, fill: float) -> th.Tensor:
        """``[rows, groups, M]`` view of a ``[rows, columns]`` matrix, its ragged tail filled up."""
        rows, columns = matrix.shape
        padded = matrix.new_full((rows, -(-columns // self.m) * self.m), fill)
        padded[:, :columns] = matrix
        return padded.view(rows, -1, self.m)

    def select(self, scores: th.Tensor, budget: Budget) -> th.Tensor:
        matrix = th.where(scores.isnan(), -th.inf, scores).flatten(1)
        groups = self._groups(matrix, -th.inf)
        # A stable sort: equal scores keep their order, and padding (always last) loses against every real position
        order = groups.sort(dim=-1, descending=True, stable=True).indices
        mask = th.zeros_like(groups, dtype=th.bool).scatter_(-1, order[..., : budget[0]], True)
        mask = mask.flatten(1)[:, : matrix.shape[1]]
        if len(budget) > 1:
            # Of what the groups have room for, the highest of the whole layer; -inf still ranks above no room at all
            room = th.where(mask, matrix.clamp_min(th.finfo(matrix.dtype).min), -th.inf)
            mask = top_mask(room, budget[1])
        return mask.reshape(scores.shape)

    def _per_group(self, mask: th.Tensor) -> th.Tensor:
        return self._groups(mask.flatten(1).to(th.int32), 0).sum(dim=-1)

    def budget_of(self, mask: th.Tensor) -> Budget:
        per_group, n_active = int(self._per_group(mask).max()), int(mask.sum())
        if n_active == self.n_active(mask.shape, (per_group,)):
            return (per_group,)
        return (self.n, n_active)

    def is_legal(self, mask: th.Tensor) -> bool:
        per_group = self._per_group(mask)
        most = int(per_group.max())
        if most <= self.n:
            return True
        # On the way from dense: exactly as many in every group as it can hold of them
        room = self._per_group(th.ones_like(mask))
        return bool((per_group == room.clamp_max(most)).all())


@dataclass(frozen=True)
class Block(Pattern):
    """
    Whole blocks of R consecutive outputs x C consecutive inputs exist or not; a block's score is the sum of its members'.

    Ragged edges: rows and columns that do not fill a block form smaller blocks of their own. Blocks compete only with
    blocks of their own size, so the number of positions is exact and never depends on which blocks were chosen. The budget
    is the number of blocks kept for each size, in the order (full, right edge, bottom edge, corner), zero where none exist.
    """

    rows: int
    columns: int

    @property
    def spec(self) -> str:
        return f"block:{self.rows}x{self.columns}"

    def impossible(self, shape: Sequence[int]) -> str | None:
        if sum(count for count, _ in self._sizes(shape)) < 2:
            rows, columns = as_matrix_shape(shape)
            return f"one block covers all its {rows} outputs x {columns} inputs"
        return None

    def _sizes(self, shape: Sequence[int]) -> list[tuple[int, int]]:
        """(number of blocks, positions per block) of every size class."""
        rows, columns = as_matrix_shape(shape)
        (full_rows, tail_rows), (full_columns, tail_columns) = divmod(rows, self.rows), divmod(columns, self.columns)
        return [
            (full_rows * full_columns, self.rows * self.columns),
            (full_rows * bool(tail_columns), self.rows * tail_columns),
            (full_columns * bool(tail_rows), tail_rows * self.columns),
            (int(tail_rows > 0 and tail_columns > 0), tail_rows * tail_columns),
        ]

    def budget(self, shape: Sequence[int], n_active: float) -> Budget:
        sizes = self._sizes(shape)
        # Every class rounds on its own, so that budgets of a falling density are nested
        kept = [round(n_active / prod(shape) * count) for count, _ in sizes]
        main = max(range(len(sizes)), key=lambda index: prod(sizes[index]))
        kept[main] = max(kept[main], 1)
        return tuple(kept)

    def n_active(self, shape: Sequence[int], budget: Budget) -> int:
        return sum(kept * size for kept, (_, size) in zip(budget, self._sizes(shape), strict=True))

    def _block_sums(self, matrix: th.Tensor) -> th.Tensor:
        rows, columns = matrix.shape
        padded = matrix.new_zeros(-(-rows // self.rows) * self.rows, -(-columns // self.columns) * self.columns)
        padded[:rows, :columns] = matrix
        return padded.view(padded.shape[0] // self.rows, self.rows, -1, self.columns).sum(dim=(1, 3))

    def _regions(self, shape: Sequence[int]) -> list[tuple[slice, slice]]:
        """Where in the grid of blocks each size class lies."""
        rows, columns = as_matrix_shape(shape)
        full_rows, full_columns = rows // self.rows, columns // self.columns
        return [
            (slice(full_rows), slice(full_columns)),
            (slice(full_rows), slice(full_columns, None)),
            (slice(full_rows, None), slice(full_columns)),
            (slice(full_rows, None), slice(full_columns, None)),
        ]

    def select(self, scores: th.Tensor, budget: Budget) -> th.Tensor:
        rows, columns = as_matrix_shape(scores.shape)
        block_scores = self._block_sums(scores.flatten(1))
        blocks = th.zeros_like(block_scores, dtype=th.bool)
        for kept, region in zip(budget, self._regions(scores.shape), strict=True):
            blocks[region] = top_mask(block_scores[region], kept)
        return self._expand(blocks, rows, columns).reshape(scores.shape)

    def keep_blocks(self, scores: th.Tensor, mask: th.Tensor, fraction: float) -> th.Tensor:
        """
        Drop the blocks of least score that exist, ``floor(fraction * blocks)`` of every size class.

        :param scores: Scores, shape of the weight.
        :param mask: Boolean mask that obeys the pattern.
        :param fraction: Fraction of the existing blocks to drop, in [0, 1].
        :return: Boolean mask of what stays.
        """
        budget = tuple(kept - int(fraction * kept) for kept in self.budget_of(mask))
        return self.select(th.where(mask, scores, -th.inf), budget)

    def budget_of(self, mask: th.Tensor) -> Budget:
        blocks = self._block_sums(mask.flatten(1).to(th.int32)) > 0
        return tuple(int(blocks[region].sum()) for region in self._regions(mask.shape))

    def _expand(self, blocks: th.Tensor, rows: int, columns: int) -> th.Tensor:
        return blocks.repeat_interleave(self.rows, 0)[:rows].repeat_interleave(self.columns, 1)[:, :columns]

    def is_legal(self, mask: th.Tensor) -> bool:
        matrix = mask.flatten(1)
        blocks = self._block_sums(matrix.to(th.int32)) > 0
        return bool((self._expand(blocks, *matrix.shape) == matrix).all())

    def pieces(self, scores: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        matrix = scores.flatten(1)
        sizes = self._block_sums(th.ones_like(matrix))
        return (self._block_sums(matrix) / sizes).flatten(), sizes.flatten().to(th.int64)

    def from_pieces(self, kept: th.Tensor, shape: Sequence[int]) -> th.Tensor:
        rows, columns = as_matrix_shape(shape)
        return self._expand(kept.view(-(-rows // self.rows), -1), rows, columns).reshape(*shape)


#: Patterns of users by the string that means them.
_REGISTERED: dict[str, Pattern] = {}


def register_pattern(pattern: Pattern) -> None:
    """
    Let ``policy_kwargs`` name a pattern of your own. A saved model names it too: the module that registers it must be imported
    before the model is loaded.

    :param pattern: The pattern. Its ``spec`` is the name; the same name again replaces the pattern.
    :raises TypeError: If it is no :class:`Pattern`.
    :raises ValueError: If the name is one of this package's own, or no string.
    """
    if not isinstance(pattern, Pattern):
        raise TypeError(f"`pattern` must be an instance of Pattern, got {pattern!r}")
    spec = pattern.spec
    if not isinstance(spec, str) or spec == "unstructured" or re.fullmatch(r"\d+:\d+|block:.*", spec):
        raise ValueError(f"`pattern` must have a `spec` that is a name of its own, got {spec!r}")
    _REGISTERED[spec] = pattern


def parse_pattern(spec: str) -> Pattern:
    """
    Read a pattern from its string.

    :param spec: ``"unstructured"``, ``"N:M"``, ``"block:RxC"``, or what :func:`register_pattern` was given.
    :return: The pattern.
    :raises ValueError: If the string is none of these, or N > M, or a number is zero.
    """
    if spec == "unstructured":
        return Unstructured()
    if isinstance(spec, str):
        if spec in _REGISTERED:
            return _REGISTERED[spec]
        if (match := re.fullmatch(r"(\d+):(\d+)", spec)) and 1 <= int(match[1]) <= int(match[2]):
            return NofM(int(match[1]), int(match[2]))
        if (match := re.fullmatch(r"block:(\d+)x(\d+)", spec)) and int(match[1]) >= 1 and int(match[2]) >= 1:
            return Block(int(match[1]), int(match[2]))
    registered = f"; registered: {', '.join(_REGISTERED)}" if _REGISTERED else ""
    raise ValueError(f"`pattern` must be {PATTERN_HELP}{registered}, got {spec!r}")
