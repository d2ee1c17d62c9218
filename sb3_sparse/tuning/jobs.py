"""
The trials of a study as a list of jobs, each done once, by one driver or by one on each of several machines.

A job is a waiting trial in Optuna's storage, which hands each to one driver alone. A study that is kept in a file has one
driver at a time, so what is running when it is opened belongs to a driver that is gone, and is taken over. Drivers that share
a server record signs of life for their trials, the first one before a trial is theirs; whoever looks finds those that have
stopped, declares them failed, which the server lets one of them do and once, and the job gets a new trial with the same
parameters.

Two drivers may fill a study at the same moment, so a job may get two trials; whoever takes one up sees the other, and the one
with the larger number gives way.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState

from sb3_sparse.runs.driver import MAX_ATTEMPTS

JOB, REASON, PARAMETERS, DRIVER = "job", "reason", "given_parameters", "driver"
#: Reason of a trial that another one of the same job made superfluous.
SUPERFLUOUS = "superfluous"
#: Of a trial that was ended on purpose, which is no attempt. Earlier versions wrote it; now such trials stay as they are.
_INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Job:
    """
    One thing to do.

    :param name: No other job of the study has it.
    :param attributes: What its trial begins with, as JSON values.
    """

    name: str
    attributes: Mapping[str, Any] = field(default_factory=dict)


def was_killed(trial: FrozenTrial) -> bool:
    """
    Tell a trial whose driver has vanished.

    :param trial: A trial.
    :return: Whether it failed, and nobody said why.
    """
    return trial.state == TrialState.FAIL and REASON not in trial.user_attrs


def by_job(trials: Iterable[FrozenTrial]) -> dict[str, list[FrozenTrial]]:
    """
    Sort trials by what they are for.

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
    Find the trial of a job that counts.

    :param trials: All trials of a job, at least one.
    :return: The first that was not killed, or the last one if all were.
    """
    alive = [trial for trial in trials if not was_killed(trial)]
    return alive[0] if alive else trials[-1]


def _n_attempts(trials: Sequence[FrozenTrial]) -> int:
    return sum(_INTERRUPTED not in trial.user_attrs for trial in trials)


def is_over(trials: Sequence[FrozenTrial]) -> bool:
    """
    Tell whether a job is done.

    :param trials: All trials of a job.
    :return: Whether nothing more comes of it.
    """
    if not trials:
        return False
    trial = outcome(trials)
    return trial.state.is_finished() and (not was_killed(trial) or _n_attempts(trials) >= MAX_ATTEMPTS)


class Jobs:
    """
    A study's jobs, in the hands of one driver.

    :param study: The study.
    :param storage: Its storage.
    :param jobs: What shall be done.
    :param driver: Name of this driver, the same after it was stopped and is started again; None: it has the study for itself.
    """

    def __init__(self, study: optuna.Study, storage: BaseStorage, jobs: Sequence[Job], driver: str | None = None) -> None:
        self.study, self.storage, self.jobs, self.driver = study, storage, list(jobs), driver
        self._mine: dict[int, int] = {}
        self._over = threading.Event()
        #: Trials of an earlier life of this driver.
        self._left = [trial for trial in self._trials() if trial.state == TrialState.RUNNING and self._is_mine(trial)]
        self.fill()
        if driver is not None:
            threading.Thread(target=self._record_life, daemon=True).start()

    def close(self) -> None:
        """Record no signs of life any more."""
        self._over.set()

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _is_mine(self, trial: FrozenTrial) -> bool:
        return self.driver is None or trial.user_attrs.get(DRIVER) == self.driver

    def _id(self, number: int) -> int:
        study = self.storage.get_study_id_from_name(self.study.study_name)
        return self.storage.get_trial_id_from_study_id_trial_number(study, number)

    def fill(self) -> int:
        """
        Give every job a trial that has none, or whose trials were all killed.

        :return: How many trials were made.
        """
        if self.driver is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                fail_stale_trials(self.study)
        present = by_job(self._trials())
        n_new = 0
        for job in self.jobs:
            trials = present.get(job.name, [])
            if not trials or (all(map(was_killed, trials)) and _n_attempts(trials) < MAX_ATTEMPTS):
                attributes = {**job.attributes, JOB: job.name}
                if trials:
                    attributes |= {PARAMETERS: trials[-1].params, "replaces": trials[-1].number}
                self.study.enqueue_trial({}, user_attrs=attributes)
                n_new += 1
        return n_new

    def claim(self) -> Trial | None:
        """
        Take up a trial.

        :return: One that belongs to this driver from now on; None if none waits.
        """
        names = {job.name for job in self.jobs}
        while self._left:
            trial = self._left.pop(0)
            if trial.user_attrs.get(JOB) in names:
                return self._taken(trial.number, self._id(trial.number))
        for waiting in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            if waiting.user_attrs.get(JOB) not in names:
                continue
            trial_id = self._id(waiting.number)
            try:
                # First, so that a trial is never running without one
                self._sign(trial_id)
                if not self.storage.set_trial_state_values(trial_id, state=TrialState.RUNNING):
                    continue
                if self.driver is not None:
                    self.storage.set_trial_user_attr(trial_id, DRIVER, self.driver)
                job = by_job(self._trials()).get(waiting.user_attrs[JOB], [])
                if any(other.number < waiting.number and not was_killed(other) for other in job):
                    self.storage.set_trial_user_attr(trial_id, REASON, SUPERFLUOUS)
                    self.storage.set_trial_state_values(trial_id, state=TrialState.FAIL)
                    continue
            except UpdateFinishedTrialError:
                continue
            return self._taken(waiting.number, trial_id)
        return None

    def _taken(self, number: int, trial_id: int) -> Trial:
        self._mine[number] = trial_id
        return Trial(self.study, trial_id)

    def finish(
        self,
        trial: Trial,
        values: Sequence[float] | None,
        reason: str | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Finish a trial, unless it was taken from this driver meanwhile. It may be said again.

        :param trial: The trial.
        :param values: The study's objectives, None for a failure.
        :param reason: Why it failed, None if it did not.
        :param attributes: What else is known.
        """
        try:
            for name, value in {**(attributes or {}), **({} if reason is None else {REASON: reason})}.items():
                trial.set_user_attr(name, value)
            self.study.tell(trial, values, state=TrialState.COMPLETE if reason is None else TrialState.FAIL)
        except (UpdateFinishedTrialError, ValueError):
            if not self.study.trials[trial.number].state.is_finished():
                raise
        self._mine.pop(trial.number, None)

    @property
    def is_over(self) -> bool:
        """Whether every job is done, whoever did it."""
        present = by_job(self._trials())
        return all(is_over(present.get(job.name, [])) for job in self.jobs)

    # --- Signs of life ---

    def _sign(self, trial_id: int) -> None:
        if self.driver is not None and isinstance(self.storage, RDBStorage):
            self.storage.record_heartbeat(trial_id)

    def _record_life(self) -> None:
        assert isinstance(self.storage, RDBStorage)
        while not self._over.wait(self.storage.get_heartbeat_interval()):
            for trial_id in list(self._mine.values()):
                # The trainings are worth more: the server may be back at the next sign
                with contextlib.suppress(Exception):
                    self._sign(trial_id)
