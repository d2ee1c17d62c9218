"""The clock: hand-worked ticks, moments of every kind, and properties over trainings."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sb3_sparse.callbacks.clock import Clock, DividedClock


def set_clock(clock, total=100, learning_starts=0):
    clock.set(total, learning_starts)
    return clock


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (None, None, (20, 100)),  # from learning_starts to the end
        (0.5, None, (50, 100)),
        (0.25, 0.75, (25, 75)),
        (30, 41, (30, 41)),
        (0, 1.0, (0, 100)),
        (0.9, 95, (90, 95)),
        (np.int64(30), np.float32(0.5), (30, 50)),  # numpy's numbers are numbers
        (1, 2, (1, 2)),  # an integer 1 is one step, 1.0 the whole
    ],
)
def test_moments(start, stop, expected):
    clock = set_clock(Clock(5, start=start, stop=stop), learning_starts=20)
    assert (clock.first, clock.last) == expected
    assert [clock.has_started(t) for t in (expected[0] - 1, expected[0])] == [False, True]
    assert [clock.has_stopped(t) for t in (expected[1] - 1, expected[1])] == [False, stop is not None]


def test_steps_are_the_networks_own():
    clock = set_clock(Clock(3, start=10, stop=20))
    assert [step for step in range(1, 10) if clock.is_due(15, step, 0)] == [3, 6, 9]
    assert not clock.is_due(9, 3, 0)
    assert not clock.is_due(20, 3, 0)
    assert clock.on_beat(20, 3, 0)


def test_timesteps_are_the_environments():
    clock, done, due = set_clock(Clock(10, unit="timesteps", start=10, stop=50)), 0, []
    for timestep in (5, 12, 14, 31, 32, 44, 55):  # whenever the network makes a step
        if clock.is_due(timestep, 1, done):
            due.append(timestep)
            done = clock.ticks(timestep)
    assert due == [12, 31, 44]


def test_progress_by_hand():
    clock = set_clock(Clock(1, start=20, stop=60))
    assert [clock.progress(t) for t in (0, 20, 30, 60, 80)] == [0, 0, 0.25, 1, 1]


def test_divided_by_hand():
    clock = set_clock(DividedClock(4, start=0.2, stop=0.6))
    assert [clock.ticks(t) for t in (0, 20, 29, 30, 49, 50, 60, 99)] == [0, 0, 0, 1, 2, 3, 4, 4]
    assert clock.is_due(99, 7, 3)  # one that was missed comes after the stop, too
    assert not clock.is_due(99, 7, 4)


def test_a_training_that_ends_before_it_learns_is_no_mistake():
    clock = set_clock(Clock(5), total=10, learning_starts=100)
    assert (clock.first, clock.last) == (100, 101)


@given(st.integers(1, 50), st.integers(0, 300), st.integers(1, 300), st.integers(1, 400), st.data())
def test_every_tick_of_a_divided_clock_is_met_once(updates, start, length, total, data):
    clock = set_clock(DividedClock(updates, start=start, stop=start + length), total)
    timesteps = [*data.draw(st.sets(st.integers(0, 700), max_size=30)), start + length]
    done = met = 0
    for timestep in sorted(timesteps):
        if clock.is_due(timestep, 1, done):
            assert clock.ticks(timestep) > done
            met, done = met + 1, clock.ticks(timestep)
    assert done == updates
    assert 1 <= met <= updates


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 10**7), st.integers(0, 10**7))
def test_progress_is_monotone_and_bounded(start, stop, total, timestep):
    assume(round(start * total) < round(stop * total))
    clock = set_clock(Clock(1, start=start, stop=stop), total)
    assert 0 <= clock.progress(timestep) <= clock.progress(timestep + 1) <= 1
    assert (clock.progress(clock.first), clock.progress(clock.last)) == (0, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Clock(0), "`every` must be an integer >= 1, got 0"),
        (lambda: Clock(5, unit="episodes"), "`unit` must be one of 'steps', 'timesteps', got 'episodes'"),
        (lambda: Clock(5, start=1.5), r"`start` must be None, a float in \[0, 1\] \(fraction .*\) or an integer .*, got 1.5"),
        (lambda: Clock(5, start=float("nan")), "`start` must be None, a float .* got nan"),
        (lambda: Clock(5, stop=-1), "`stop` must be None, a float .* got -1"),
        (lambda: Clock(5, stop=True), "`stop` must be None, a float .* got True"),
        (lambda: Clock(5, stop="0.5"), "`stop` must be None, a float .* got '0.5'"),
        (lambda: Clock(5, start=0.5, stop=0.5), "`stop`=0.5 must be after `start`=0.5"),
        (lambda: Clock(5, start=7, stop=7), "`stop`=7 must be after `start`=7"),
        (lambda: DividedClock(0, start=0, stop=1), "`updates` must be an integer >= 1, got 0"),
        (lambda: DividedClock(5, start=None, stop=1), r"`start` must be a float in \[0, 1\] .* got None"),
        (
            lambda: set_clock(Clock(5, start=0.9, stop=20)),
            r"`stop`=20 \(environment step 20\) must be after `start`=0.9 \(environment step 90\) in a training of 100 steps",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
