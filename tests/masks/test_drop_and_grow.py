"""Updaters: hand-worked drop and grow tables, conservation as a property."""

import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from sb3_sparse.masks.drop_and_grow import regrow, survivors
from sb3_sparse.masks.patterns import Block, NofM, Unstructured
from sb3_sparse.masks.schedules import SCHEDULES
from tests.masks.test_patterns import PATTERNS, SHAPES, scores_of

WEIGHT = th.tensor([[0.5, -0.1, 0.0, 2.0], [-3.0, 0.2, 0.0, -0.4]])
MASK = th.tensor([[1, 1, 0, 1], [1, 1, 0, 1]], dtype=th.bool)


def rows(mask):
    return mask.int().tolist()


@pytest.mark.parametrize(
    ("fraction", "sign_split", "expected"),
    [
        # active by magnitude: -.1, .2, -.4, .5, 2, -3
        (0.34, False, [[1, 0, 0, 1], [1, 0, 0, 1]]),  # floor(.34 * 6) = 2: -.1 and .2
        (0.5, False, [[1, 0, 0, 1], [1, 0, 0, 0]]),  # 3: and -.4
        (0.16, False, [[1, 1, 0, 1], [1, 1, 0, 1]]),  # floor(.96) = 0
        (0.34, "half", [[1, 0, 0, 1], [1, 0, 0, 1]]),  # one of each sign: -.1 and .2
        (0.67, "half", [[0, 0, 0, 1], [1, 0, 0, 0]]),  # 4: -.1, -.4 and .2, .5
        (0.5, "half", [[0, 0, 0, 1], [1, 0, 0, 1]]),  # 3: -.1 and .2, .5
        # floor(.34 * 3) + 1 = 2 positive: .2 and .5; 3 - floor(.66 * 3) = 2 negative: -.1 and -.4
        (0.34, "proportional", [[0, 0, 0, 1], [1, 0, 0, 0]]),
        (0.3, "proportional", [[1, 0, 0, 1], [1, 0, 0, 1]]),  # floor(.9) + 1 = 1: .2; 3 - floor(2.1) = 1: -.1
        (0.5, "proportional", [[0, 0, 0, 1], [1, 0, 0, 0]]),  # floor(1.5) + 1 = 2; 3 - floor(1.5) = 2
    ],
)
def test_survivors_by_hand(fraction, sign_split, expected):
    assert rows(survivors(Unstructured(), WEIGHT, MASK, fraction, sign_split=sign_split)) == expected


def test_half_split_with_too_few_of_a_sign():
    weight = th.tensor([[1.0, 2.0, 3.0, 4.0, -5.0, 0.0]])
    mask = th.tensor([[1, 1, 1, 1, 1, 0]], dtype=th.bool)
    # 4 to drop, two of each sign, but there is only one negative
    assert rows(survivors(Unstructured(), weight, mask, 0.8, sign_split="half")) == [[0, 0, 0, 1, 0, 0]]
    # ... and only one positive
    assert rows(survivors(Unstructured(), -weight, mask, 0.8, sign_split="half")) == [[0, 0, 0, 1, 0, 0]]


def test_proportional_split_drops_exact_zeros_but_never_the_last_weight():
    weight, mask = th.tensor([[1.0, 0.0, 3.0, -1.0, -2.0]]), th.ones(1, 5, dtype=th.bool)
    assert rows(survivors(Unstructured(), weight, mask, 0.1, sign_split="proportional")) == [[0, 0, 1, 0, 1]]
    weight, mask = th.tensor([[1.0, -2.0, 5.0]]), th.tensor([[True, True, False]])
    assert rows(survivors(Unstructured(), weight, mask, 0.1, sign_split="proportional")) == [[0, 1, 0]]


@given(PATTERNS, SHAPES, st.floats(0, 0.9), st.sampled_from([False, "half", "proportional"]), st.integers(0, 10**6))
def test_nan_counts_as_zero_and_lets_no_pruned_weight_return(pattern, shape, fraction, sign_split, seed):
    sign_split = False if isinstance(pattern, Block) else sign_split
    numel = th.zeros(shape).numel()
    mask = pattern.select(scores_of(shape, seed), pattern.budget(shape, 0.5 * numel))
    weight = (scores_of(shape, seed + 1) - 1.5) * mask
    broken = scores_of(shape, seed + 2) < 0.3
    kept = survivors(pattern, th.where(broken & mask, th.nan, weight), mask, fraction, sign_split=sign_split)
    zeroed = survivors(pattern, th.where(broken, 0.0, weight), mask, fraction, sign_split=sign_split)
    assert th.equal(kept, zeroed)
    assert not (kept & ~mask).any()


@given(SHAPES, st.sampled_from([NofM(1, 3), NofM(2, 4), NofM(4, 4)]), st.floats(0.05, 0.9), st.integers(0, 10**6))
def test_groups_that_are_not_full_are_filled_up_to_the_same_number(shape, pattern, fraction, seed):
    """After a last event that only prunes, an update keeps the number of positions, and groups never hold more than N."""
    mask = pattern.select(scores_of(shape, seed), (pattern.n,))
    mask = survivors(pattern, scores_of(shape, seed + 1) * mask, mask, fraction)
    n_active, budget = int(mask.sum()), pattern.budget_of(mask)
    assert pattern.is_legal(mask)
    assert pattern.n_active(shape, budget) == n_active
    assert th.equal(pattern.select(mask.float(), budget), mask)
    kept = survivors(pattern, scores_of(shape, seed + 2) * mask, mask, 0.5)
    for scores in (scores_of(shape, seed + 3), th.full(shape, th.nan), th.full(shape, -th.inf), th.zeros(shape)):
        new = regrow(pattern, kept, mask, scores)
        assert int(new.sum()) == n_active
        assert pattern.is_legal(new)
        assert not (kept & ~new).any()


def test_regrow_by_hand():
    kept = survivors(Unstructured(), WEIGHT, MASK, 0.34)
    scores = th.tensor([[9.0, 1.0, 3.0, 9.0], [9.0, 4.0, 2.0, 9.0]])
    # Candidates: (0,1) just dropped with 1, (0,2) with 3, (1,1) just dropped with 4, (1,2) with 2. Two grow: 4 and 3.
    assert rows(regrow(Unstructured(), kept, MASK, scores)) == [[1, 0, 1, 1], [1, 1, 0, 1]]


def test_two_of_four_regrows_within_its_groups():
    weight = th.tensor([[1.0, 5.0, 0.0, 0.0], [3.0, 4.0, 0.0, 0.0]])
    mask = weight != 0
    kept = survivors(NofM(2, 4), weight, mask, 0.5)
    assert rows(kept) == [[0, 1, 0, 0], [0, 1, 0, 0]]
    scores = th.tensor([[0.0, 0.0, 9.0, 8.0], [1.0, 0.0, 0.0, 7.0]])
    assert rows(regrow(NofM(2, 4), kept, mask, scores)) == [[0, 1, 1, 0], [0, 1, 0, 1]]


def test_whole_blocks_are_dropped_and_grown():
    pattern = Block(2, 1)
    weight = th.tensor([[1.0, 2.0, 0.0, 3.0], [1.0, -9.0, 0.0, 3.0]])
    mask = weight != 0
    kept = survivors(pattern, weight, mask, 0.34)
    assert rows(kept) == [[0, 1, 0, 1]] * 2
    assert rows(regrow(pattern, kept, mask, th.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 2.0, 0.0]]))) == [[0, 1, 1, 1]] * 2


@given(
    PATTERNS,
    SHAPES,
    st.floats(0.05, 1),
    st.floats(0, 1),
    st.sampled_from([False, "half", "proportional"]),
    st.integers(0, 10**6),
)
def test_an_update_conserves_count_and_pattern(pattern, shape, density, fraction, sign_split, seed):
    if isinstance(pattern, Block):
        sign_split = False
    numel = th.zeros(shape).numel()
    if isinstance(pattern, NofM):
        density = pattern.n / pattern.m
    budget = pattern.budget(shape, density * numel)
    mask = pattern.select(scores_of(shape, seed), budget)
    weight = (scores_of(shape, seed + 1) - 1.5) * mask
    kept = survivors(pattern, weight, mask, fraction, sign_split=sign_split)
    assert not (kept & ~mask).any()
    if sign_split != "proportional" and not isinstance(pattern, Block):
        assert int(kept.sum()) == int(mask.sum()) - int(fraction * int(mask.sum()))
    if not sign_split and not isinstance(pattern, Block) and kept.any() and (mask & ~kept).any():
        assert weight[kept].abs().min() >= weight[mask & ~kept].abs().max()
    new = regrow(pattern, kept, mask, scores_of(shape, seed + 2))
    assert int(new.sum()) == int(mask.sum())
    assert pattern.is_legal(new)
    assert not (kept & ~new).any()
    assert pattern.budget_of(mask) == budget


@pytest.mark.parametrize(
    ("name", "values"),
    [("constant", [1, 1, 1]), ("cosine", [1, 0.5, 0]), ("linear", [1, 0.5, 0])],
)
def test_schedules(name, values):
    assert [SCHEDULES[name](progress) for progress in (0, 0.5, 1)] == pytest.approx(values)
    assert SCHEDULES["cosine"](0.25) == pytest.approx((1 + 2**-0.5) / 2)
