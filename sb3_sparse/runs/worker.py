"""What a worker does, wherever it is: train, and return what came of it. Nothing that goes wrong with a training is fatal."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_sparse.conversion.loading import save_atomically
from sb3_sparse.runs.result import DIVERGED, FAILED, RunResult
from sb3_sparse.runs.spec import RunSpec
from sb3_sparse.utils.files import write_text

LOG, PROGRESS = "log.txt", "progress.json"


@contextmanager
def _logged(file: Path) -> Iterator[None]:
    """What this process prints, C libraries included, goes to a file."""
    with file.open("a", buffering=1) as stream:
        for output in (sys.stdout, sys.stderr):
            output.flush()
        kept = [os.dup(1), os.dup(2)]
        try:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
            with redirect_stdout(stream), redirect_stderr(stream):
                yield
        finally:
            for target, descriptor in enumerate(kept, 1):
                os.dup2(descriptor, target)
                os.close(descriptor)


def threads() -> int:
    """
    Count the threads of a worker.

    :return: Threads of a worker: one, for networks this small are no faster with more; ``OMP_NUM_THREADS`` for others.
    """
    return int(os.environ.get("OMP_NUM_THREADS") or "1")


def prepare(gym_packages: Sequence[str]) -> None:
    """
    Get a process ready for trainings.

    :param gym_packages: Modules to import that register environments.
    """
    th.set_num_threads(threads())
    for package in gym_packages:
        importlib.import_module(package)


def checkpoint_file(folder: Path, step: int) -> Path:
    """
    Name the model of an evaluation.

    :param folder: Of a training.
    :param step: Environment steps before the evaluation.
    :return: Its zip.
    """
    return folder / "checkpoints" / f"{step}.zip"


def _save(folder: Path, model: BaseAlgorithm, step: int) -> None:
    file = checkpoint_file(folder, step)
    file.parent.mkdir(exist_ok=True)
    save_atomically(model, file)


def execute(spec: RunSpec, folder: Path, save_checkpoints: bool = False) -> RunResult:
    """
    Train in this process.

    :param spec: The training.
    :param folder: Of its files, see :func:`sb3_sparse.runs.training.train`; and of ``log.txt``, what it prints, and
        ``progress.json``, how far it is.
    :param save_checkpoints: Whether the model of every evaluation is saved, see :func:`checkpoint_file`.
    :return: What came of it; of a training that diverged or failed, the reason.
    """
    from sb3_sparse.runs.training import Diverged, train, versions

    folder.mkdir(parents=True, exist_ok=True)

    def progress(step: int) -> None:
        try:
            write_text(folder / PROGRESS, json.dumps({"step": step, "of": spec.n_timesteps}))
        except OSError as error:
            # No reason to lose the training
            print(f"progress could not be written: {error}")

    with _logged(folder / LOG):
        try:
            save = partial(_save, folder) if save_checkpoints else None
            result = train(spec, folder, progress=progress, at_checkpoint=save)
        except Exception as error:
            text = traceback.format_exc()
            print(text)
            diverged = isinstance(error, Diverged)
            reason = f"diverged: {error}" if diverged else f"{type(error).__name__}: {error}"
            state = DIVERGED if diverged else FAILED
            result = RunResult(spec, state, reason=" ".join(reason.split()), traceback=text, versions=versions())
    (folder / PROGRESS).unlink(missing_ok=True)
    return result


def steps_done(folder: Path) -> int:
    """
    Look how far a training is.

    :param folder: Of a training.
    :return: How many environment steps it says to have made; 0 if it says nothing.
    """
    try:
        return int(json.loads((folder / PROGRESS).read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
