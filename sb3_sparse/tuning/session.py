"""What both questions have in common: everything is checked first, then a driver trains."""

from __future__ import annotations

import math
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Session:
    """
    A study, its files and its driver.

    :param subject: What the study is about.
    :param name: Its name.
    :param folder: Of its files.
    :param study: Optuna's study.
    :param storage: Its storage.
    :param driver: Trains.
    :param driver_name: Of this driver, where others of other machines share the study; None: it has the study for itself.
    """

    subject: Subject
    name: str
    folder: Path
    study: optuna.Study
    storage: BaseStorage
    driver: Driver
    driver_name: str | None

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
            n_missing = sum(self.driver.store.get(spec) is None for spec in specs)
            self.driver.watch = Progress(title, n_missing, len(self.driver.trained))
            return self.driver.run(specs)
        report = replace(self.subject, kind="report")
        study = open_study(self.storage, self.name + REPORT_SUFFIX, report, resume=True)
        plan = Shared(study, self.storage, self.subject, specs, self.driver_name)
        self._work(plan, title)
        return plan.results(self.driver.store)

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


@contextmanager
def opened(subject: Subject, task: Task, place: Place) -> Iterator[Session]:
    """
    Open a study. Another process that works on it or in its folder of trainings is kept out, and all workers end with the
    ``with`` block.

    :param subject: What the study is about.
    :param task: What is asked.
    :param place: Where it is.
    :return: Everything that works on it.
    :raises ValueError: If the storage or the study will not do, or another process works there.
    """
    require_integer("--workers", place.workers, low=1)
    name, folder = place.study_name or task.name, (place.folder or Path("tune") / task.name).absolute()
    if place.storage is None:
        make_folder("--output", folder)
    journal = folder / "study.log"
    address = place.storage or (str(journal) if journal.is_file() else f"sqlite:///{folder / 'study.db'}")
    file = file_of(address)
    with ExitStack() as stack:
        if file is not None and file.parent.is_dir():
            stack.enter_context(locked(file.with_name(f"{file.name}.driver"), str(file)))
        storage = open_storage(address)
        study = open_study(storage, name, subject, resume=place.resume)
        make_folder("--output", folder)
        store = Store(place.runs or folder / "runs", "--runs")
        engine = LocalEngine(place.workers, folder / "workers.log", place.gym_packages)
        driver = stack.enter_context(Driver(store, engine, retry=place.retry))
        if file is not None:
            import_reports(storage, name, subject, store)
        # Those of a server have names
        yield Session(subject, name, folder, study, storage, driver, _own_name(folder) if file is None else None)


def _own_name(folder: Path) -> str:
    """The same after this driver was stopped and is started again in its folder."""
    file = folder / "driver"
    if not file.is_file():
        write_text(file, uuid.uuid4().hex)
    return file.read_text()
