"""
DS-TD3's released code (Sokar et al., IJCAI 2022): what ``sign_split="proportional"`` drops.

The code sorts a layer's weights. Of the positive ones it takes the weight at the place of the fraction and keeps what is
larger, so that one goes too; of the negative ones the weight at the place of the rest and keeps what is smaller. What is
exactly zero goes. Growing tops up to the number there was. The paper (section 4.1) says half of the weights to drop of each
sign, which is ``"half"``.
"""

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from sb3_sparse.masks.drop_and_grow import regrow, survivors
from sb3_sparse.masks.patterns import Unstructured


def kept_by_the_code(weights, fraction):
    """The rule once more, by thresholds."""
    positive, negative = np.sort(weights[weights > 0]), np.sort(weights[weights < 0])
    kept = np.zeros(weights.shape, bool)
    if len(positive):
        kept |= weights > positive[int(fraction * len(positive))]
    if len(negative):
        place = int((1 - fraction) * len(negative))
        kept |= weights < (negative[place] if place < len(negative) else 0.0)
    return kept


@given(st.integers(1, 12), st.integers(2, 40), st.floats(0.1, 0.9), st.floats(0.0, 0.99), st.integers(0, 10**6))
def test_the_same_weights_as_the_code(rows, columns, density, fraction, seed):
    generator = np.random.default_rng(seed)
    mask = generator.random((rows, columns)) < density
    weights = generator.standard_normal((rows, columns)) * mask
    weights[generator.random((rows, columns)) < 0.05] = 0.0
    expected = kept_by_the_code(weights, fraction)
    kept = survivors(Unstructured(), th.tensor(weights), th.tensor(mask), fraction, sign_split="proportional").numpy()
    if expected.any() or not mask.any():
        assert np.array_equal(kept, expected)
    else:
        assert kept.sum() == 1  # the code leaves a layer without weights
    if mask.any():
        new = regrow(Unstructured(), th.tensor(kept), th.tensor(mask), th.tensor(generator.random((rows, columns))))
        assert int(new.sum()) == mask.sum()


@pytest.mark.parametrize(
    ("n_positive", "n_negative", "fraction", "dropped"),
    # eta = 0.05: of 100 positive ones 5 + 1, of 100 negative ones 5; of 110 each 5 + 1 and 110 - 104 = 6
    [(100, 100, 0.05, 11), (110, 110, 0.05, 12), (1, 1, 0.05, 1), (1000, 0, 0.05, 51), (0, 1000, 0.05, 50)],
)
def test_numbers_by_hand(n_positive, n_negative, fraction, dropped):
    weights = th.cat([th.arange(1.0, n_positive + 1), -th.arange(1.0, n_negative + 1), th.zeros(50)])[None]
    kept = survivors(Unstructured(), weights, weights != 0, fraction, sign_split="proportional")
    assert n_positive + n_negative - int(kept.sum()) == dropped
