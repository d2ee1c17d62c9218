"""What a study and the one-line question have in common: everything is checked first, then worker processes train."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from gymnasium import spaces
from optuna.storages import BaseStorage
from stable_baselines3.common.preprocessing import is_image_space

from sb3_sparse.tuning.configuration import dense, load_section
from sb3_sparse.tuning.pool import Pool
from sb3_sparse.tuning.progress import Progress
from sb3_sparse.tuning.queue import Job
from sb3_sparse.tuning.results import Tried, tried
from sb3_sparse.tuning.sampling import check_sampler, sample_section
from sb3_sparse.tuning.spaces import check_configuration
from sb3_sparse.tuning.storage import open_storage
from sb3_sparse.tuning.study import TUNING_EPISODES, Subject, load_study, open_study
from sb3_sparse.tuning.training import check_trainable, random_return
from sb3_sparse.utils.checks import require_integer
from sb3_sparse.utils.files import make_folder

REPORT_SUFFIX = "-report"
#: Samples of a search that are looked at before a study is refused.
_SAMPLES = 20


@dataclass(frozen=True)
class Place:
    """
    Where a study is and who works on it.

    :param folder: Of its files; None: ``tune/<algorithm>-<environment>``, with ``-keep`` for the one-line question. Made if
        need be.
    :param storage: Journal or URL, see :func:`sb3_sparse.tuning.storage.open_storage`; None: ``study.log`` in the folder.
    :param study_name: None: as the folder.
    :param workers: Processes of this machine.
    :param resume: Whether to go on with a study that is there.
    :param gym_packages: Modules that register the environment, which workers import.
    """

    folder: Path | None = None
    storage: str | None = None
    study_name: str | None = None
    workers: int = 1
    resume: bool = False
    gym_packages: tuple[str, ...] = ()


def make_subject(
    kind: str,
    algo: str,
    env: str,
    *,
    objectives: Sequence[str],
    search: Sequence[str],
    method: str | None,
    conf_file: str | Path | None,
    steps: int | None,
    parameters: Mapping[str, Any] | None,
    episodes: int,
    seed: int,
    seeds: int,
    sampler: str,
) -> Subject:
    """
    Check what a study shall be about, up to making the models of its reference and of a first sample. Nothing is written.

    :param kind: See :class:`Subject`, as for the others that are not explained here.
    :param algo: rl-zoo3's name of the algorithm.
    :param env: Id of the environment.
    :param objectives: Checked names.
    :param search: Checked names.
    :param method: See :func:`sb3_sparse.tuning.configuration.load_section`, as for the next three.
    :param conf_file: A YAML file.
    :param steps: Environment steps of a training.
    :param parameters: Other hyperparameters.
    :param episodes: Of each evaluation.
    :param seed: First seed of trainings that choose.
    :param seeds: Trainings of a trial.
    :param sampler: Name of the sampler.
    :return: The subject.
    :raises ValueError: For everything that will not do.
    """
    require_integer("--episodes", episodes, low=1)
    require_integer("--seeds", seeds, low=1, high=100)
    require_integer("--seed", seed, low=0, high=TUNING_EPISODES - 1000)
    check_sampler(sampler)
    section = load_section(algo, env, method=method, conf_file=conf_file, steps=steps, parameters=parameters)
    subject = Subject(
        kind=kind,
        algo=algo,
        env=env,
        objectives=tuple(objectives),
        search=tuple(search),
        section=section,
        n_inputs=None,
        episodes=episodes,
        seed=seed,
        seeds=seeds,
        sampler=sampler,
    )
    if search:
        check_configuration(search, algo, section)
    with tempfile.TemporaryDirectory() as folder:
        seen = check_trainable(subject.task, dense(section, algo), Path(folder))
        if isinstance(seen, spaces.Box) and not is_image_space(seen):
            subject = replace(subject, n_inputs=math.prod(seen.shape))
        if search:
            _check_samples(subject, Path(folder))
        else:
            check_trainable(subject.task, section, Path(folder))
    return subject


def _check_samples(subject: Subject, folder: Path) -> None:
    """See that some sample can be trained. That a single one cannot would be its own affair."""
    for index in range(_SAMPLES):
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=index)).ask()
        section = sample_section(trial, subject)
        try:
            check_trainable(subject.task, section, folder)
        except ValueError:
            if index == _SAMPLES - 1:
                raise
        else:
            return


def default_name(subject: Subject) -> str:
    """
    :param subject: What a study is about.
    :return: Name of the study, and of its folder in ``tune``, unless the user names them.
    """
    return f"{subject.algo}-{subject.env.replace('/', '-')}" + ("-keep" if subject.kind == "keep" else "")


class Session:
    """
    A subject, its storage and its workers, which end with the ``with`` block. The constructor opens the study, and checks that
    it can.

    :param subject: What the study is about.
    :param place: Where it is.
    :raises ValueError: If the storage or the study will not do.
    """

    def __init__(self, subject: Subject, place: Place) -> None:
        require_integer("--workers", place.workers, low=1)
        default = default_name(subject)
        self.subject, self.place = subject, place
        self.name = place.study_name or default
        self.folder = (place.folder or Path("tune") / default).absolute()
        if place.storage is None:
            make_folder("--output", self.folder)
        self.address = place.storage or str(self.folder / "study.log")
        self.storage: BaseStorage = open_storage(self.address)
        self.study = open_study(self.storage, self.name, subject, resume=place.resume)
        make_folder("--output", self.folder)
        names = [self.name, self.name + REPORT_SUFFIX]
        self.pool = Pool(self.storage, self.address, names, self.folder, place.workers, place.gym_packages)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.stop()

    def work(self, study: optuna.Study, jobs: Sequence[Job], title: str) -> list[Tried]:
        """
        :param study: The study, or its report.
        :param jobs: What is to be done; what is done already is not done again.
        :param title: Of the lines that say how far it is.
        :return: All jobs of the study.
        """
        subject = self.subject if study is self.study else self.report_subject
        self.pool.run(study, jobs, Progress(study, subject, jobs, title, self.place.workers))
        return tried(study)

    @property
    def report_subject(self) -> Subject:
        """What the report's study is about."""
        return replace(self.subject, kind="report")

    def report(self, *, create: bool) -> optuna.Study | None:
        """
        :param create: Whether to make it.
        :return: The study of trainings with the reporting seeds, beside the study itself; None if there is none.
        """
        name = self.name + REPORT_SUFFIX
        if not create:
            return load_study(self.storage, name)
        return open_study(self.storage, name, self.report_subject, resume=True)

    def random_return(self, seeds: range) -> float:
        """
        :param seeds: Of the episodes.
        :return: Return of a policy that acts at random, in the same environment.
        """
        with tempfile.TemporaryDirectory() as folder:
            return random_return(self.subject.task, dense(self.subject.section, self.subject.algo), seeds, Path(folder))
