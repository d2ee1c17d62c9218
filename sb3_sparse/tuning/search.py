"""What the jobs of a study train: a sample each, or one training each of a list that drivers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
import yaml
from optuna.storages import BaseStorage
from optuna.trial import Trial

from sb3_sparse.runs.driver import MAX_ATTEMPTS, patiently
from sb3_sparse.runs.result import FAILED, RunResult
from sb3_sparse.runs.spec import RunSpec
from sb3_sparse.runs.store import Store
from sb3_sparse.tuning.configuration import dense
from sb3_sparse.tuning.jobs import CONFIGURATION, JOB, Jobs
from sb3_sparse.tuning.sampling import sample_next
from sb3_sparse.tuning.storage import STORAGE_ERRORS
from sb3_sparse.tuning.study import REFERENCE, Subject
from sb3_sparse.zoo.sections import as_yaml

#: Attribute of a trial: the result of its training, for drivers of other machines.
_RESULT = "result"


class Search(Jobs):
    """
    The dense reference, and samples beside it.

    :param study: The study.
    :param storage: Its storage.
    :param subject: What it is about.
    :param n_trials: Configurations to try, the dense reference not counted.
    :param driver: See :class:`~sb3_sparse.tuning.jobs.Jobs`.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: BaseStorage,
        subject: Subject,
        n_trials: int,
        driver: str | None = None,
    ) -> None:
        names = [REFERENCE, *(f"search-{index}" for index in range(1, n_trials + 1))]
        super().__init__(study, storage, subject, names, driver)

    def specs(self, trial: Trial) -> list[RunSpec]:
        """See :meth:`~sb3_sparse.tuning.jobs.Jobs.specs`."""
        section = self._section(trial)
        text = as_yaml(self.subject.env, section)
        patiently(lambda: trial.set_user_attr(CONFIGURATION, text), STORAGE_ERRORS, "the study")
        return [self.subject.run(section, seed) for seed in self.subject.training_seeds]

    def _section(self, trial: Trial) -> dict[str, Any]:
        """The configuration of a trial: the one that it had before it was cut short, the dense one, or a sampled one."""
        given, name = trial.user_attrs.get(CONFIGURATION), trial.user_attrs[JOB]
        if given is not None:
            return yaml.safe_load(given)[self.subject.env]
        if name == REFERENCE:
            return dense(self.subject.section, self.subject.algo)
        return sample_next(self.study, trial, self.subject, self.names.index(name))


class Shared(Jobs):
    """
    Trainings that drivers on several machines share through a study: each is a job, and its result an attribute of the trial.

    :param study: The study.
    :param storage: Its storage.
    :param subject: What it is about.
    :param specs: The trainings.
    :param driver: This driver.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: BaseStorage,
        subject: Subject,
        specs: Sequence[RunSpec],
        driver: str,
    ) -> None:
        self.of = {spec.key: spec for spec in specs}
        super().__init__(study, storage, subject, list(self.of), driver)

    def specs(self, trial: Trial) -> list[RunSpec]:
        """See :meth:`~sb3_sparse.tuning.jobs.Jobs.specs`."""
        return [self.of[trial.user_attrs[JOB]]]

    def notes(self, results: Sequence[RunResult]) -> dict[str, Any]:
        """See :meth:`~sb3_sparse.tuning.jobs.Jobs.notes`."""
        return {_RESULT: results[0].to_json()}

    def results(self, store: Store) -> list[RunResult]:
        """
        Bring together what all drivers have trained, once it is over.

        :param store: Gets what others have trained.
        :return: In the order of the trainings.
        """
        found = []
        for name, spec in self.of.items():
            text, known = self.trials[name][-1].user_attrs.get(_RESULT), store.get(spec)
            if text is not None:
                result = RunResult.from_json(text)
                if known is None or known.state != result.state:
                    store.put(result)
            else:
                result = known or RunResult(spec, FAILED, reason=f"its driver vanished {MAX_ATTEMPTS} times")
            found.append(result)
        return found
