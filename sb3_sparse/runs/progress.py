"""How far it is, as lines on a terminal or in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import fmean
from typing import TextIO

from sb3_sparse.runs.driver import Driver
from sb3_sparse.runs.result import COMPLETE


class Progress:
    """
    A driver's watch that prints a line whenever something has ended.

    :param title: Begins every line.
    :param total: How many things there are to do.
    :param before: Trainings that the driver had finished before.
    :param counts: Gives how many are over and how many of these failed; None: as many trainings as the driver has finished.
    :param extra: Gives what a line ends with.
    :param stream: Where to print; None: standard error.
    """

    def __init__(
        self,
        title: str,
        total: int,
        before: int = 0,
        counts: Callable[[], tuple[int, int]] | None = None,
        extra: Callable[[], str] = lambda: "",
        stream: TextIO | None = None,
    ) -> None:
        self.title, self.total, self.before, self.counts, self.extra = title, total, before, counts, extra
        self.stream = sys.stderr if stream is None else stream
        self._shown: tuple[int, int] | None = None

    def _counts(self, driver: Driver) -> tuple[int, int]:
        if self.counts is not None:
            return self.counts()
        trained = driver.trained[self.before :]
        return len(trained), sum(result.state != COMPLETE for result in trained)

    def __call__(self, driver: Driver) -> None:
        """
        Print, if there is news.

        :param driver: What is watched.
        """
        counts = self._counts(driver)
        if counts != self._shown:
            self._shown = counts
            print(self.line(driver), file=self.stream, flush=True)

    def line(self, driver: Driver) -> str:
        """
        Say how far it is.

        :param driver: What is watched.
        :return: Done, failed and running, the time left, and the extra.
        """
        over, failed = self._counts(driver)
        parts = [f"{time.strftime('%H:%M:%S')} {self.title}: {over} of {self.total} done"]
        if failed:
            parts.append(f"{failed} failed")
        parts.append(f"{len(driver.running)} running")
        seconds = [result.seconds for result in driver.trained[self.before :] if result.state == COMPLETE]
        if seconds and self.total > over:
            minutes = fmean(seconds) * (self.total - over) / driver.engine.size / 60
            parts.append(f"about {minutes:.0f} min left" if minutes >= 1 else "less than a minute left")
        extra = self.extra()
        return ", ".join(parts) + (f" | {extra}" if extra else "")
