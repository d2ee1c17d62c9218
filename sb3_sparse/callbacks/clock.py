"""
When a callback acts: the one clock of all callbacks, with the same words everywhere.

``every`` counts in ``unit``; ``start`` and ``stop`` are moments of the training, a float a fraction of it, an integer
environment steps. What a clock must remember (which update was the last one) it does not keep itself: it is part of the
policy's state, so that a training that is saved and loaded goes on in time.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from sb3_sparse.utils.checks import require_choice, require_integer

#: What ``every`` counts: steps of the network's own optimizer, or steps of the environments.
UNITS = ("steps", "timesteps")


def check_moment(name: str, value: Any, *, optional: bool = True) -> None:
    """
    Check a moment of the training: a fraction of it, or environment steps.

    :param name: Name of the argument.
    :param value: Its value.
    :param optional: Whether None is allowed.
    :raises ValueError: If it is neither a float in [0, 1], nor a non-negative integer, nor None where that is allowed.
    """
    if value is None and optional:
        return
    is_number, is_integer = isinstance(value, Real) and not isinstance(value, bool), isinstance(value, Integral)
    if not is_number or not (value >= 0 and (is_integer or value <= 1)):
        allowed = "a float in [0, 1] (fraction of the training) or an integer (environment steps)"
        raise ValueError(f"`{name}` must be {'None, ' if optional else ''}{allowed}, got {value!r}")


class Clock:
    """
    Ticks at every ``every``-th step between two moments of a training.

    :param every: Period in ``unit``, at least 1.
    :param unit: ``"steps"``: of the optimizer of the network that is asked about (a TD3 actor makes half as many as its
        critic). ``"timesteps"``: of the environments; a network then acts at its first optimizer step after the tick.
    :param start: No tick before. None: when gradient steps begin (``learning_starts``).
    :param stop: No tick from then on. None: ticks until the training ends.
    :raises ValueError: For arguments out of range.
    """

    def __init__(
        self, every: int = 1, *, unit: str = "steps", start: float | int | None = None, stop: float | int | None = None
    ) -> None:
        self.every = require_integer("every", every, low=1)
        self.unit = require_choice("unit", unit, UNITS)
        check_moment("start", start)
        check_moment("stop", stop)
        self.start, self.stop = start, stop
        alike = isinstance(start, Integral) == isinstance(stop, Integral)
        if start is not None and stop is not None and alike and stop <= start:
            raise ValueError(f"`stop`={stop!r} must be after `start`={start!r}")
        #: Start and stop of the present training in environment steps; see :meth:`set`.
        self.first, self.last = 0, 1

    def set(self, total: int, learning_starts: int = 0) -> None:
        """
        Say in which training the clock runs from now on.

        :param total: Environment steps of the training, steps made before it included.
        :param learning_starts: Environment step at which gradient steps begin.
        :raises ValueError: If the clock stops before it starts.
        """

        def timestep(moment: float | int | None, default: int) -> int:
            if moment is None:
                return default
            return int(moment) if isinstance(moment, Integral) else round(float(moment) * total)

        first, last = timestep(self.start, learning_starts), timestep(self.stop, total)
        if self.stop is None:
            # A training that ends before the clock starts, to be continued, is no mistake of the callback's
            last = max(last, first + 1)
        if last <= first:
            raise ValueError(
                f"`stop`={self.stop!r} (environment step {last}) must be after `start`={self.start!r} (environment step "
                f"{first}) in a training of {total} steps"
            )
        self.first, self.last = first, last

    def has_started(self, timestep: int) -> bool:
        """
        Whether the start of the clock has come.

        :param timestep: Environment step.
        :return: Whether the start has come.
        """
        return timestep >= self.first

    def has_stopped(self, timestep: int) -> bool:
        """
        Whether the clock has stopped.

        :param timestep: Environment step.
        :return: Whether there is a stop and it has come.
        """
        return self.stop is not None and timestep >= self.last

    def progress(self, timestep: int) -> float:
        """
        How far the training is between start and stop.

        :param timestep: Environment step.
        :return: Progress from start to stop, in [0, 1]; schedules run over it.
        """
        return min(max((timestep - self.first) / (self.last - self.first), 0.0), 1.0)

    def ticks(self, timestep: int) -> int:
        """
        Count the ticks up to an environment step.

        :param timestep: Environment step.
        :return: How many ticks there have been by then, those outside of start and stop included. With the unit
            ``"steps"`` this says nothing: another clock is counted on.
        """
        return timestep // self.every

    def on_beat(self, timestep: int, step: int, ticks_done: int) -> bool:
        """
        Whether a step is one at which the clock ticks.

        :param timestep: Environment step.
        :param step: Step of the network's optimizer, counted from 1.
        :param ticks_done: What :meth:`ticks` said at the last update.
        :return: Whether there is a tick, whatever start and stop say.
        """
        return step % self.every == 0 if self.unit == "steps" else self.ticks(timestep) > ticks_done

    def is_due(self, timestep: int, step: int, ticks_done: int) -> bool:
        """
        Whether something is to be done at a step.

        :param timestep: Environment step.
        :param step: Step of the network's optimizer, counted from 1.
        :param ticks_done: What :meth:`ticks` said at the last update.
        :return: Whether there is a tick between start and stop.
        """
        is_open = self.has_started(timestep) and not self.has_stopped(timestep)
        return is_open and self.on_beat(timestep, step, ticks_done)


class DividedClock(Clock):
    """
    Ticks ``updates`` times, equally spaced between two moments of a training: at ``stop``, but not at ``start``.

    :param updates: Number of ticks, at least 1.
    :param start: A float is a fraction of the training, an integer environment steps.
    :param stop: As ``start``, after it. The last tick is there.
    :raises ValueError: For arguments out of range.
    """

    def __init__(self, updates: int, *, start: float | int, stop: float | int) -> None:
        check_moment("start", start, optional=False)
        check_moment("stop", stop, optional=False)
        super().__init__(unit="timesteps", start=start, stop=stop)
        self.updates = require_integer("updates", updates, low=1)

    def ticks(self, timestep: int) -> int:
        """
        Count the ticks up to an environment step.

        :param timestep: Environment step.
        :return: How many of the ticks there have been by then.
        """
        return min(max(timestep - self.first, 0) * self.updates // (self.last - self.first), self.updates)

    def is_due(self, timestep: int, step: int, ticks_done: int) -> bool:
        """
        Whether something is to be done at a step.

        :param timestep: Environment step.
        :param step: Step of the network's optimizer; not used.
        :param ticks_done: What :meth:`ticks` said at the last update.
        :return: Whether there is a tick; one that was missed comes after ``stop`` too.
        """
        return self.on_beat(timestep, step, ticks_done)
