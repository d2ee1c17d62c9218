"""Patterns: hand-worked masks, and properties over shapes, budgets and scores."""

from itertools import pairwise

import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import SAC

from sb3_sparse import SET, GradualPruning, RigL, sparsity_report
from sb3_sparse.masks import patterns
from sb3_sparse.masks.patterns import (
    Block,
    NofM,
    Pattern,
    Unstructured,
    as_matrix_shape,
    parse_pattern,
    register_pattern,
    top_mask,
)
from tests.helpers import make_model

SHAPES = st.one_of(
    st.tuples(st.integers(1, 20), st.integers(1, 25)),
    st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
)
PATTERNS = st.one_of(
    st.just(Unstructured()),
    st.integers(1, 8).flatmap(lambda m: st.builds(NofM, st.integers(1, m), st.just(m))),
    st.builds(Block, st.integers(1, 5), st.integers(1, 5)),
)


def scores_of(shape, seed):
    # Few distinct values, so that ties are the rule
    return th.randint(0, 4, shape, generator=th.Generator().manual_seed(seed)).float()


def mask_of(rows):
    return th.tensor(rows, dtype=th.bool)


@pytest.mark.parametrize(
    ("scores", "n_keep", "expected"),
    [
        ([3.0, 1.0, 2.0, 0.0], 2, [1, 0, 1, 0]),
        ([1.0, 1.0, 1.0, 1.0], 2, [1, 1, 0, 0]),  # ties: lower index wins
        ([0.0, 2.0, 1.0, 1.0, 1.0], 3, [0, 1, 1, 1, 0]),
        ([float("nan"), -1.0, float("nan"), 5.0], 3, [1, 1, 0, 1]),  # NaN loses, ties among NaN by index
        ([1.0, 2.0], 0, [0, 0]),
        ([1.0, 2.0], 2, [1, 1]),
    ],
)
def test_top_mask(scores, n_keep, expected):
    assert top_mask(th.tensor(scores), n_keep).tolist() == [bool(value) for value in expected]


def test_two_of_four_by_hand():
    scores = th.tensor([[4.0, 1.0, 3.0, 2.0, 1.0, 1.0, 1.0, 9.0], [0.0, 0.0, 0.0, 0.0, 5.0, 6.0, 7.0, 8.0]])
    expected = mask_of([[1, 0, 1, 0, 1, 0, 0, 1], [1, 1, 0, 0, 0, 0, 1, 1]])
    assert th.equal(NofM(2, 4).select(scores, (2,)), expected)


@pytest.mark.parametrize(
    ("columns", "pattern", "kept"),
    [
        (11, NofM(2, 4), 2 + 2 + 2),  # tail of 3
        (17, NofM(2, 4), 4 * 2 + 1),  # tail of 1
        (23, NofM(2, 4), 5 * 2 + 2),  # tail of 3
        (11, NofM(1, 4), 3),
        (17, NofM(1, 8), 3),
        (16, NofM(1, 8), 2),
    ],
)
def test_ragged_tails(columns, pattern, kept):
    scores = th.rand(3, columns, generator=th.Generator().manual_seed(0))
    budget = pattern.budget((3, columns), 3 * columns * pattern.n / pattern.m)
    mask = pattern.select(scores, budget)
    assert mask.sum(dim=1).tolist() == [kept] * 3
    assert pattern.n_active((3, columns), budget) == 3 * kept
    assert pattern.is_legal(mask)


def test_n_of_m_on_the_way_from_dense():
    pattern = NofM(1, 4)
    assert [pattern.budget((2, 8), n) for n in (16, 12, 8, 4, 1)] == [(4,), (3,), (2,), (1,), (1,)]
    assert pattern.is_legal(th.ones(2, 8, dtype=th.bool))
    assert not pattern.is_legal(mask_of([[1, 1, 0, 0, 0, 0, 0, 1]]))


def test_block_by_hand():
    scores = th.tensor(
        [
            [1.0, 1.0, 9.0],
            [1.0, 1.0, 0.0],
            [5.0, 0.0, 2.0],
            [0.0, 0.0, 2.0],
            [7.0, 7.0, 3.0],
        ]
    )
    pattern = Block(2, 2)
    # classes (full, right edge, bottom edge, corner): 2 blocks of 4, 2 of 2, 1 of 2, 1 of 1
    assert pattern.n_active((5, 3), (1, 1, 1, 1)) == 4 + 2 + 2 + 1
    expected = mask_of([[0, 0, 1], [0, 0, 1], [1, 1, 0], [1, 1, 0], [0, 0, 1]])
    assert th.equal(pattern.select(scores, (1, 1, 0, 1)), expected)
    assert pattern.is_legal(expected)
    broken = expected.clone()
    broken[0, 2] = False
    assert not pattern.is_legal(broken)


def test_conv_rows_are_flattened_in_im2col_order():
    weight = th.zeros(1, 2, 2, 2)
    weight[0, 0, 0, 1] = 3.0
    weight[0, 1, 1, 0] = 3.0
    mask = NofM(1, 4).select(weight, (1,))
    assert mask.nonzero().tolist() == [[0, 0, 0, 1], [0, 1, 1, 0]]


@given(PATTERNS, SHAPES, st.floats(0, 1), st.integers(0, 10**6))
def test_selection_is_exact_legal_and_greedy(pattern, shape, density, seed):
    scores = scores_of(shape, seed)
    budget = pattern.budget(shape, density * scores.numel())
    mask = pattern.select(scores, budget)
    assert mask.shape == scores.shape
    assert mask.dtype == th.bool
    assert int(mask.sum()) == pattern.n_active(shape, budget) >= 1
    assert pattern.is_legal(mask)
    if isinstance(pattern, NofM) and pattern.n < budget[0] < pattern.m and shape[0] > 1:
        # On the way from dense every group must keep as many as the others
        uneven = mask.flatten(1).clone()
        uneven[0, : pattern.m] = True
        assert not pattern.is_legal(uneven) or as_matrix_shape(shape)[1] < pattern.m
    assert th.equal(mask, pattern.select(scores.clone(), budget))
    if isinstance(pattern, Unstructured) and not mask.all():
        assert scores[mask].min() >= scores[~mask].max()


@given(PATTERNS, SHAPES)
def test_budget_reaches_from_dense_to_its_minimum(pattern, shape):
    numel = th.zeros(shape).numel()
    assert pattern.n_active(shape, pattern.budget(shape, numel)) == numel
    budgets = [pattern.budget(shape, n) for n in range(numel + 1)]
    # Nested: no part of a budget falls as the number of positions rises, so pruning step by step never regrows
    assert all(low <= high for less, more in pairwise(budgets) for low, high in zip(less, more, strict=True))
    assert pattern.n_active(shape, budgets[0]) >= 1


@given(st.builds(Block, st.integers(1, 4), st.integers(1, 4)), SHAPES, st.integers(0, 10**6), st.integers(0, 10**6))
def test_block_counts_do_not_depend_on_the_scores(pattern, shape, seed, other_seed):
    budget = pattern.budget(shape, th.zeros(shape).numel() / 2)
    counts = {int(pattern.select(scores_of(shape, s), budget).sum()) for s in (seed, other_seed)}
    assert len(counts) == 1


@pytest.mark.parametrize("spec", ["unstructured", "2:4", "1:8", "4:4", "block:4x1", "block:16x16"])
def test_specs_round_trip(spec):
    assert parse_pattern(spec).spec == spec


@pytest.mark.parametrize("spec", ["", "4:2", "0:4", "2-4", "block:0x1", "block:4", "Unstructured", "2:4 ", None, 4, "-1:4"])
def test_bad_specs_name_the_argument_and_the_value(spec):
    with pytest.raises(ValueError, match="`pattern` must be") as error:
        parse_pattern(spec)
    assert repr(spec) in str(error.value)


class ConstantFanIn(Pattern):
    """Somebody's own pattern: every output has the same number of inputs. Its name alone is like that of blocks."""

    spec = "block_fan_in"

    def budget(self, shape, n_active):
        rows, columns = as_matrix_shape(shape)
        return (min(max(round(n_active / rows), 1), columns),)

    def n_active(self, shape, budget):
        return shape[0] * budget[0]

    def select(self, scores, budget):
        return th.stack([top_mask(row, budget[0]) for row in scores.flatten(1)]).reshape(scores.shape)

    def budget_of(self, mask):
        return (int(mask.flatten(1)[0].sum()),)

    def is_legal(self, mask):
        return mask.flatten(1).sum(1).unique().numel() == 1


@pytest.fixture
def own_pattern():
    register_pattern(ConstantFanIn())
    yield
    del patterns._REGISTERED["block_fan_in"]


@pytest.mark.parametrize(
    "updater", [lambda: SET(2, 0.3, sign_split=True), lambda: RigL(2, 0.3), lambda: GradualPruning(0.9, updates=5)]
)
def test_a_registered_pattern_trains_is_saved_and_reported(updater, own_pattern, tmp_path):
    callback = updater()
    sparsity = 0.0 if isinstance(callback, GradualPruning) else 0.8
    model = make_model(SAC, policy_kwargs=dict(sparsity=sparsity, pattern="block_fan_in"))
    model.learn(60, callback=callback)
    assert callback.events
    assert model.policy.sparsifier.violations() == []
    for layer in model.policy.sparsifier.layers.values():
        assert layer.weight_mask.flatten(1).sum(1).unique().numel() == 1
    model.save(tmp_path / "model.zip")
    loaded = SAC.load(tmp_path / "model.zip", env=model.get_env())
    loaded.learn(20)
    assert loaded.policy.sparsifier.violations() == []
    assert "block_fan_in" in str(sparsity_report(loaded))


def test_what_cannot_be_registered_is_refused(own_pattern):
    with pytest.raises(TypeError, match="must be an instance of Pattern, got 'fan_in'"):
        register_pattern("fan_in")
    with pytest.raises(ValueError, match="a name of its own, got '2:4'"):
        register_pattern(NofM(2, 4))
    with pytest.raises(ValueError, match="registered: block_fan_in, got 'fan_on'"):
        parse_pattern("fan_on")
