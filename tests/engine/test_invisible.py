"""The engine is invisible: no program can tell which one runs, and each of these breakages of it is found."""

import pytest
from hypothesis import Phase, find, given, settings

from tests.engine.mutants import MUTANTS
from tests.engine.networks import needs_kernels
from tests.engine.programs import WITNESSES, difference, programs

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


@pytest.mark.expensive
@pytest.mark.parametrize("mutant", MUTANTS)
def test_broken_engines_are_found(mutant):
    def told(program):
        with MUTANTS[mutant]():
            try:
                return difference(program, "native") is not None
            except Exception:
                return True  # another error than torch's

    if any(map(told, WITNESSES)):
        return
    program = find(programs, told, settings=settings(max_examples=3000, database=None, phases=[Phase.generate]))
    assert difference(program, "native") is None


@pytest.mark.parametrize("program", WITNESSES, ids=str)
def test_programs_that_once_told_or_tell_of_a_mutant(program):
    assert difference(program, "native") is None
