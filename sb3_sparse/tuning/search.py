"""The plan of a search: each trial is sampled when there is room for it, and told when its trainings are over."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import optuna
import yaml
from optuna.storages import BaseStorage
from optuna.trial import Trial, TrialState

from sb3_sparse.runs.driver import Driver, patiently
from sb3_sparse.runs.result import COMPLETE, RunResult
from sb3_sparse.runs.spec import RunSpec
from sb3_sparse.tuning.configuration import dense
from sb3_sparse.tuning.files import as_yaml
from sb3_sparse.tuning.jobs import JOB, Job, Jobs, by_job, is_over, outcome
from sb3_sparse.tuning.objectives import RETURN
from sb3_sparse.tuning.sampling import sample_next
from sb3_sparse.tuning.storage import STORAGE_ERRORS
from sb3_sparse.tuning.study import REFERENCE, Subject

#: Seconds between two looks at what other drivers do. A driver that has the study for itself looks when something is over.
LOOK_EVERY = 5.0
#: Attribute of a trial: the result of its training.
_RESULT = "result"


@dataclass
class _Open:
    """A trial whose trainings are not over."""

    trial: Trial
    specs: list[RunSpec]
    results: list[RunResult] = field(default_factory=list)


class _Pause:
    """After a look at the whole study that brought nothing: not again before a while is over, or something has changed."""

    def __init__(self) -> None:
        self._until = 0.0

    @property
    def lasts(self) -> bool:
        return time.monotonic() < self._until

    def begin(self) -> None:
        self._until = time.monotonic() + LOOK_EVERY

    def end(self) -> None:
        self._until = 0.0


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


class Search:
    """
    Samples and tells, and gives trainings to a driver.

    :param study: The study.
    :param storage: Its storage.
    :param subject: What it is about.
    :param jobs: What shall be tried.
    :param driver: See :class:`~sb3_sparse.tuning.jobs.Jobs`.
    """

    def __init__(
        self, study: optuna.Study, storage: BaseStorage, subject: Subject, jobs: Sequence[Job], driver: str | None = None
    ) -> None:
        self.study, self.subject = study, subject
        self.jobs = Jobs(study, storage, jobs, driver)
        self.waiting: list[RunSpec] = []
        self.open: list[_Open] = []
        self._claiming, self._looking = _Pause(), _Pause()
        known = [trials for trials in by_job(study.get_trials(deepcopy=False)).values() if is_over(trials)]
        self._n_over = len(known)
        self._n_failed = sum(outcome(trials).state == TrialState.FAIL for trials in known)

    def counts(self) -> tuple[int, int]:
        """
        Count.

        :return: Jobs that this driver has seen to their end, and how many of these failed.
        """
        return self._n_over, self._n_failed

    @property
    def is_over(self) -> bool:
        """Whether every job is done, whoever did it."""
        if self.waiting or self.open or self._looking.lasts:
            return False
        self._looking.begin()
        return self.jobs.is_over

    def next(self) -> RunSpec | None:
        """
        Sample another trial, if there is one to do.

        :return: Its first training, or another one of a trial of which some have been given.
        """
        while not self.waiting:
            trial = None if self._claiming.lasts else self.jobs.claim()
            if trial is None:
                if not self._claiming.lasts:
                    self.jobs.fill()
                    self._claiming.begin()
                return None
            self._begin(trial)
        return self.waiting.pop(0)

    def _begin(self, trial: Trial) -> None:
        """Nothing that goes wrong with a sample is fatal to others; what goes wrong with the storage is not its fault."""
        subject = self.subject
        try:
            section = self._section(trial)
            specs = [subject.run(section, seed) for seed in subject.training_seeds]
            text = as_yaml(subject.env, section)
        except STORAGE_ERRORS:
            raise
        except Exception as error:
            traceback.print_exc()
            self._finish(trial, None, f"{type(error).__name__}: {error}", {})
            return
        patiently(lambda: trial.set_user_attr("configuration", text), STORAGE_ERRORS, "the study")
        self.open.append(_Open(trial, specs))
        self.waiting += specs

    def _section(self, trial: Trial) -> dict[str, Any]:
        """The configuration of a trial: the one that it had before it was cut short, the dense one, or a sampled one."""
        given = trial.user_attrs.get("configuration")
        if given is not None:
            return yaml.safe_load(given)[self.subject.env]
        if trial.user_attrs.get(REFERENCE):
            return dense(self.subject.section, self.subject.algo)
        return sample_next(self.study, trial, self.subject)

    def done(self, spec: RunSpec, result: RunResult) -> None:
        """
        Note what came of a training, and tell the study when it was the last one of its trial.

        :param spec: The training.
        :param result: What came of it.
        """
        found = next(one for one in self.open if spec in one.specs and len(one.results) < len(one.specs))
        found.results.append(result)
        if len(found.results) < len(found.specs):
            return
        self.open.remove(found)
        found.results.sort(key=lambda result: result.spec.seed)
        bad = [result for result in found.results if result.state != COMPLETE]
        if bad:
            self._finish(found.trial, None, bad[0].reason, {})
        else:
            known = measures(found.results)
            self._finish(found.trial, [known[name] for name in self.subject.objectives], None, known)

    def _finish(self, trial: Trial, values: list[float] | None, reason: str | None, attributes: dict[str, Any]) -> None:
        patiently(lambda: self.jobs.finish(trial, values, reason, attributes), STORAGE_ERRORS, "the study")
        self._n_over += 1
        self._n_failed += reason is not None
        self._looking.end()

    def close(self) -> None:
        """Record no signs of life any more."""
        self.jobs.close()


class Shared:
    """
    Trainings that drivers on several machines share through a study: each is a job, and its result an attribute of the trial.

    :param study: The study.
    :param storage: Its storage.
    :param specs: The trainings.
    :param driver: This driver.
    :param own: The driver that trains, whose store gets the results of others too.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: BaseStorage,
        subject: Subject,
        specs: Sequence[RunSpec],
        driver: str,
        own: Driver,
    ) -> None:
        self.specs = {spec.key: spec for spec in specs}
        self.jobs = Jobs(study, storage, [Job(key) for key in self.specs], driver)
        self.study, self.subject, self.own = study, subject, own
        self.results: dict[str, RunResult] = {}
        self._trials: dict[str, Trial] = {}
        self._claiming, self._looking = _Pause(), _Pause()

    def _collect(self) -> None:
        """What other drivers have told."""
        states = (TrialState.COMPLETE, TrialState.FAIL)
        for trial in self.study.get_trials(deepcopy=False, states=states):
            key, text = trial.user_attrs.get(JOB), trial.user_attrs.get(_RESULT)
            if text is not None and key in self.specs and key not in self.results:
                result = RunResult.from_json(text)
                if self.own.store.get(result.spec) is None:
                    self.own.store.put(result)
                self.results[key] = result

    def next(self) -> RunSpec | None:
        """
        Take up a training.

        :return: One that no other driver has taken up; None if there is none at the moment.
        """
        if self._claiming.lasts:
            return None
        trial = self.jobs.claim()
        if trial is None:
            self.jobs.fill()
            self._claiming.begin()
            return None
        key = trial.user_attrs[JOB]
        self._trials[key] = trial
        return self.specs[key]

    def done(self, spec: RunSpec, result: RunResult) -> None:
        """
        Tell the others.

        :param spec: The training.
        :param result: What came of it.
        """
        self.results[spec.key] = result
        trial, attributes = self._trials.pop(spec.key), {_RESULT: result.to_json()}
        if result.state == COMPLETE:
            known = measures([result])
            values = [known[name] for name in self.subject.objectives]
            patiently(lambda: self.jobs.finish(trial, values, None, attributes), STORAGE_ERRORS, "the study")
        else:
            patiently(lambda: self.jobs.finish(trial, None, result.reason, attributes), STORAGE_ERRORS, "the study")
        self._looking.end()

    @property
    def is_over(self) -> bool:
        """Whether all results are known."""
        if not self._looking.lasts:
            self._looking.begin()
            self._collect()
        return self.results.keys() == self.specs.keys()

    def close(self) -> None:
        """Record no signs of life any more."""
        self.jobs.close()
