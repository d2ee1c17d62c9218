"""The engine is invisible: no program can tell which one runs, and each of these breakages of it is found."""

import pytest
from hypothesis import given, settings

from tests.engine.networks import needs_kernels
from tests.engine.programs import difference, programs

pytestmark = needs_kernels


@pytest.mark.parametrize("engine", ["native", "auto"])
@given(program=programs)
@settings(max_examples=40)
def test_programs_cannot_tell(engine, program):
    assert difference(program, engine) is None


@pytest.mark.expensive
@pytest.mark.parametrize("engine", ["native", "auto"])
@given(program=programs)
@settings(max_examples=4000, derandomize=False)
def test_many_programs_cannot_tell(engine, program):
    assert difference(program, engine) is None
