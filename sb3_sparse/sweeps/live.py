"""Every training of a sweep while it goes on: a table on a terminal, lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sb3_sparse.runs.driver import Driver, Running
from sb3_sparse.runs.progress import Progress
from sb3_sparse.runs.result import COMPLETE
from sb3_sparse.runs.spec import RunSpec
from sb3_sparse.runs.store import Store
from sb3_sparse.runs.worker import steps_done

#: Lines of trainings that are over or wait.
_SHOWN = 12


def states(specs: Sequence[RunSpec], store: Store) -> dict[str, str]:
    """
    Look what is done.

    :param specs: The trainings.
    :param store: Where results lie.
    :return: State of those that have a result, by key.
    """
    return {spec.key: result.state for spec in specs if (result := store.get(spec)) is not None}


def _left(running: Running) -> tuple[str, str, str]:
    """Progress, speed and time left of a training."""
    done, seconds = steps_done(running.folder), time.monotonic() - running.since
    if not done or not seconds:
        return "begins", "-", "-"
    speed = done / seconds
    left = (running.spec.n_timesteps - done) / speed
    return f"{100 * done / running.spec.n_timesteps:.0f} %", f"{speed:,.0f} steps/s", f"{left / 60:.1f} min"


class Table(Progress):
    """
    How far a sweep is, as a table of all trainings or, like any progress, in lines.

    :param specs: The trainings.
    :param store: Where results lie.
    """

    def __init__(self, specs: Sequence[RunSpec], store: Store) -> None:
        self.specs = list(dict((spec.key, spec) for spec in specs).values())
        self.known = states(self.specs, store)
        self._seen = 0
        super().__init__("sweep", len(self.specs))

    def _counts(self, driver: Driver) -> tuple[int, int]:
        """Other runs of the sweep count too."""
        for result in driver.trained[self._seen :]:
            self.known[result.spec.key] = result.state
        self._seen = len(driver.trained)
        return len(self.known), sum(state != COMPLETE for state in self.known.values())

    def render(self, driver: Driver):  # type: ignore[no-untyped-def]
        """
        Draw the table.

        :param driver: What trains.
        :return: Rich's table.
        """
        from rich.table import Table as RichTable

        table = RichTable(title=self.line(driver))
        for name in ("training", "state", "progress", "speed", "left"):
            table.add_column(name)
        running = {one.spec.key: one for one in driver.running}
        others = [spec for spec in self.specs if spec.key not in running]
        for one in running.values():
            table.add_row(_name(one.spec), "running", *_left(one))
        for spec in others[:_SHOWN]:
            table.add_row(_name(spec), self.known.get(spec.key, "waits"), "", "", "")
        if len(others) > _SHOWN:
            table.add_row(f"... and {len(others) - _SHOWN} more", "", "", "", "")
        return table


def _name(spec: RunSpec) -> str:
    return f"{spec.algo} {spec.env} seed {spec.seed} {spec.training_key[:6]}"


@contextmanager
def watched(driver: Driver, specs: Sequence[RunSpec]) -> Iterator[None]:
    """
    Show what a driver does while it works: a table on a terminal, otherwise a line whenever something has ended.

    :param driver: The driver.
    :param specs: All trainings that there may be.
    """
    table = Table(specs, driver.store)
    if not sys.stderr.isatty():
        driver.watch = table
        yield
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), refresh_per_second=2) as live:
        driver.watch = lambda driver: live.update(table.render(driver))
        yield
        live.update(table.render(driver))
