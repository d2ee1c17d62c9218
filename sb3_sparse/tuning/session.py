"""What both questions have in common: everything is checked first, then a driver trains."""

from __future__ import annotations

import json
import math
import tempfile
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from gymnasium import spaces
from optuna.storages import BaseStorage
from stable_baselines3.common.preprocessing import is_image_space

from sb3_sparse.runs.driver import Driver
from sb3_sparse.runs.local import LocalEngine
from sb3_sparse.runs.progress import Progress
from sb3_sparse.runs.result import RunResult
from sb3_sparse.runs.spec import RunSpec
from sb3_sparse.runs.store import Store, locked
from sb3_sparse.runs.training import check_trainable, random_return
from sb3_sparse.tuning.configuration import dense, load_section
from sb3_sparse.tuning.earlier import import_reports
from sb3_sparse.tuning.questions import Place, Task
from sb3_sparse.tuning.sampling import check_sampler, sample_section
from sb3_sparse.tuning.search import Search, Shared
from sb3_sparse.tuning.spaces import check_configuration
from sb3_sparse.tuning.storage import file_of, open_storage
from sb3_sparse.tuning.study import Subject, check_same, load_study, open_study, search_jobs
from sb3_sparse.utils.checks import require_integer
from sb3_sparse.utils.files import make_folder, write_text

REPORT_SUFFIX = "-report"
#: Samples of a search that are looked at before a study is refused.
_SAMPLES = 20


def make_subject(
    task: Task, *, objectives: Sequence[str], search: Sequence[str] = (), seeds: int = 1, sampler: str = "random"
) -> Subject:
    """
    Check what a study shall be about, up to making the models of its reference and of a first sample. Nothing is written.

    :param task: What is asked.
    :param objectives: Checked names.
    :param search: Checked names.
    :param seeds: Trainings of a trial.
    :param sampler: Name of the sampler.
    :return: The subject.
    :raises ValueError: For everything that will not do.
    """
    require_integer("--seeds", seeds, low=1, high=100)
    check_sampler(sampler)
    algo, env = task.algo, task.env
    section = load_section(
        algo, env, method=task.method, conf_file=task.conf_file, steps=task.steps, parameters=task.parameters
    )
    subject = Subject(
        kind=task.kind,
        algo=algo,
        env=env,
        objectives=tuple(objectives),
        search=tuple(search),
        section=section,
        n_inputs=None,
        episodes=task.episodes,
        seed=task.seed,
        seeds=seeds,
        sampler=sampler,
    )
    if search:
        check_configuration(search, algo, section)
    with tempfile.TemporaryDirectory() as folder:
        seen = check_trainable(algo, env, dense(section, algo), Path(folder))
        if isinstance(seen, spaces.Box) and not is_image_space(seen):
            subject = replace(subject, n_inputs=math.prod(seen.shape))
        if search:
            _check_samples(subject, Path(folder))
        else:
            check_trainable(algo, env, section, Path(folder))
    return subject


def _check_samples(subject: Subject, folder: Path) -> None:
    """See that some sample can be trained. That a single one cannot would be its own affair."""
    for index in range(_SAMPLES):
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=index)).ask()
        section = sample_section(trial, subject)
        try:
            check_trainable(subject.algo, subject.env, section, folder)
        except ValueError:
            if index == _SAMPLES - 1:
                raise
        else:
            return


class Session:
    """
    A subject, its files and its driver, all workers of which end with the ``with`` block. The constructor opens the study, and
    checks that it can.

    :param subject: What the study is about.
    :param task: What is asked.
    :param place: Where it is.
    :raises ValueError: If the storage or the study will not do, or another process works there.
    """

    def __init__(self, subject: Subject, task: Task, place: Place) -> None:
        require_integer("--workers", place.workers, low=1)
        self.subject, self.place, self.name = subject, place, place.study_name or task.name
        self.folder = (place.folder or Path("tune") / task.name).absolute()
        if place.storage is None:
            make_folder("--output", self.folder)
        # What is asked in one line needs no study, unless several machines share its trainings, or an earlier version made one
        journal = self.folder / "study.log"
        default = str(journal) if journal.is_file() else f"sqlite:///{self.folder / 'study.db'}"
        self.address = place.storage or (default if subject.kind == "search" or journal.is_file() else None)
        self.storage: BaseStorage | None = None
        self._study: optuna.Study | None = None
        self._locks = ExitStack()
        #: This driver's name, where others share the study.
        self.driver_name: str | None = None
        try:
            self._open()
        except BaseException:
            self._locks.close()
            raise

    def _open(self) -> None:
        subject, place = self.subject, self.place
        file = None
        if self.address is not None:
            file = file_of(self.address)
            if file is not None and file.parent.is_dir():
                self._locks.enter_context(locked(file.with_name(f"{file.name}.driver"), str(file)))
            self.storage = open_storage(self.address)
            if self.is_shared or subject.kind == "search" or load_study(self.storage, self.name) is not None:
                self._study = open_study(self.storage, self.name, subject, resume=place.resume)
        make_folder("--output", self.folder)
        if self._study is None:
            self._open_question()
        if self.is_shared:
            self.driver_name = self._own_name()
        self.store = Store(place.runs or self.folder / "runs", "--runs")
        if self.storage is not None and file is not None:
            for name in (self.name, self.name + REPORT_SUFFIX):
                import_reports(self.storage, name, subject, self.store)
        engine = LocalEngine(place.workers, self.folder / "workers.log", place.gym_packages)
        self.driver = Driver(self.store, engine, retry=place.retry)

    def _open_question(self) -> None:
        """As a study: what it is about is written down, and it must be about the same when somebody goes on with it."""
        file = self.folder / f"{self.name}.json"
        if not file.is_file():
            write_text(file, json.dumps(self.subject.to_json(), indent=1) + "\n")
        elif not self.place.resume:
            raise ValueError(
                f"there is a question {self.name!r} already, {file}: give --resume to go on with it, or another -o"
            )
        try:
            found = json.loads(file.read_text())
        except ValueError as error:
            raise ValueError(f"{file} cannot be read: {error}. Remove it to ask anew") from error
        check_same(found, self.name, self.subject)

    def _own_name(self) -> str:
        """The same after this driver was stopped and is started again in its folder."""
        file = self.folder / "driver"
        if not file.is_file():
            write_text(file, uuid.uuid4().hex)
        return file.read_text()

    @property
    def is_shared(self) -> bool:
        """Whether drivers of other machines work on the same study: those of a server."""
        return self.address is not None and file_of(self.address) is None

    @property
    def study(self) -> optuna.Study:
        """Optuna's study."""
        assert self._study is not None
        return self._study

    def __enter__(self) -> Session:
        self.driver.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.driver.__exit__()
        finally:
            self._locks.close()

    def search(self, n_trials: int, extra: Callable[[], str]) -> None:
        """
        Try configurations, until so many were tried by whoever works on the study.

        :param n_trials: How many, the dense reference not counted.
        :param extra: Gives what a line of progress ends with.
        """
        assert self.storage is not None
        jobs = search_jobs(n_trials)
        plan = Search(self.study, self.storage, self.subject, jobs, self.driver_name)
        try:
            self._watched("search", len(jobs), plan.counts, extra)
            self.driver.work(plan)
        finally:
            plan.close()

    def run(self, specs: Sequence[RunSpec], title: str) -> list[RunResult]:
        """
        Train, with what other machines do where they share the study.

        :param specs: The trainings.
        :param title: Of the lines that say how far it is.
        :return: Their results.
        """
        if not self.is_shared:
            missing = [spec for spec in specs if self.store.get(spec) is None]
            self._watched(title, len(missing))
            return self.driver.run(specs)
        assert self.storage is not None
        report = replace(self.subject, kind="report")
        study = open_study(self.storage, self.name + REPORT_SUFFIX, report, resume=True)
        plan = Shared(study, self.storage, self.subject, specs, str(self.driver_name), self.driver)
        try:
            self._watched(title, len(specs), lambda: (len(plan.results), 0))
            self.driver.work(plan)
        finally:
            plan.close()
        return [plan.results[spec.key] for spec in specs]

    def _watched(
        self,
        title: str,
        total: int,
        counts: Callable[[], tuple[int, int]] | None = None,
        extra: Callable[[], str] = lambda: "",
    ) -> None:
        self.driver.watch = Progress(title, total, len(self.driver.trained), counts, extra)

    def random_return(self, seeds: range) -> float:
        """
        Play without a policy.

        :param seeds: Of the episodes.
        :return: Return of a policy that acts at random, in the same environment.
        """
        subject = self.subject
        with tempfile.TemporaryDirectory() as folder:
            section: dict[str, Any] = dense(subject.section, subject.algo)
            return random_return(subject.algo, subject.env, section, seeds, Path(folder))
