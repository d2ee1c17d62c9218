"""
The trials of a study as a list of jobs that several processes work off, each job done once.

A job is a waiting trial in Optuna's storage, which hands each to one process alone. The trial remembers its job and the
process. If the process vanishes (SIGKILL, power), whoever looks next declares the trial failed, which the storage lets one
process do and once, and the job gets a new trial with the same parameters. A process that comes back after that, having been
stopped for long, finds its trial failed and cannot record anything.

Two processes may fill a queue at the same moment, so a job may get two trials; whoever takes one up sees the other, and the
one with the larger number gives way.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import BaseStorage, fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState

from sb3_sparse.tuning.processes import identity, is_gone
from sb3_sparse.tuning.storage import GRACE, life_file

#: How often a job may kill its process before it counts as failed: what runs out of memory shall not do so for ever.
MAX_ATTEMPTS = 3
#: Seconds between two looks at a queue.
PAUSE = 0.5
#: A trial that was taken by nobody in particular belongs to a process that vanished in between.
_UNCLAIMED = timedelta(seconds=60)

JOB, WORKER, REASON, PARAMETERS = "job", "worker", "reason", "given_parameters"
#: Of a trial whose worker was ended on purpose, which is no attempt.
INTERRUPTED = "interrupted"
#: Reason of a trial that another one of the same job made superfluous.
SUPERFLUOUS = "superfluous"


@dataclass(frozen=True)
class Job:
    """
    :param name: No other job of the study has it.
    :param attributes: What the worker needs to know, as JSON values.
    """

    name: str
    attributes: Mapping[str, Any] = field(default_factory=dict)


def was_killed(trial: FrozenTrial) -> bool:
    """
    :param trial: A trial.
    :return: Whether its process vanished: it failed, and nobody said why.
    """
    return trial.state == TrialState.FAIL and REASON not in trial.user_attrs


def by_job(trials: Iterable[FrozenTrial]) -> dict[str, list[FrozenTrial]]:
    """
    :param trials: Trials of a study.
    :return: By job, without superfluous ones, in their order.
    """
    found: dict[str, list[FrozenTrial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        if JOB in trial.user_attrs and trial.user_attrs.get(REASON) != SUPERFLUOUS:
            found.setdefault(trial.user_attrs[JOB], []).append(trial)
    return found


def outcome(trials: Sequence[FrozenTrial]) -> FrozenTrial:
    """
    :param trials: All trials of a job, at least one.
    :return: The one that counts: the first that was not killed, or the last one if all were.
    """
    alive = [trial for trial in trials if not was_killed(trial)]
    return alive[0] if alive else trials[-1]


def n_attempts(trials: Sequence[FrozenTrial]) -> int:
    """
    :param trials: All trials of a job.
    :return: How many of them were begun, and not interrupted by the user.
    """
    return sum(INTERRUPTED not in trial.user_attrs for trial in trials)


def is_over(trials: Sequence[FrozenTrial]) -> bool:
    """
    :param trials: All trials of a job.
    :return: Whether nothing more comes of it.
    """
    if not trials:
        return False
    trial = outcome(trials)
    return trial.state.is_finished() and (not was_killed(trial) or n_attempts(trials) >= MAX_ATTEMPTS)


def fill(study: optuna.Study, jobs: Sequence[Job]) -> int:
    """
    Give every job a trial that has none, or whose trials were all killed.

    :param study: The study.
    :param jobs: What shall be done.
    :return: How many trials were made.
    """
    present = by_job(study.get_trials(deepcopy=False))
    n_new = 0
    for job in jobs:
        trials = present.get(job.name, [])
        if not trials or (all(map(was_killed, trials)) and n_attempts(trials) < MAX_ATTEMPTS):
            attributes = {**job.attributes, JOB: job.name}
            if trials:
                attributes |= {PARAMETERS: trials[-1].params, "replaces": trials[-1].number}
            study.enqueue_trial({}, user_attrs=attributes)
            n_new += 1
    return n_new


def trial_id_of(study: optuna.Study, storage: BaseStorage, number: int) -> int:
    """
    :param study: A study.
    :param storage: Its storage.
    :param number: Number of a trial in the study.
    :return: The trial's number in the storage.
    """
    return storage.get_trial_id_from_study_id_trial_number(storage.get_study_id_from_name(study.study_name), number)


def claim(study: optuna.Study, storage: BaseStorage, names: Container[str] | None = None) -> Trial | None:
    """
    Take up a waiting trial.

    :param study: The study.
    :param storage: Its storage.
    :param names: Of jobs that come into question; None: all.
    :return: A trial that belongs to this process from now on; None if none waits.
    """
    for waiting in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        if names is not None and waiting.user_attrs.get(JOB) not in names:
            continue
        trial_id = trial_id_of(study, storage, waiting.number)
        try:
            if not storage.set_trial_state_values(trial_id, state=TrialState.RUNNING):
                continue
            storage.set_trial_user_attr(trial_id, WORKER, identity())
            job = by_job(study.get_trials(deepcopy=False)).get(waiting.user_attrs.get(JOB, ""), [])
            if any(other.number < waiting.number and not was_killed(other) for other in job):
                storage.set_trial_user_attr(trial_id, REASON, SUPERFLUOUS)
                storage.set_trial_state_values(trial_id, state=TrialState.FAIL)
                continue
        except UpdateFinishedTrialError:
            continue
        return Trial(study, trial_id)
    return None


def interrupt(study: optuna.Study, storage: BaseStorage, pids: Iterable[int]) -> None:
    """
    Say that the trials of these processes of this machine, which are about to be ended, are no failed attempts.

    :param study: The study.
    :param storage: Its storage.
    :param pids: The processes' numbers.
    """
    workers = [identity(pid) for pid in pids]
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.user_attrs.get(WORKER) in workers:
            with contextlib.suppress(UpdateFinishedTrialError):
                storage.set_trial_user_attr(trial_id_of(study, storage, trial.number), INTERRUPTED, True)


def release_dead(study: optuna.Study, storage: BaseStorage) -> list[int]:
    """
    Declare those trials failed whose process is gone: of this machine at once, of another (or of another container, or of this
    one under an earlier name) after a while without a sign of life.

    :param study: The study.
    :param storage: Its storage.
    :return: Numbers of the trials that this call declared failed.
    """
    released = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get(WORKER)
        trial_id = trial_id_of(study, storage, trial.number)
        age = timedelta() if trial.datetime_start is None else datetime.now() - trial.datetime_start
        gone = age > _UNCLAIMED if worker is None else is_gone(worker)
        file = life_file(storage, trial_id)
        if gone is None and file is not None:
            with contextlib.suppress(FileNotFoundError):
                age = datetime.now() - datetime.fromtimestamp(file.stat().st_mtime)
            gone = age > timedelta(seconds=GRACE)
        if gone:
            try:
                storage.set_trial_state_values(trial_id, state=TrialState.FAIL)
                released.append(trial.number)
            except UpdateFinishedTrialError:
                pass  # Somebody else was faster
            if file is not None:
                file.unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        fail_stale_trials(study)
    return released
