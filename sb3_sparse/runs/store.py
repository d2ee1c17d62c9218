"""
Where results lie: a folder for each training, in which ``result.json`` is there as a whole or not at all. What has no such
file has not been trained; so nothing else says how far a sweep is, and nothing can contradict it.

The driver alone writes results. Its lock goes with its process, however that ends.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import pstdev
from typing import Any

from sb3_sparse.runs.result import RunResult
from sb3_sparse.runs.spec import RunSpec
from sb3_sparse.runs.tables import to_csv
from sb3_sparse.utils.files import make_folder, write_text

RESULT = "result.json"
_LOCK = "driver.lock"


class Locked(ValueError):
    """Another process works there."""


@contextlib.contextmanager
def locked(file: Path, what: str) -> Iterator[None]:
    """
    Hold a lock that ends with this process, also by SIGKILL.

    :param file: The lock's file, which is made and stays.
    :param what: What is locked, for the error.
    :raises Locked: If another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows: nobody is kept from it
        yield
        return
    with file.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Locked(f"another process of sb3-sparse works on {what}: wait for its end, or give another place") from error
        yield


class Store:
    """
    A folder of trainings.

    :param folder: Of all trainings; made if need be.
    :raises ValueError: If it cannot be made or written to.
    """

    def __init__(self, folder: str | Path, option: str = "--output") -> None:
        self.folder = make_folder(option, folder).absolute()

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """
        Keep other drivers out.

        :return: Inside it this process alone trains for this store.
        :raises Locked: If another one does.
        """
        return locked(self.folder / _LOCK, str(self.folder))

    def path(self, spec: RunSpec) -> Path:
        """
        Find the folder of a training.

        :param spec: A training.
        :return: Its folder.
        """
        return self.folder / spec.key

    def get(self, spec: RunSpec) -> RunResult | None:
        """
        Look up what came of a training.

        :param spec: A training.
        :return: Its result, or that of the same training with more checkpoints; None if there is none.
        :raises ValueError: If a file there is no result, or one of another training; the message names it.
        """
        exact = self.path(spec)
        others = sorted(folder for folder in self.folder.glob(f"*-{spec.training_key}-*") if folder != exact)
        for folder in (exact, *others):
            file = folder / RESULT
            if file.is_file():
                result = read_result(file)
                if result.spec.includes(spec):
                    return result
                if folder == exact:
                    raise ValueError(f"{file} is the result of another training: remove it")
        return None

    def put(self, result: RunResult) -> Path:
        """
        Store what came of a training.

        :param result: A result.
        :return: Its file, which is whole.
        """
        folder = self.path(result.spec)
        folder.mkdir(parents=True, exist_ok=True)
        if result.evaluations:
            write_text(folder / "evaluations.csv", to_csv(evaluation_rows(result)))
        if result.traceback:
            write_text(folder / "error.txt", f"{result.reason}\n\n{result.traceback}\n")
        # Last: where it is, everything is
        return write_text(folder / RESULT, result.to_json())

    def discard(self, result: RunResult) -> None:
        """
        Forget a result, so that the training begins again.

        :param result: The result.
        """
        folder = self.path(result.spec)
        (folder / RESULT).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    def results(self) -> list[RunResult]:
        """
        Read everything that is there.

        :return: All results, sorted by key.
        """
        return [read_result(file) for file in sorted(self.folder.glob(f"*/{RESULT}"))]


def read_result(file: Path) -> RunResult:
    """
    Read a file.

    :param file: A ``result.json``.
    :return: What it says.
    :raises ValueError: If it is none; the message names it.
    """
    try:
        return RunResult.from_json(file.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: {error}. Remove it to train this again") from error


def evaluation_rows(result: RunResult) -> list[dict[str, Any]]:
    """
    The evaluations of a training as a table.

    :param result: Its result.
    :return: A row for each, with returns, lengths of episodes and costs.
    """
    return [
        {
            "step": one.step,
            "return": one.mean,
            "std": pstdev(one.returns),
            "lowest": min(one.returns),
            "highest": max(one.returns),
            "episodes": len(one.returns),
            "length": sum(one.lengths) / len(one.lengths) if one.lengths else "",
            **one.costs,
        }
        for one in result.evaluations
    ]
