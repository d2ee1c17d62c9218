"""What a trial suggests: each parameter of a search knows its name, its values and what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Parameter:
    """
    A parameter of a search.

    :param name: Its name in the study; ``{network}`` stands for the name of a network.
    :param meaning: What its values mean, for the table.
    :param when: When it is suggested, for the table; empty for always.
    """

    name: str
    meaning: str
    when: str = ""

    @property
    def values(self) -> str:
        """Its values, for the table."""
        raise NotImplementedError

    def suggest(self, trial: Any, **names: str) -> Any:
        """
        Let a trial suggest a value.

        :param trial: An Optuna trial, or ``optuna.trial.FixedTrial``.
        :param names: What stands for the parts of the name in braces.
        :return: The trial's value.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Choice(Parameter):
    """
    One of several values.

    :param choices: The values.
    """

    choices: tuple[Any, ...] = ()

    @property
    def values(self) -> str:
        """Its values, for the table."""
        return ", ".join(str(choice) for choice in self.choices)

    def suggest(self, trial: Any, **names: str) -> Any:
        """See :meth:`Parameter.suggest`."""
        return trial.suggest_categorical(self.name.format(**names), list(self.choices))


@dataclass(frozen=True)
class Number(Parameter):
    """
    A float.

    :param low: Smallest value.
    :param high: Largest value.
    :param log: Whether equal ratios are equally likely.
    """

    low: float = 0.0
    high: float = 1.0
    log: bool = False

    @property
    def values(self) -> str:
        """Its values, for the table."""
        return f"{self.low:g} to {self.high:g}{', logarithmic' if self.log else ''}"

    def suggest(self, trial: Any, **names: str) -> float:
        """See :meth:`Parameter.suggest`."""
        return trial.suggest_float(self.name.format(**names), self.low, self.high, log=self.log)


@dataclass(frozen=True)
class Integer(Number):
    """An integer, with the arguments of :class:`Number`."""

    def suggest(self, trial: Any, **names: str) -> int:
        """See :meth:`Parameter.suggest`."""
        return trial.suggest_int(self.name.format(**names), int(self.low), int(self.high), log=self.log)
