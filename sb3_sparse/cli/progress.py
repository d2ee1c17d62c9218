"""Bars that say how far a command is, where somebody looks at a terminal."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sb3_sparse.export.episodes import Watch, unwatched


def _installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in packages)


def can_show_progress() -> bool:
    """
    Say whether Stable-Baselines3's progress bar can be shown, which goes to standard output.

    :return: Whether its packages are there, and somebody looks at a terminal.
    """
    return sys.stdout.isatty() and _installed("tqdm", "rich")


@contextmanager
def progress_bars() -> Iterator[Watch]:
    """
    Show a bar for each thing that is done, on standard error: what a command prints can still go into a file.

    :return: What has to be told how far it is. Without a terminal, or without rich, it shows nothing.
    """
    if not (sys.stderr.isatty() and _installed("rich")):
        yield unwatched
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TimeElapsedColumn, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        known: dict[str, TaskID] = {}

        def watch(what: str, done: int, total: int) -> None:
            if what not in known:
                known[what] = bars.add_task(what, total=total)
            bars.update(known[what], completed=done)

        yield watch
