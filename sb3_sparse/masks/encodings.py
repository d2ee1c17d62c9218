"""
Plain ways to write down which weights exist, each with its exact size, an encoder and a decoder.

A mask is a boolean matrix ``[outputs, inputs]`` (see :func:`sb3_sparse.masks.patterns.as_matrix_shape`); the weights that
exist follow in row-major order. What a reader needs beside the bytes, the matrix's shape and the encoding's own few numbers,
belongs into a file's header and is not counted. Multi-byte integers are little-endian; bits fill a byte from its lowest.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from sb3_sparse.masks.patterns import Block, NofM, Pattern

Mask = npt.NDArray[np.bool_]


def _pack(bits: npt.NDArray) -> bytes:
    return np.packbits(bits.astype(bool).ravel(), bitorder="little").tobytes()


def _unpack(data: bytes, n_bits: int) -> npt.NDArray[np.uint8]:
    return np.unpackbits(np.frombuffer(data, np.uint8), count=n_bits, bitorder="little")


class Encoding(ABC):
    """One way to write down a mask."""

    #: How reports and files call it.
    name: ClassVar[str]
    #: Whether values of pruned weights are stored too, as zeros.
    stores_all: ClassVar[bool] = False

    @abstractmethod
    def size(self, mask: Mask) -> int | None:
        """
        Bytes of a mask's indices.

        :param mask: Bool matrix.
        :return: Bytes that :meth:`encode` makes of it, or None if this encoding cannot hold it.
        """

    @abstractmethod
    def encode(self, mask: Mask) -> bytes:
        """
        Write a mask's indices.

        :param mask: Bool matrix that this encoding can hold.
        :return: The bytes.
        """

    @abstractmethod
    def decode(self, data: bytes, shape: tuple[int, int]) -> Mask:
        """
        Read a mask's indices back.

        :param data: What :meth:`encode` made.
        :param shape: Shape of the matrix.
        :return: The mask.
        """


@dataclass(frozen=True)
class Dense(Encoding):
    """No indices: every weight is stored, the pruned ones as zeros. Decodes to a full mask."""

    name: ClassVar[str] = "dense"
    stores_all: ClassVar[bool] = True

    def size(self, mask: Mask) -> int:
        return 0

    def encode(self, mask: Mask) -> bytes:
        return b""

    def decode(self, data: bytes, shape: tuple[int, int]) -> Mask:
        return np.ones(shape, bool)


@dataclass(frozen=True)
class Bitmap(Encoding):
    """One bit per position."""

    name: ClassVar[str] = "bitmap"

    def size(self, mask: Mask) -> int:
        return math.ceil(mask.size / 8)

    def encode(self, mask: Mask) -> bytes:
        return _pack(mask)

    def decode(self, data: bytes, shape: tuple[int, int]) -> Mask:
        return _unpack(data, math.prod(shape)).astype(bool).reshape(shape)


@dataclass(frozen=True)
class Rows(Encoding):
    """Compressed rows: ``rows + 1`` pointers of 4 bytes, then a column index of 2 bytes (4 beyond 65536 columns) each."""

    name: ClassVar[str] = "rows"

    @staticmethod
    def _index_type(columns: int) -> np.dtype:
        return np.dtype("<u2" if columns <= 2**16 else "<u4")

    def size(self, mask: Mask) -> int:
        return 4 * (mask.shape[0] + 1) + self._index_type(mask.shape[1]).itemsize * int(mask.sum())

    def encode(self, mask: Mask) -> bytes:
        pointers = np.concatenate([[0], np.cumsum(mask.sum(axis=1))]).astype("<u4")
        return pointers.tobytes() + np.nonzero(mask)[1].astype(self._index_type(mask.shape[1])).tobytes()

    def decode(self, data: bytes, shape: tuple[int, int]) -> Mask:
        pointers = np.frombuffer(data, "<u4", shape[0] + 1)
        columns = np.frombuffer(data, self._index_type(shape[1]), offset=4 * (shape[0] + 1))
        mask = np.zeros(shape, bool)
        lengths = pointers[1:] - pointers[:-1]
        mask[np.repeat(np.arange(shape[0]), lengths), columns] = True
        return mask


@dataclass(frozen=True)
class Gaps(Encoding):
    """
    One byte per weight: how many pruned positions lie between it and the weight before it, in row-major order. 255 is an
    escape: 255 pruned positions, and no weight yet. Pruned positions after the last weight take nothing.
    """

    name: ClassVar[str] = "gaps"
    ESCAPE: ClassVar[int] = 255

    @staticmethod
    def _gaps(mask: Mask) -> npt.NDArray[np.int64]:
        return np.diff(np.flatnonzero(mask), prepend=-1) - 1

    def size(self, mask: Mask) -> int:
        return int((1 + self._gaps(mask) // self.ESCAPE).sum())

    def encode(self, mask: Mask) -> bytes:
        gaps = self._gaps(mask)
        lengths = 1 + gaps // self.ESCAPE
        data = np.full(int(lengths.sum()), self.ESCAPE, np.uint8)
        data[np.cumsum(lengths) - 1] = gaps % self.ESCAPE
        return data.tobytes()

    def decode(self, data: bytes, shape: tuple[int, int]) -> Mask:
        steps = np.frombuffer(data, np.uint8).astype(np.int64)
        is_weight = steps != self.ESCAPE
        # A weight takes its own position too
        positions = np.cumsum(steps + is_weight) - 1
        mask = np.zeros(math.prod(shape), bool)
        mask[positions[is_weight]] = True
        return mask.reshape(shape)


@dataclass(frozen=True)
class Positions(Encoding):
    """
    N:M: the position of each weight in its group, ``ceil(log2(M))`` bits each. Holds masks with exactly N in every group of M
    consecutive inputs (in a ragged last group as many as it has room for).

    :param n: Weights per group, the N of N:M; of a layer on its way from dense, the K of K:M.
    :param m: Inputs per group.
    """

    n: int
    m: int
    name: ClassVar[str] = "positions"

    @property
    def bits(self) -> int:
        """Bits per weight."""
        return math.ceil(math.log2(self.m))

    def _kept(self, columns: int) -> npt.NDArray[np.int64]:
        """How many weights each group of a row has."""
        return np.minimum(np.diff(np.append(np.arange(0, columns, self.m), columns)), self.n)

    def size(self, mask: Mask) -> int | None:
        counts = np.add.reduceat(mask.astype(np.int64), np.arange(0, mask.shape[1], self.m), axis=1)
        if not (counts == self._kept(mask.shape[1])).all():
            return None
        return math.ceil(int(mask.sum()) * self.bits / 8)

    def encode(self, mask: Mask) -> bytes:
        positions = np.nonzero(mask)[1] % self.m
        return _pack(positions[:, None] >> np.arange(self.bits) & 1)

    def decode(self, data: bytes, shape: tuple[int, int]) -> Mask:
        kept = self._kept(shape[1])
        starts = np.tile(np.repeat(np.arange(len(kept)) * self.m, kept), shape[0])
        bits = _unpack(data, len(starts) * self.bits).reshape(len(starts), self.bits)
        mask = np.zeros(shape, bool)
        mask[np.repeat(np.arange(shape[0]), kept.sum()), starts + (bits << np.arange(self.bits)).sum(axis=1)] = True
        return mask


@dataclass(frozen=True)
class Blocks(Encoding):
    """
    One bit per block. Holds masks of whole blocks; smaller blocks at ragged edges are blocks too.

    :param rows: Outputs per block.
    :param columns: Inputs per block.
    """

    rows: int
    columns: int
    name: ClassVar[str] = "blocks"

    def _expand(self, blocks: Mask, shape: tuple[int, int]) -> Mask:
        return blocks.repeat(self.rows, axis=0)[: shape[0]].repeat(self.columns, axis=1)[:, : shape[1]]

    def size(self, mask: Mask) -> int | None:
        blocks = mask[:: self.rows, :: self.columns]
        if not (self._expand(blocks, (mask.shape[0], mask.shape[1])) == mask).all():
            return None
        return math.ceil(blocks.size / 8)

    def encode(self, mask: Mask) -> bytes:
        return _pack(mask[:: self.rows, :: self.columns])

    def decode(self, data: bytes, shape: tuple[int, int]) -> Mask:
        grid = (-(-shape[0] // self.rows), -(-shape[1] // self.columns))
        return self._expand(_unpack(data, math.prod(grid)).astype(bool).reshape(grid), shape)


def value_bytes(n_values: int, bits: int) -> int:
    """
    Bytes of the values themselves.

    :param n_values: Number of values.
    :param bits: Bits each.
    :return: Bytes when they are packed bit by bit, rounded up.
    """
    return math.ceil(n_values * bits / 8)


def candidates(mask: Mask, pattern: Pattern) -> list[Encoding]:
    """
    The encodings that come into question for a mask.

    :param mask: Bool matrix.
    :param pattern: Its pattern.
    :return: The encodings that may hold it, simplest first.
    """
    encodings: list[Encoding] = [Dense(), Bitmap(), Rows(), Gaps()]
    if isinstance(pattern, NofM):
        per_row = np.add.reduceat(mask[:1].astype(np.int64), np.arange(0, mask.shape[1], pattern.m), axis=1)
        encodings.append(Positions(int(per_row.max()), pattern.m))
    elif isinstance(pattern, Block):
        encodings.append(Blocks(pattern.rows, pattern.columns))
    return encodings


def smallest_encoding(mask: Mask, pattern: Pattern, bits: int = 32) -> tuple[Encoding, int]:
    """
    Choose by arithmetic on the mask itself.

    :param mask: Bool matrix.
    :param pattern: Its pattern.
    :param bits: Bits per value; the fewer they are, the sooner storing zeros costs less than indices.
    :return: The encoding with the fewest bytes for values and indices together (of equal ones the simplest), and the bytes of
        its indices.
    """
    n_active = int(mask.sum())
    sized: list[tuple[int, int, Encoding, int]] = []
    for encoding in candidates(mask, pattern):
        size = encoding.size(mask)
        if size is not None:
            values = value_bytes(mask.size if encoding.stores_all else n_active, bits)
            sized.append((values + size, len(sized), encoding, size))
    _, _, encoding, size = min(sized, key=lambda item: item[:2])
    return encoding, size
