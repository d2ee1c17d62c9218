"""Encodings: hand-worked bytes, sizes that are those of real bytes, and masks that come back as they were."""

import math

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from sb3_sparse.masks.encodings import Bitmap, Blocks, Dense, Gaps, Positions, Rows, candidates, smallest_encoding, value_bytes
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
    assert len(held) == (4 if isinstance(pattern, Unstructured) else 5)
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
    for encoding in (Bitmap(), Rows(), Gaps()):
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
        (4096, 32, "gaps"),  # a byte each, with gaps of 15, beats the bitmap's 8192
        (300, 8, "gaps"),
        (60000, 4, "dense"),  # 4 bits times 5536 zeros are 2768 bytes, a bitmap 8192
    ],
)
def test_which_is_smallest_in_a_256_x_256_layer(n_active, bits, expected):
    mask = np.zeros(65536, bool)
    mask[np.random.default_rng(0).permutation(65536)[:n_active]] = True
    assert smallest_encoding(mask.reshape(256, 256), Unstructured(), bits)[0].name == expected


def test_rows_win_where_gaps_are_wide():
    # A weight in each of 3 rows of 60000 columns: gaps need 235 escapes each, rows 4 * 4 + 2 * 3 bytes
    mask = mask_with((3, 60000), 0, 119_999, 120_000 + 59_999)
    assert smallest_encoding(mask, Unstructured())[0] == Rows()


def test_n_of_m_takes_positions_or_what_is_smaller():
    scores = th.rand(64, 64, generator=th.Generator().manual_seed(0))
    # 1:8 needs 3 bits for each of 512 weights, 192 bytes; 2:4 needs as much as its bitmap, which is simpler; 3:4 more
    assert smallest_encoding(NofM(1, 8).select(scores, (1,)).numpy(), NofM(1, 8)) == (Positions(1, 8), 192)
    assert smallest_encoding(NofM(2, 4).select(scores, (2,)).numpy(), NofM(2, 4)) == (Bitmap(), 512)
    assert smallest_encoding(NofM(2, 4).select(scores, (3,)).numpy(), NofM(2, 4)) == (Bitmap(), 512)
