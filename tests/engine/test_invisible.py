"""The engine is invisible: no program can tell which one runs, and each of these breakages of it is found."""

import pytest
from hypothesis import given, settings

from tests.engine.mutants import MUTANTS
from tests.engine.networks import needs_kernels
from tests.engine.programs import OPERATIONS, WITNESSES, difference, programs, run

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


@pytest.mark.parametrize("mutant", MUTANTS)
def test_broken_engines_are_found(mutant):
    # An exception of a broken engine is no finding: a program sees values, and torch's own errors
    with MUTANTS[mutant]():
        assert any(difference(program, "native") is not None for program in WITNESSES)


@pytest.mark.parametrize("program", WITNESSES, ids=str)
def test_programs_that_once_told_or_tell_of_a_mutant(program):
    assert difference(program, "native") is None


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_go_through(operation):
    # One that always ends in an error would keep programs from whatever comes behind it
    program = [("forward", 0, 0), ("save", 0, 0), ("hold", 0, 0), (operation, 0, 0)]
    assert run(program, "torch")[1] is None
