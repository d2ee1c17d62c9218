"""
Plain ways to write down which weights exist, each with its exact size, an encoder and a decoder.

A mask is a boolean matrix ``[outputs, inputs]``; the weights that exist follow in row-major order. What a reader needs beside
the bytes, the matrix's shape and the encoding's own few numbers, belongs into a file's header and is not counted. Multi-byte
integers are little-endian; bits fill a byte from its lowest.

Decoders trust nothing: bytes that no mask of that shape encodes to are refused with a ValueError.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


def _pack(bits: npt.NDArray) -> bytes:
    return np.packbits(bits.astype(bool).ravel(), bitorder="little").tobytes()


def _unpack(data: bytes, n_bits: int) -> npt.NDArray[np.uint8]:
    if len(data) != math.ceil(n_bits / 8):
        raise ValueError(f"{len(data)} bytes of indices, {math.ceil(n_bits / 8)} expected")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if bits[n_bits:].any():
        raise ValueError("bits are set behind the last index")
    return bits[:n_bits]


def _from_positions(positions: npt.NDArray[np.int64], shape: tuple[int, int]) -> Mask:
    """A mask with True at flat positions that rise."""
    if len(positions) and int(positions[-1]) >= math.prod(shape):
        raise ValueError(f"index {int(positions[-1])} is out of range: the matrix has {math.prod(shape)} positions")
    mask = np.zeros(math.prod(shape), bool)
    mask[positions] = True
    return mask.reshape(shape)


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
        :raises ValueError: If the bytes are not those of a mask of that shape.
        """

    @property
    def parameters(self) -> dict[str, int]:
        """The encoding's own few numbers, by the names of its constructor's arguments."""
        return asdict(self)  # type: ignore[call-overload]


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
        if data:
            raise ValueError(f"{len(data)} bytes of indices, 0 expected")
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
        n_pointers, index_type = shape[0] + 1, self._index_type(shape[1])
        if len(data) < 4 * n_pointers or (len(data) - 4 * n_pointers) % index_type.itemsize:
            raise ValueError(f"{len(data)} bytes are no row pointers and columns of {shape[0]} rows")
        pointers = np.frombuffer(data, "<u4", n_pointers).astype(np.int64)
        columns = np.frombuffer(data, index_type, offset=4 * n_pointers).astype(np.int64)
        lengths = np.diff(pointers)
        if pointers[0] != 0 or pointers[-1] != len(columns) or (lengths < 0).any():
            raise ValueError("row pointers do not rise from 0 to the number of columns")
        if len(columns) and int(columns.max()) >= shape[1]:
            raise ValueError(f"column {int(columns.max())} is out of range: there are {shape[1]}")
        positions = np.repeat(np.arange(shape[0]) * shape[1], lengths) + columns
        if (np.diff(positions) <= 0).any():
            raise ValueError("columns of a row do not rise")
        return _from_positions(positions, shape)


@dataclass(frozen=True)
class Gaps(Encoding):
    """
    One byte per weight: how many pruned positions lie between it and the weight before it, in row-major order. 255 is an
    escape: 255 pruned positions, and no weight yet. Pruned positions after the last weight take nothing.
    """

    name: ClassVar[str] = "gaps"
    ESCAPE: ClassVar[int] = 255

    @staticmethod
    def of(mask: Mask) -> npt.NDArray[np.int64]:
        """
        Count the pruned positions before each weight.

        :param mask: Bool matrix.
        :return: Pruned positions before each weight.
        """
        return np.diff(np.flatnonzero(mask), prepend=-1) - 1

    def size(self, mask: Mask) -> int:
        return int((1 + self.of(mask) // self.ESCAPE).sum())

    def encode(self, mask: Mask) -> bytes:
        gaps = self.of(mask)
        lengths = 1 + gaps // self.ESCAPE
        data = np.full(int(lengths.sum()), self.ESCAPE, np.uint8)
        data[np.cumsum(lengths) - 1] = gaps % self.ESCAPE
        return data.tobytes()

    def decode(self, data: bytes, shape: tuple[int, int]) -> Mask:
        steps = np.frombuffer(data, np.uint8).astype(np.int64)
        is_weight = steps != self.ESCAPE
        if len(steps) and not is_weight[-1]:
            raise ValueError("the last byte is an escape without a weight")
        # A weight takes its own position too
        return _from_positions((np.cumsum(steps + is_weight) - 1)[is_weight], shape)


@dataclass(frozen=True)
class Rice(Encoding):
    """
    The gaps of :class:`Gaps` as Golomb-Rice code: a gap g takes its lowest ``low_bits`` bits, then, in a second stream,
    ``g >> low_bits`` zeros and a one. With ``low_bits`` near the logarithm of the mean gap that is within a few percent of the
    entropy of a mask without structure.

    Source: Golomb, "Run-length encodings", IEEE Trans. Inf. Theory 1966; Rice, "Some practical universal noiseless coding
    techniques", JPL 79-22, 1979, where the parameter is a power of two.

    :param low_bits: Bits of a gap that are written as they are.
    :param n_weights: Weights that exist.
    """

    low_bits: int
    n_weights: int
    name: ClassVar[str] = "rice"

    @classmethod
    def best(cls, mask: Mask) -> Rice:
        """
        Choose the number of low bits for a mask.

        :param mask: Bool matrix.
        :return: The encoding with the number of low bits that takes the fewest bytes.
        """
        gaps = Gaps.of(mask)
        sizes = [len(gaps) * (low_bits + 1) + int((gaps >> low_bits).sum()) for low_bits in range(32)]
        return cls(int(np.argmin(sizes)), len(gaps))

    def size(self, mask: Mask) -> int | None:
        gaps = Gaps.of(mask)
        if len(gaps) != self.n_weights:
            return None
        return math.ceil((len(gaps) * (self.low_bits + 1) + int((gaps >> self.low_bits).sum())) / 8)

    def encode(self, mask: Mask) -> bytes:
        gaps = Gaps.of(mask)
        low = gaps[:, None] >> np.arange(self.low_bits) & 1
        ends = np.cumsum((gaps >> self.low_bits) + 1) - 1
        high = np.zeros(int(ends[-1]) + 1 if len(ends) else 0, bool)
        high[ends] = True
        return _pack(np.concatenate([low.ravel(), high]))

    def decode(self, data: bytes, shape: tuple[int, int]) -> Mask:
        n_low = self.n_weights * self.low_bits
        if self.n_weights > math.prod(shape) or not 0 <= self.low_bits < 32 or len(data) < math.ceil(n_low / 8):
            raise ValueError(f"{len(data)} bytes are not the indices of {self.n_weights} weights")
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        low = bits[:n_low].reshape(self.n_weights, self.low_bits).astype(np.int64)
        ends = np.flatnonzero(bits[n_low:])
        n_bits = n_low + (int(ends[-1]) + 1 if len(ends) else 0)
        if len(ends) != self.n_weights or len(data) != math.ceil(n_bits / 8):
            raise ValueError(f"the indices are those of {len(ends)} weights, {self.n_weights} expected")
        high = np.diff(ends, prepend=-1) - 1
        gaps = (high << self.low_bits) + (low << np.arange(self.low_bits)).sum(axis=1)
        return _from_positions(np.cumsum(gaps + 1) - 1, shape)


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
        in_group = (bits.astype(np.int64) << np.arange(self.bits)).sum(axis=1)
        columns = starts + in_group
        if (in_group >= self.m).any() or (columns >= shape[1]).any():
            raise ValueError("a position is outside of its group")
        positions = np.repeat(np.arange(shape[0]) * shape[1], kept.sum()) + columns
        if (np.diff(positions) <= 0).any():
            raise ValueError("positions of a group do not rise")
        return _from_positions(positions, shape)


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
