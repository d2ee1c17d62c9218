"""What rl-zoo3's train leaves and says when a training cannot even be set up."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

#: What rl-zoo3, Stable-Baselines3 and torch raise for arguments that do not fit; anything else keeps its traceback.
_MISTAKES = (AssertionError, RuntimeError, TypeError, ValueError, KeyError, NotImplementedError)


@contextmanager
def refusing_setup(log_folder: Path, algo: str) -> Iterator[None]:
    """
    Turn what goes wrong before the first step of a training into a refusal that leaves nothing behind: rl-zoo3 makes the
    run's folder before it makes the model.

    :param log_folder: Where runs lie.
    :param algo: rl-zoo3's name of the algorithm.
    :raises ValueError: In place of any such error.
    """
    parents = [folder for folder in (log_folder / algo, log_folder) if not folder.exists()]
    try:
        yield
    except _MISTAKES as error:
        manager = _manager_in_setup(error)
        if manager is None:
            raise
        _forget_run(Path(manager.save_path))
        for folder in parents:
            with suppress(OSError):  # somebody else's run may lie there by now
                folder.rmdir()
        raise ValueError(error) from error


def _manager_in_setup(error: BaseException) -> Any:
    """rl-zoo3's ``ExperimentManager`` if the error was raised while it set up, else None."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "setup_experiment":
            return trace.tb_frame.f_locals.get("self")
        trace = trace.tb_next
    return None


def _forget_run(folder: Path) -> None:
    """Take a run's folder away if it holds nothing but the beginnings of monitors' files."""
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    if folder.is_dir() and all(path.name.endswith("monitor.csv") for path in files):
        shutil.rmtree(folder)
