"""
A process that works off the queues of studies: ``python -m sb3_sparse.tuning.worker FOLDER``, started by ``sb3-sparse tune``,
several at a time. What it is to do comes on standard input, whose end is the end of the process that started it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch as th
import yaml
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import Trial, TrialState

import sb3_sparse  # noqa: F401  # registers the policies
from sb3_sparse.tuning.configuration import dense
from sb3_sparse.tuning.files import as_yaml
from sb3_sparse.tuning.objectives import RETURN
from sb3_sparse.tuning.queue import PAUSE, REASON, claim, trial_id_of
from sb3_sparse.tuning.sampling import sample_next
from sb3_sparse.tuning.storage import HEARTBEAT, STORAGE_ERRORS, STORAGE_VARIABLE, life_file, open_storage, patiently
from sb3_sparse.tuning.study import REFERENCE, Subject, load_study, subject_of
from sb3_sparse.tuning.training import Diverged, train


def _section(study: optuna.Study, trial: Trial, subject: Subject) -> dict[str, Any]:
    """The configuration of a trial: a given one, the dense one, or one that the sampler chooses."""
    given = trial.user_attrs.get("configuration")
    if given is not None:
        return yaml.safe_load(given)[subject.env]
    if trial.user_attrs.get(REFERENCE):
        return dense(subject.section, subject.algo)
    return sample_next(study, trial, subject)


def _mean(results: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([result[name] for result in results])) for name in results[0]}


def run_trial(section: dict[str, Any], seed: int | None, subject: Subject, folder: Path) -> dict[str, Any]:
    """
    Train and evaluate a configuration.

    :param section: The configuration.
    :param seed: Of the training; None: those of the subject, one after the other.
    :param subject: What the study is about.
    :param folder: New folder for the trial's files.
    :return: Every measure by name, means over the trainings, and ``returns``, one for each.
    :raises Diverged: If a training did.
    """
    start = time.monotonic()
    results = [
        train(
            subject.task,
            section,
            folder / f"seed-{seed}",
            seed=seed,
            episode_seeds=subject.episode_seeds,
            save=subject.kind == "report",
        )
        for seed in (subject.training_seeds if seed is None else [seed])
    ]
    measures = {**_mean(results), "seconds": round(time.monotonic() - start, 1)}
    return {"returns": [result[RETURN] for result in results], **measures}


@contextmanager
def signs_of_life(storage: BaseStorage, trial_id: int) -> Iterator[None]:
    """
    Record now and then that this process works on a trial, for processes of other machines.

    :param storage: The trial's storage.
    :param trial_id: Its number there.
    """
    file = life_file(storage, trial_id)
    record: Callable[[], object]
    if isinstance(storage, RDBStorage):
        database = storage

        def record() -> None:
            database.record_heartbeat(trial_id)

    elif file is not None:
        record = file.touch
    else:
        yield
        return
    over = threading.Event()

    def keep_recording() -> None:
        while True:
            try:
                record()
            except Exception as error:
                # The training is worth more: the storage may be back at the next sign
                print(f"no sign of life could be recorded: {error}", flush=True)
            if over.wait(HEARTBEAT):
                return

    thread = threading.Thread(target=keep_recording, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if file is not None:
            with suppress(OSError):  # no reason to lose what was trained
                file.unlink(missing_ok=True)


def _record(study: optuna.Study, trial: Trial, found: dict[str, Any], values: list[float] | None, reason: str | None) -> None:
    """Finish a trial, unless it was taken from this process meanwhile."""
    try:
        for name, value in {**found, **({} if reason is None else {REASON: reason})}.items():
            trial.set_user_attr(name, value)
        study.tell(trial, values, state=TrialState.COMPLETE if reason is None else TrialState.FAIL)
    except (UpdateFinishedTrialError, ValueError):
        if not study.trials[trial.number].state.is_finished():
            raise
        reason = "was given to another process"
    print(f"trial {trial.number}: {reason or values}", flush=True)


def _do(study: optuna.Study, storage: BaseStorage, trial: Trial, folder: Path) -> None:
    """
    Train a trial and record what came of it. Nothing that goes wrong in it is fatal to others. What goes wrong with the
    storage is not the trial's fault, and ends this process instead.
    """
    subject = subject_of(study)
    print(f"--- {study.study_name}, trial {trial.number}", flush=True)
    found: dict[str, Any] = {}
    values, reason = None, None
    try:
        section = _section(study, trial, subject)
    except STORAGE_ERRORS:
        raise
    except Exception as error:
        section, reason = {}, _reason(error)
    if reason is None:
        patiently(lambda: trial.set_user_attr("configuration", as_yaml(subject.env, section)))
        seed = trial.user_attrs.get("seed")
        with signs_of_life(storage, trial_id_of(study, storage, trial.number)):
            try:
                found = run_trial(section, seed, subject, folder / f"{study.study_name}-{trial.number}")
                values = [found[name] for name in subject.objectives]
            except Diverged as error:
                reason = f"diverged: {error}"
            except Exception as error:
                reason = _reason(error)
    patiently(lambda: _record(study, trial, found, values, reason))


def _reason(error: Exception) -> str:
    traceback.print_exc()
    return f"{type(error).__name__}: {error}"


class Orders:
    """
    What the process that started this one wants done.

    :param lines: As they come: a study's name and the names of its jobs as a JSON list, until the next one.
    """

    def __init__(self, lines: Iterable[bytes]) -> None:
        self.current: tuple[str, frozenset[str]] | None = None
        self.ended = threading.Event()
        threading.Thread(target=self._listen, args=(lines,), daemon=True).start()

    def _listen(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            study, jobs = json.loads(line)
            self.current = study, frozenset(jobs)
        self.ended.set()


def work(storage: BaseStorage, orders: Orders, folder: Path) -> None:
    """
    Do what is wanted and waits, until nobody wants anything any more.

    :param storage: The storage.
    :param orders: What is wanted.
    :param folder: Folder of the trials' files.
    """
    while not orders.ended.is_set():
        name, jobs = orders.current or ("", frozenset())
        study = load_study(storage, name) if name else None
        trial = claim(study, storage, jobs) if study is not None else None
        if study is not None and trial is not None:
            _do(study, storage, trial, folder)
        else:
            orders.ended.wait(PAUSE)


def main() -> None:
    """Entry point of the process."""
    # What is cut short by Ctrl-C, rl-zoo3 would take for trained. Whoever started this process ends it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    orders = Orders(sys.stdin.buffer)
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gym-packages", nargs="*", default=[])
    arguments = parser.parse_args()
    for package in arguments.gym_packages:
        importlib.import_module(package)
    th.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    work(open_storage(os.environ[STORAGE_VARIABLE]), orders, arguments.folder)


if __name__ == "__main__":
    main()
