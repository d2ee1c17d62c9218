"""One home for checks: numpy's numbers are numbers, bools and infinities are not, and every message says what is allowed."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_sparse.masks.config import SparsityConfig
from sb3_sparse.masks.patterns import parse_pattern
from sb3_sparse.masks.plan import LayerInfo, make_plan
from sb3_sparse.quantization.config import QuantizationConfig
from sb3_sparse.utils.checks import is_integer, is_number, require_choice, require_integer, require_positive

INTEGERS = (int, np.int8, np.int32, np.int64, np.uint16)
FLOATS = (float, np.float16, np.float32, np.float64)


@given(value=st.integers(1, 100), kind=st.sampled_from(INTEGERS))
def test_whole_numbers(value, kind):
    assert is_integer(kind(value))
    assert is_number(kind(value))
    found = require_integer("every", kind(value), low=1)
    assert found == value
    assert type(found) is int


@given(value=st.floats(0.125, 100, width=16), kind=st.sampled_from(FLOATS))
def test_numbers(value, kind):
    assert is_number(kind(value))
    assert not is_integer(kind(value))
    found = require_positive("rate", kind(value))
    assert found == value
    assert type(found) is float


@pytest.mark.parametrize("value", [True, np.bool_(True), math.nan, math.inf, np.float32("nan"), "1", None, 1j, [1]])
def test_what_is_no_number(value):
    assert not is_number(value)
    assert not is_integer(value)
    with pytest.raises(ValueError, match="`every` must be an integer >= 1, got "):
        require_integer("every", value, low=1)
    with pytest.raises(ValueError, match="`rate` must be a positive number, got "):
        require_positive("rate", value)


def test_messages():
    with pytest.raises(ValueError, match=r"`bits` must be an integer in \[2, 8\], got 9"):
        require_integer("bits", 9, low=2, high=8)
    with pytest.raises(ValueError, match=r"`drop` must be a number in \(0, 1\), got 1.0"):
        require_positive("drop", 1.0, below=1)
    with pytest.raises(ValueError, match="`unit` must be one of 'steps', 'timesteps', got 'days'"):
        require_choice("unit", "days", ("steps", "timesteps"))


@pytest.mark.parametrize("kind", FLOATS)
def test_numpy_numbers_wherever_a_sparsity_is_given(kind):
    layers = [LayerInfo("actor.mu.0", "actor", (8, 8), 0), LayerInfo("actor.mu.2", "actor", (8, 8), 1)]
    for config in (
        SparsityConfig(sparsity=kind(0.5)),
        SparsityConfig(sparsity={"actor": kind(0.5)}),
        SparsityConfig(distribution={"actor.*": kind(0.5)}),
    ):
        assert sum(plan.n_active for plan in make_plan(config, layers).values()) == 64
    assert SparsityConfig(mask_seed=np.int64(3)).mask_seed == 3
    assert QuantizationConfig(bits=np.int64(4), input_bits=np.int32(16), averaging=kind(0.5)).bits == 4


@pytest.mark.parametrize("spec", ["1:3", "2:3", "1:7", "2:4", "5:6"])
@pytest.mark.parametrize("digits", [3, 4, 5, 12])
def test_a_rounded_sparsity_agrees_with_its_pattern(spec, digits):
    """0.667 and 0.6667 mean 1:3, as a number, by network and by layer; the plan is the pattern's, not the rounded number's."""
    pattern = parse_pattern(spec)
    rounded = round(pattern.fixed_sparsity, digits)
    layers = [LayerInfo("actor.mu.0", "actor", (30, 42), 0)]
    exact = make_plan(SparsityConfig(pattern=spec), layers)
    for wanted in (dict(sparsity=rounded), dict(sparsity={"actor": rounded}), dict(distribution={"actor.mu.0": rounded})):
        assert make_plan(SparsityConfig(pattern=spec, **wanted), layers) == exact


def test_another_sparsity_does_not():
    layers = [LayerInfo("actor.mu.0", "actor", (30, 42), 0)]
    with pytest.raises(ValueError, match=r"`sparsity`=0\.66 of network 'actor' and `pattern`='1:3' disagree"):
        make_plan(SparsityConfig(pattern="1:3", sparsity=0.66), layers)
    with pytest.raises(
        ValueError, match=r"gives layer 'actor\.mu\.0' a sparsity of 0\.66, but `pattern`='1:3' means 0\.666667"
    ):
        make_plan(SparsityConfig(pattern="1:3", distribution={"actor.mu.0": 0.66}), layers)
