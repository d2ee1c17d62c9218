"""Encodings: hand-worked bytes, sizes that are those of real bytes, and masks that come back as they were."""

import math

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from sb3_sparse.masks.encodings import (
    Bitmap,
    Blocks,
    Dense,
    Gaps,
    Positions,
    Rice,
    Rows,
    candidates,
    smallest_encoding,
    value_bytes,
)
from sb3_sparse.masks.patterns import Block, NofM, Unstructured

SHAPES = st.tuples(st.integers(1, 20), st.integers(1, 40))
PATTERNS = st.one_of(
    st.just(Unstructured()),
    st.integers(1, 9).flatmap(lambda m: st.builds(NofM, st.integers(1, m), st.just(m))),
    st.builds(Block, st.integers(1, 5), st.integers(1, 5)),
)


def mask_with(shape, *positions):
    mask = np.zeros(shape, bool)
    mask.flat[list(positions)] = True
    return mask


def random_mask(shape, density, seed):
    return np.random.default_rng(seed).random(shape) < density


@given(PATTERNS, SHAPES, st.floats(0, 1), st.integers(0, 10**6))
def test_every_encoding_of_a_legal_mask_round_trips_in_the_size_it_said(pattern, shape, density, seed):
    scores = th.rand(shape, generator=th.Generator().manual_seed(seed))
    mask = pattern.select(scores, pattern.budget(shape, density * scores.numel())).numpy()
    held = [encoding for encoding in candidates(mask, pattern) if encoding.size(mask) is not None]
    # All but the pattern's own hold any mask, and the pattern's own holds its masks
    assert len(held) == (5 if isinstance(pattern, Unstructured) else 6)
    for encoding in held:
        data = encoding.encode(mask)
        assert isinstance(data, bytes)
        assert len(data) == encoding.size(mask)
        decoded = encoding.decode(data, shape)
        assert decoded.dtype == bool
        assert np.array_equal(decoded, np.ones(shape, bool) if encoding.stores_all else mask)


@given(SHAPES, st.sampled_from([0.0, 0.002, 0.02, 0.5, 1.0]), st.integers(0, 10**6))
def test_any_mask_round_trips(shape, density, seed):
    mask = random_mask((shape[0] * 5, shape[1] * 9), density, seed)
    for encoding in (Bitmap(), Rows(), Gaps(), Rice.best(mask)):
        data = encoding.encode(mask)
        assert len(data) == encoding.size(mask)
        assert np.array_equal(encoding.decode(data, mask.shape), mask)


@given(PATTERNS, SHAPES, st.floats(0, 1), st.integers(1, 32), st.integers(0, 10**6))
def test_the_smallest_is_chosen(pattern, shape, density, bits, seed):
    scores = th.rand(shape, generator=th.Generator().manual_seed(seed))
    mask = pattern.select(scores, pattern.budget(shape, density * scores.numel())).numpy()
    chosen, index_bytes = smallest_encoding(mask, pattern, bits)
    assert index_bytes == len(chosen.encode(mask))
    total = value_bytes(mask.size if chosen.stores_all else int(mask.sum()), bits) + index_bytes
    for other in candidates(mask, pattern):
        n_values = mask.size if other.stores_all else int(mask.sum())
        assert total <= math.ceil(n_values * bits / 8) + len(other.encode(mask))
    if mask.all():
        assert isinstance(chosen, Dense)


def test_bitmap_by_hand():
    assert Bitmap().encode(mask_with((2, 5), 0, 3, 9)) == bytes([0b00001001, 0b00000010])


def test_rows_by_hand():
    data = Rows().encode(mask_with((3, 300), 2, 299, 600))
    assert data == b"".join(value.to_bytes(4, "little") for value in (0, 2, 2, 3)) + bytes([2, 0, 43, 1, 0, 0])
    wide = mask_with((2, 100_000), 7, 199_999)
    assert Rows().size(wide) == 4 * 3 + 4 * 2
    assert np.array_equal(Rows().decode(Rows().encode(wide), wide.shape), wide)


def test_gaps_by_hand():
    assert Gaps().encode(mask_with((2, 5), 0, 1, 5)) == bytes([0, 0, 3])
    # 254 pruned positions before the weight fit into a byte; 255 take the escape and a zero; 511 two escapes and a one
    assert Gaps().encode(mask_with((1, 2000), 254)) == bytes([254])
    assert Gaps().encode(mask_with((1, 2000), 255)) == bytes([255, 0])
    assert Gaps().encode(mask_with((1, 2000), 3, 515)) == bytes([3, 255, 255, 1])
    assert Gaps().encode(mask_with((2, 2000))) == b""


def test_positions_by_hand():
    # 2:4 over 6 inputs: groups of 4 and 2. Positions 1, 3 | 0, 1 and 0, 2 | 0, 1, two bits each, lowest first
    mask = mask_with((2, 6), 1, 3, 4, 5, 6, 8, 10, 11)
    assert Positions(2, 4).encode(mask) == bytes([0b01_00_11_01, 0b01_00_10_00])
    assert Positions(2, 4).size(mask_with((2, 6), 1, 4, 5, 6, 8, 10, 11)) is None
    # 1:1 is dense and needs nothing
    assert Positions(1, 1).size(np.ones((3, 4), bool)) == 0


def test_blocks_by_hand():
    mask = np.zeros((3, 5), bool)
    mask[:2, 2:4] = mask[2:, 4:] = True
    # Blocks of 2x2 in a grid of 2x3: number 1, and the corner, number 5
    assert Blocks(2, 2).encode(mask) == bytes([0b100010])
    mask[0, 2] = False
    assert Blocks(2, 2).size(mask) is None


@pytest.mark.parametrize(
    ("n_active", "bits", "expected"),
    [
        (65536, 32, "dense"),
        (65535, 32, "dense"),  # one zero costs less than a bitmap
        (32768, 32, "bitmap"),
        (4096, 32, "rice"),  # 5.4 bits each, with gaps of 15, beat a byte each and the bitmap's 8192 bytes
        (300, 8, "rice"),
        (60000, 4, "dense"),  # 4 bits times 5536 zeros are 2768 bytes, a bitmap 8192
    ],
)
def test_which_is_smallest_in_a_256_x_256_layer(n_active, bits, expected):
    mask = np.zeros(65536, bool)
    mask[np.random.default_rng(0).permutation(65536)[:n_active]] = True
    assert smallest_encoding(mask.reshape(256, 256), Unstructured(), bits)[0].name == expected


def test_rice_by_hand():
    # Gaps 0, 0, 3. One low bit: 0 0 1; then 1 1 01 for the rest 0 0 1
    mask = mask_with((2, 5), 0, 1, 5)
    assert Rice(1, 3).encode(mask) == bytes([0b1011_100])
    # No low bits: 1 1 0001
    assert Rice.best(mask) == Rice(0, 3)
    assert Rice(0, 3).encode(mask) == bytes([0b100011])
    assert Rice(0, 2).size(mask) is None
    assert Rice.best(mask_with((2, 5))).encode(mask_with((2, 5))) == b""


def test_n_of_m_takes_positions_or_what_is_smaller():
    scores = th.rand(64, 64, generator=th.Generator().manual_seed(0))
    # 1:8 needs 3 bits for each of 512 weights, 192 bytes; 2:4 needs as much as its bitmap, which is simpler; 3:4 more
    assert smallest_encoding(NofM(1, 8).select(scores, (1,)).numpy(), NofM(1, 8)) == (Positions(1, 8), 192)
    assert smallest_encoding(NofM(2, 4).select(scores, (2,)).numpy(), NofM(2, 4)) == (Bitmap(), 512)
    assert smallest_encoding(NofM(2, 4).select(scores, (3,)).numpy(), NofM(2, 4)) == (Bitmap(), 512)


@pytest.mark.parametrize(
    ("encoding", "data", "shape", "said"),
    [
        (Dense(), b"\0", (2, 2), "1 bytes of indices, 0 expected"),
        (Bitmap(), b"", (2, 2), "0 bytes of indices, 1 expected"),
        (Bitmap(), bytes([0b10000]), (2, 2), "behind the last index"),
        (Rows(), bytes(11), (2, 2), "no row pointers"),
        (Rows(), bytes([0] * 4 + [2, 0, 0, 0] + [1, 0, 0, 0] + [0, 0]), (2, 2), "do not rise from 0"),
        (Rows(), bytes([0] * 4 + [1, 0, 0, 0] * 2 + [2, 0]), (2, 2), "column 2 is out of range"),
        (Rows(), bytes([0] * 4 + [2, 0, 0, 0] * 2 + [1, 0, 1, 0]), (2, 2), "columns of a row do not rise"),
        (Gaps(), bytes([0, 3]), (2, 2), "index 4 is out of range"),
        (Gaps(), bytes([0, 255]), (2, 2), "escape without a weight"),
        (Rice(0, 1), bytes([0b10000]), (2, 2), "index 4 is out of range"),
        (Rice(0, 1), bytes([0b11]), (2, 2), "those of 2 weights, 1 expected"),
        (Rice(0, 5), bytes([255]), (2, 2), "not the indices of 5 weights"),
        (Rice(9, 3), bytes([255]), (2, 2), "not the indices of 3 weights"),
        (Rice(1, 1), bytes([2, 0]), (2, 2), "those of 1 weights, 1 expected"),
        (Positions(1, 3), bytes([0b11]), (1, 3), "outside of its group"),
        (Positions(1, 4), bytes([0b1100]), (1, 6), "outside of its group"),
        (Positions(2, 4), bytes([0b0101]), (1, 4), "positions of a group do not rise"),
        (Blocks(2, 2), b"", (2, 2), "0 bytes of indices, 1 expected"),
    ],
)
def test_bytes_that_are_no_mask_are_refused(encoding, data, shape, said):
    with pytest.raises(ValueError, match=said):
        encoding.decode(data, shape)


@given(st.binary(max_size=40), SHAPES, st.integers(0, 40), st.integers(0, 6))
def test_whatever_is_decoded_is_a_mask_that_encodes_to_the_same_bytes(data, shape, n_weights, bits):
    for encoding in (Bitmap(), Rows(), Gaps(), Rice(bits, n_weights), Positions(1 + bits, 4 + bits), Blocks(2, 1 + bits)):
        try:
            mask = encoding.decode(data, shape)
        except ValueError:
            continue
        assert mask.shape == shape
        assert encoding.size(mask) is not None
        if not isinstance(encoding, Gaps):  # which may be followed by escapes in more than one way
            assert encoding.encode(mask)[: len(data)] == data
