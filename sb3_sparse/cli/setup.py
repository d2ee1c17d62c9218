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
def refusing_setup(script: Any, log_folder: Path, algo: str) -> Iterator[None]:
    """
    Turn what goes wrong before the first step of a training into a refusal that leaves nothing behind: rl-zoo3 makes the
    run's folder before it makes the model.

    :param script: The module of rl-zoo3's train.
    :param log_folder: Where runs lie.
    :param algo: rl-zoo3's name of the algorithm.
    :raises ValueError: In place of any such error.
    """
    parents = [folder for folder in (log_folder / algo, log_folder) if not folder.exists()]
    before = script.ExperimentManager

    class Refusing(before):  # type: ignore[misc, valid-type]
        def setup_experiment(self) -> Any:
            try:
                return super().setup_experiment()
            except _MISTAKES as error:
                _forget_run(Path(self.save_path))
                for folder in parents:
                    with suppress(OSError):  # somebody else's run may lie there by now
                        folder.rmdir()
                raise ValueError(error) from error

    script.ExperimentManager = Refusing
    try:
        yield
    finally:
        script.ExperimentManager = before


def _forget_run(folder: Path) -> None:
    """Take a run's folder away if it holds nothing but the beginnings of monitors' files."""
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    if folder.is_dir() and all(path.name.endswith("monitor.csv") for path in files):
        shutil.rmtree(folder)
