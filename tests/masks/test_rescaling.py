"""Standardized survivors: a case by hand, and what holds for every weight."""

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from sb3_sparse.masks.rescaling import standardized

WEIGHT = th.tensor([[1.0, 0.0, 3.0, 0.0], [0.0, 0.0, 5.0, 7.0]])
MASK = WEIGHT != 0


def test_by_hand():
    # 1, 3, 5, 7: mean 4, variance (9 + 1 + 1 + 9) / 4 = 5; two outputs have four inputs left, two each
    sd = 5**0.5
    expected = th.tensor([[-3 / sd, 0.0, -1 / sd, 0.0], [0.0, 0.0, 1 / sd, 3 / sd]])
    assert th.allclose(standardized(WEIGHT, MASK, "unit"), expected)
    assert th.allclose(standardized(WEIGHT, MASK, "fan_in"), expected / 2**0.5)
    assert th.equal(WEIGHT, th.tensor([[1.0, 0.0, 3.0, 0.0], [0.0, 0.0, 5.0, 7.0]]))


def test_a_weight_that_stands_at_the_mean_becomes_zero_and_still_exists():
    weight = th.tensor([[1.0, 2.0, 3.0, 0.0]])
    result = standardized(weight, weight != 0, "unit")
    assert result[0, 1] == 0
    assert result[0, 3] == 0


@pytest.mark.parametrize(
    "weight", [[[2.0, 2.0, 0.0]], [[2.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]], [[float("nan"), 1.0, 2.0]], [[float("inf"), 1.0, 0.0]]]
)
@pytest.mark.parametrize("scale", ["unit", "fan_in"])
def test_what_cannot_be_divided_stays(weight, scale):
    weight = th.tensor(weight)
    result = standardized(weight, weight != 0, scale)
    assert th.equal(result.nan_to_num(nan=-1.0), weight.nan_to_num(nan=-1.0))
    assert result is not weight


@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(2, 9), st.floats(0.2, 1.0), st.sampled_from(["unit", "fan_in"]))
def test_mean_and_deviation_of_what_is_left(seed, n_outputs, n_inputs, density, scale):
    generator = th.Generator().manual_seed(seed)
    mask = th.rand(n_outputs, n_inputs, generator=generator) < density
    weight = (3 + 2 * th.randn(n_outputs, n_inputs, generator=generator)) * mask
    result = standardized(weight, mask, scale)
    assert bool((result[~mask] == 0).all())
    if int(mask.sum()) > 1:
        kept = result[mask].double().numpy()
        wanted = 1.0 if scale == "unit" else (int(mask.sum()) / n_outputs) ** -0.5
        assert np.mean(kept) == pytest.approx(0, abs=1e-5)
        assert np.std(kept) == pytest.approx(wanted, rel=1e-5)
        # The order of the weights, and so what the next pruning would take by size around the mean, is the same
        assert np.array_equal(np.argsort(weight[mask].numpy(), kind="stable"), np.argsort(result[mask].numpy(), kind="stable"))
