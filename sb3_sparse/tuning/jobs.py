"""
The trials of a study as a plan: each is a job, done once, by one driver or by one on each of several machines.

A job is a waiting trial in Optuna's storage, which hands each to one driver alone. A study that is kept in a file has one
driver at a time, so what is running when it is opened belongs to a driver that is gone, and is taken over. Drivers that share
a server record signs of life for their trials, the first one before a trial is theirs; whoever looks finds those that have
stopped, which the server lets one of them declare failed, and Optuna repeats the trial with what was sampled for it.

Two drivers may list or repeat the same job at the same moment. The first of both trials counts for everybody, and the other
one is never begun.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import time
import traceback
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState

from sb3_sparse.runs.driver import MAX_ATTEMPTS, patiently
from sb3_sparse.runs.result import COMPLETE, DIVERGED, RunResult
from sb3_sparse.runs.spec import RunSpec
from sb3_sparse.tuning.objectives import RETURN
from sb3_sparse.tuning.storage import STORAGE_ERRORS
from sb3_sparse.tuning.study import Subject

#: Attributes of a trial: what it is for, what it trains, why it failed, and whose it is.
JOB, CONFIGURATION, REASON, DRIVER = "job", "configuration", "reason", "driver"
#: What earlier versions wrote: the reason of a trial that another one of its job made superfluous, and that a trial was ended
#: on purpose, which is no attempt.
_SUPERFLUOUS, _INTERRUPTED = "superfluous", "interrupted"
#: Seconds between two looks at what other drivers do. A driver that has the study for itself looks when something is over.
LOOK_EVERY = 5.0


def was_killed(trial: FrozenTrial) -> bool:
    """
    Tell a trial whose driver has vanished.

    :param trial: A trial.
    :return: Whether it failed, and nobody said why.
    """
    return trial.state == TrialState.FAIL and REASON not in trial.user_attrs


def _has_failed(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and not str(trial.user_attrs.get(REASON, "")).startswith(DIVERGED)


def by_job(trials: Iterable[FrozenTrial]) -> dict[str, list[FrozenTrial]]:
    """
    Sort trials by what they are for.

    :param trials: Trials of a study.
    :return: By job, in their order, each a repetition of the one before it; the last one counts.
    """
    found: dict[str, list[FrozenTrial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        if JOB in trial.user_attrs and trial.user_attrs.get(REASON) != _SUPERFLUOUS:
            mine = found.setdefault(trial.user_attrs[JOB], [])
            # Earlier versions did not say which one a trial repeats
            if not mine or was_killed(mine[-1]) or _repeated(trial) == mine[-1].number:
                mine.append(trial)
    return found


def _repeated(trial: FrozenTrial) -> int | None:
    """Optuna's record of which trial another one repeats."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return next(reversed(RetryHeartbeatStaleTrialCallback.retry_history(trial)), None)


def is_over(trials: Sequence[FrozenTrial]) -> bool:
    """
    Tell whether a job is done.

    :param trials: Its trials, as :func:`by_job` gives them.
    :return: Whether nothing more comes of it.
    """
    if not trials or not trials[-1].state.is_finished():
        return False
    n_attempts = sum(was_killed(trial) and _INTERRUPTED not in trial.user_attrs for trial in trials)
    return not was_killed(trials[-1]) or n_attempts >= MAX_ATTEMPTS


def measures(results: Sequence[RunResult]) -> dict[str, Any]:
    """
    What is written into a trial: everything that is known of its trainings.

    :param results: Complete results, one for each seed.
    :return: Means over them, and ``returns``, one for each.
    """
    costs = {name: fmean(result.costs[name] for result in results) for name in results[0].costs}
    returns = [result.mean for result in results]
    seconds = round(sum(result.seconds for result in results), 1)
    return {"returns": returns, RETURN: fmean(returns), **costs, "seconds": seconds}


@dataclass
class _Open:
    """A trial whose trainings are not over."""

    trial: Trial
    specs: list[RunSpec]
    results: list[RunResult] = field(default_factory=list)


class Jobs:
    """
    A study's jobs, in the hands of one driver. What is trained for one a subclass says.

    :param study: The study.
    :param storage: Its storage.
    :param subject: What it is about.
    :param names: Of the jobs that shall be done.
    :param driver: Name of this driver, the same after it was stopped and is started again; None: it has the study for itself.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: BaseStorage,
        subject: Subject,
        names: Sequence[str],
        driver: str | None = None,
    ) -> None:
        self.study, self.storage, self.subject, self.names, self.driver = study, storage, subject, list(names), driver
        #: Trials that this driver is at, by their numbers in the storage.
        self._mine: dict[int, _Open] = {}
        self._waiting: list[RunSpec] = []
        self._next_look = 0.0
        self._ended = threading.Event()
        self.trials: dict[str, list[FrozenTrial]] = {}
        self.look()
        if driver is not None:
            threading.Thread(target=self._record_life, daemon=True).start()

    def specs(self, trial: Trial) -> list[RunSpec]:
        """
        Say what is trained; an exception is a trial that failed.

        :param trial: A trial of this driver's.
        :return: Its trainings.
        """
        raise NotImplementedError

    def notes(self, results: Sequence[RunResult]) -> dict[str, Any]:
        """
        Say what else is written into a trial.

        :param results: Of its trainings.
        :return: Attributes.
        """
        return {}

    def look(self, *, retry: bool = False) -> None:
        """
        Look at the study, and give every job a trial that has none, or whose trials were all killed.

        :param retry: Whether also what has failed is repeated; what diverged would do so again.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            if self.driver is not None:
                fail_stale_trials(self.study)
            self.trials = by_job(self.study.get_trials(deepcopy=False))
            has_new = False
            for name in self.names:
                trials = self.trials.get(name, [])
                if not trials:
                    self.study.enqueue_trial({}, user_attrs={JOB: name})
                elif (was_killed(trials[-1]) and not is_over(trials)) or (retry and _has_failed(trials[-1])):
                    again = copy.deepcopy(trials[-1])
                    kept = (JOB, CONFIGURATION)
                    again.user_attrs = {name: value for name, value in again.user_attrs.items() if name in kept}
                    RetryHeartbeatStaleTrialCallback()(self.study, again)
                else:
                    continue
                has_new = True
        if has_new:
            self.trials = by_job(self.study.get_trials(deepcopy=False))

    def claim(self) -> Trial | None:
        """
        Take up a trial.

        :return: One that belongs to this driver from now on; None if none waits.
        """
        self.look()
        for name in self.names:
            trial = self.trials[name][-1]
            trial_id = trial._trial_id
            if trial.state.is_finished() or trial_id in self._mine:
                continue
            if trial.state == TrialState.WAITING:
                try:
                    # First, so that a trial is never running without one
                    self._sign(trial_id)
                    if not self.storage.set_trial_state_values(trial_id, state=TrialState.RUNNING):
                        continue
                    if self.driver is not None:
                        self.storage.set_trial_user_attr(trial_id, DRIVER, self.driver)
                except UpdateFinishedTrialError:
                    continue
            elif self.driver is not None and trial.user_attrs.get(DRIVER) != self.driver:
                continue
            # Else it is of an earlier life of this driver, and has what was sampled for it
            mine = Trial(self.study, trial_id)
            self._mine[trial_id] = _Open(mine, [])
            return mine
        return None

    def next(self) -> RunSpec | None:
        """
        Take up another trial, if there is one to do.

        :return: Its first training, or another one of a trial of which some have been given.
        """
        while not self._waiting:
            if time.monotonic() < self._next_look:
                return None
            trial = self.claim()
            if trial is None:
                # Not again before a while is over, or something of this driver's is
                self._next_look = time.monotonic() + LOOK_EVERY
                return None
            self._begin(trial)
        return self._waiting.pop(0)

    def _begin(self, trial: Trial) -> None:
        """Nothing that goes wrong with a sample is fatal to others; what goes wrong with the storage is not its fault."""
        try:
            self._mine[trial._trial_id].specs = self.specs(trial)
        except STORAGE_ERRORS:
            raise
        except Exception as error:
            traceback.print_exc()
            self.finish(trial, f"{type(error).__name__}: {error}")
            return
        self._waiting += self._mine[trial._trial_id].specs

    def done(self, spec: RunSpec, result: RunResult) -> None:
        """
        Note what came of a training, and tell the study when it was the last one of its trial.

        :param spec: The training.
        :param result: What came of it.
        """
        found = next(one for one in self._mine.values() if spec in one.specs and len(one.results) < len(one.specs))
        found.results.append(result)
        if len(found.results) == len(found.specs):
            results = sorted(found.results, key=lambda result: result.spec.seed)
            bad = [result for result in results if result.state != COMPLETE]
            known = {} if bad else measures(results)
            self.finish(found.trial, bad[0].reason if bad else None, {**known, **self.notes(results)})

    def finish(self, trial: Trial, reason: str | None, attributes: Mapping[str, Any] | None = None) -> None:
        """
        Finish a trial, unless it was taken from this driver meanwhile.

        :param trial: The trial.
        :param reason: Why it failed, None if it did not.
        :param attributes: What else is known, the study's objectives among it if it did not fail.
        """
        patiently(lambda: self._finish(trial, reason, dict(attributes or {})), STORAGE_ERRORS, "the study")
        self._mine.pop(trial._trial_id, None)
        self._next_look = 0.0

    def _finish(self, trial: Trial, reason: str | None, attributes: dict[str, Any]) -> None:
        values = None if reason is not None else [attributes[name] for name in self.subject.objectives]
        try:
            for name, value in (attributes | ({} if reason is None else {REASON: reason})).items():
                trial.set_user_attr(name, value)
            self.study.tell(trial, values, state=TrialState.COMPLETE if reason is None else TrialState.FAIL)
        except (UpdateFinishedTrialError, ValueError):
            if not self.storage.get_trial(trial._trial_id).state.is_finished():
                raise

    def counts(self) -> tuple[int, int]:
        """
        Count, as of the last look.

        :return: Jobs that are over, whoever did them, and how many of these failed.
        """
        over = [self.trials[name] for name in self.names if is_over(self.trials[name])]
        return len(over), sum(trials[-1].state == TrialState.FAIL for trials in over)

    @property
    def is_over(self) -> bool:
        """Whether every job was done at the last look."""
        return not self._waiting and not self._mine and self.counts()[0] == len(self.names)

    # --- Signs of life ---

    def close(self) -> None:
        """Record no signs of life any more."""
        self._ended.set()

    def _sign(self, trial_id: int) -> None:
        if self.driver is not None and isinstance(self.storage, RDBStorage):
            self.storage.record_heartbeat(trial_id)

    def _record_life(self) -> None:
        assert isinstance(self.storage, RDBStorage)
        while not self._ended.wait(self.storage.get_heartbeat_interval()):
            for trial_id in list(self._mine):
                # The trainings are worth more: the server may be back at the next sign
                with contextlib.suppress(Exception):
                    self._sign(trial_id)
