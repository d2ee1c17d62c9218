"""What both questions have in common: everything is checked first, then a driver trains."""

from __future__ import annotations

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
from sb3_sparse.tuning.jobs import Jobs
from sb3_sparse.tuning.objectives import RETURN
from sb3_sparse.tuning.questions import Place, Task
from sb3_sparse.tuning.sampling import sample_section
from sb3_sparse.tuning.search import Search, Shared
from sb3_sparse.tuning.storage import file_of, open_storage
from sb3_sparse.tuning.study import REPORT_SUFFIX, Subject, open_study
from sb3_sparse.utils.checks import require_integer
from sb3_sparse.utils.files import make_folder, write_text

#: Samples of a search that are looked at before a study is refused.
_SAMPLES = 20


def make_subject(
    task: Task, check: Callable[[dict[str, Any]], object], *, objectives: Sequence[str] = (RETURN,), search: Sequence[str] = ()
) -> Subject:
    """
    Check what a study shall be about, up to making the models of its reference and of a first sample. Nothing is written.

    :param task: What is asked, its numbers checked.
    :param check: Given the configuration before any model is made: raises if it will not do.
    :param objectives: Checked names.
    :param search: Checked names.
    :return: The subject.
    :raises ValueError: For everything that will not do.
    """
    algo, env = task.algo, task.env
    section = load_section(
        algo, env, method=task.method, conf_file=task.conf_file, steps=task.steps, parameters=task.parameters
    )
    check(section)
    subject = Subject(
        **{name: getattr(task, name) for name in ("kind", "algo", "env", "episodes", "seed", "seeds", "sampler")},
        objectives=tuple(objectives),
        search=tuple(search),
        section=section,
        n_inputs=None,
    )
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
        self.subject, self.name = subject, place.study_name or task.name
        self.folder = (place.folder or Path("tune") / task.name).absolute()
        if place.storage is None:
            make_folder("--output", self.folder)
        journal = self.folder / "study.log"
        default = str(journal) if journal.is_file() else f"sqlite:///{self.folder / 'study.db'}"
        address = place.storage or default
        file = file_of(address)
        with ExitStack() as stack:
            if file is not None and file.parent.is_dir():
                stack.enter_context(locked(file.with_name(f"{file.name}.driver"), str(file)))
            self.storage = open_storage(address)
            self.study = open_study(self.storage, self.name, subject, resume=place.resume)
            make_folder("--output", self.folder)
            #: This driver's name, where others of other machines share the study: those of a server.
            self.driver_name = self._own_name() if file is None else None
            self.store = Store(place.runs or self.folder / "runs", "--runs")
            if file is not None:
                import_reports(self.storage, self.name, subject, self.store)
            engine = LocalEngine(place.workers, self.folder / "workers.log", place.gym_packages)
            self.driver = Driver(self.store, engine, retry=place.retry)
            self._stack = stack.pop_all()

    def _own_name(self) -> str:
        """The same after this driver was stopped and is started again in its folder."""
        file = self.folder / "driver"
        if not file.is_file():
            write_text(file, uuid.uuid4().hex)
        return file.read_text()

    def __enter__(self) -> Session:
        with self._stack as stack:
            stack.enter_context(self.driver)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def search(self, n_trials: int, extra: Callable[[], str]) -> None:
        """
        Try configurations, until so many were tried by whoever works on the study.

        :param n_trials: How many, the dense reference not counted.
        :param extra: Gives what a line of progress ends with.
        """
        self._work(Search(self.study, self.storage, self.subject, n_trials, self.driver_name), "search", extra)

    def run(self, specs: Sequence[RunSpec], title: str) -> list[RunResult]:
        """
        Train, with what other machines do where they share the study.

        :param specs: The trainings.
        :param title: Of the lines that say how far it is.
        :return: Their results.
        """
        if self.driver_name is None:
            n_missing = sum(self.store.get(spec) is None for spec in specs)
            self.driver.watch = Progress(title, n_missing, len(self.driver.trained))
            return self.driver.run(specs)
        report = replace(self.subject, kind="report")
        study = open_study(self.storage, self.name + REPORT_SUFFIX, report, resume=True)
        plan = Shared(study, self.storage, self.subject, specs, self.driver_name)
        self._work(plan, title)
        return plan.results(self.store)

    def _work(self, plan: Jobs, title: str, extra: Callable[[], str] = lambda: "") -> None:
        self.driver.watch = Progress(title, len(plan.names), len(self.driver.trained), plan.counts, extra)
        try:
            plan.look(retry=self.driver.retry)
            self.driver.work(plan)
        finally:
            plan.close()

    def random_return(self, *, report: bool = False) -> float:
        """
        Play without a policy.

        :param report: Whether the episodes are those that are reported.
        :return: Return of a policy that acts at random, in the same environment.
        """
        spec = self.subject.run(dense(self.subject.section, self.subject.algo), 0, report=report)
        with tempfile.TemporaryDirectory() as folder:
            return random_return(spec.algo, spec.env, spec.section, spec.episode_seeds, Path(folder))
