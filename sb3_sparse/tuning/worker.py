"""
A process that works off the queues of studies: ``python -m sb3_sparse.tuning.worker FOLDER STUDY ...``, started by
``sb3-sparse tune``, several at a time.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from sb3_sparse.tuning.storage import HEARTBEAT, STORAGE_VARIABLE, open_storage
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


def run_trial(study: optuna.Study, trial: Trial, subject: Subject, folder: Path) -> Mapping[str, float]:
    """
    Train and evaluate the configuration of a trial. What is found out goes into its attributes.

    :param study: A study.
    :param trial: A trial of it that belongs to this process.
    :param subject: What the study is about.
    :param folder: New folder for the trial's files.
    :return: Every measure by name.
    :raises Diverged: If a training did.
    """
    start = time.monotonic()
    section = _section(study, trial, subject)
    trial.set_user_attr("configuration", as_yaml(subject.env, section))
    seed = trial.user_attrs.get("seed")
    seeds = subject.training_seeds if seed is None else [seed]
    results = [
        train(
            subject.task,
            section,
            folder / f"seed-{seed}",
            seed=seed,
            episode_seeds=subject.episode_seeds,
            save=subject.kind == "report",
        )
        for seed in seeds
    ]
    measures = {**_mean(results), "seconds": round(time.monotonic() - start, 1)}
    trial.set_user_attr("returns", [result[RETURN] for result in results])
    for name, value in measures.items():
        trial.set_user_attr(name, value)
    return measures


@contextmanager
def signs_of_life(storage: BaseStorage, trial_id: int) -> Iterator[None]:
    """
    Record now and then that this process works on a trial, for processes of other machines; journals hold no such record.

    :param storage: The trial's storage.
    :param trial_id: Its number there.
    """
    if not isinstance(storage, RDBStorage):
        yield
        return
    over = threading.Event()

    def record() -> None:
        while True:
            storage.record_heartbeat(trial_id)
            if over.wait(HEARTBEAT):
                return

    thread = threading.Thread(target=record, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _record(study: optuna.Study, trial: Trial, values: list[float] | None, reason: str | None) -> None:
    """Finish a trial, unless it was taken from this process meanwhile."""
    try:
        if reason is not None:
            trial.set_user_attr(REASON, reason)
        study.tell(trial, values, state=TrialState.COMPLETE if reason is None else TrialState.FAIL)
    except (UpdateFinishedTrialError, ValueError):
        if not study.trials[trial.number].state.is_finished():
            raise
        reason = "was given to another process"
    print(f"trial {trial.number}: {reason or values}", flush=True)


def _do(study: optuna.Study, storage: BaseStorage, trial: Trial, folder: Path) -> None:
    """Train a trial and record what came of it; nothing that goes wrong in it is fatal to others."""
    subject = subject_of(study)
    print(f"--- {study.study_name}, trial {trial.number}", flush=True)
    values, reason = None, None
    try:
        with signs_of_life(storage, trial_id_of(study, storage, trial.number)):
            measures = run_trial(study, trial, subject, folder / f"{study.study_name}-{trial.number}")
        values = [measures[name] for name in subject.objectives]
    except Diverged as error:
        reason = f"diverged: {error}"
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
    _record(study, trial, values, reason)


def work(storage: BaseStorage, names: Sequence[str], folder: Path) -> None:
    """
    Do whatever waits in some studies, until the process that started this one is gone.

    :param storage: The storage.
    :param names: Names of the studies, some of which may come into being later.
    :param folder: Folder of the trials' files.
    """
    parent = os.getppid()
    while os.getppid() == parent:
        for name in names:
            study = load_study(storage, name)
            trial = claim(study, storage) if study is not None else None
            if study is not None and trial is not None:
                _do(study, storage, trial, folder)
                break
        else:
            time.sleep(PAUSE)


def main() -> None:
    """Entry point of the process."""
    # What is cut short by Ctrl-C, rl-zoo3 would take for trained. Whoever started this process ends it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    th.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    work(open_storage(os.environ[STORAGE_VARIABLE]), sys.argv[2:], Path(sys.argv[1]))


if __name__ == "__main__":
    main()
