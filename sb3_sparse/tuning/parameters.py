"""What a trial suggests: each parameter of a search knows its name, its values and what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Parameter:
    """
    A parameter of a search: one of several values, or a number.

    :param name: Its name in the study; ``{network}`` stands for the name of a network.
    :param meaning: What its values mean, for the table.
    :param when: When it is suggested, for the table; empty for always.
    :param choices: The values; none for a number.
    :param low: Smallest value. If it is an integer, all values are.
    :param high: Largest value.
    :param log: Whether equal ratios are equally likely.
    """

    name: str
    meaning: str
    when: str = ""
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 1.0
    log: bool = False

    @property
    def values(self) -> str:
        """Its values, for the table."""
        if self.choices:
            return ", ".join(map(str, self.choices))
        return f"{self.low:g} to {self.high:g}{', logarithmic' if self.log else ''}"

    def suggest(self, trial: Any, **names: str) -> Any:
        """
        Let a trial suggest a value.

        :param trial: An Optuna trial, or ``optuna.trial.FixedTrial``.
        :param names: What stands for the parts of the name in braces.
        :return: The trial's value.
        """
        name = self.name.format(**names)
        if self.choices:
            return trial.suggest_categorical(name, list(self.choices))
        suggest = trial.suggest_int if isinstance(self.low, int) else trial.suggest_float
        return suggest(name, self.low, self.high, log=self.log)
