"""
A study in its storage: what it is about is written into it, so that every driver does the same, and no other study is taken
for it.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage
from optuna.study import StudyDirection

from sb3_sparse.runs.spec import EPISODE_SEED, RunSpec
from sb3_sparse.tuning.objectives import OBJECTIVES, RETURN

#: Under this name a study says what it is about.
_KEY = "sb3_sparse"
#: First seeds of the episodes that choose, and of those that are reported, far from those of any training.
TUNING_EPISODES, REPORT_EPISODES = EPISODE_SEED, 2_000_003
#: First seed of the trainings that are reported. Those that choose begin at the study's own.
REPORT_SEED = 1000
REFERENCE = "dense"
#: Of the study that drivers on several machines share their reported trainings through.
REPORT_SUFFIX = "-report"


@dataclass(frozen=True)
class Subject:
    """
    What a study is about.

    :param kind: ``"search"``, ``"report"`` (trainings with the reporting seeds) or ``"keep"``.
    :param algo: rl-zoo3's name of the algorithm.
    :param env: Id of the environment.
    :param objectives: Keys of :data:`sb3_sparse.tuning.objectives.OBJECTIVES`.
    :param search: Names of what is searched.
    :param section: The configuration that everything begins with.
    :param n_inputs: Size of an observation, None if it is no vector.
    :param episodes: Of each evaluation.
    :param seed: First seed of trainings that choose, and of the sampler.
    :param seeds: Trainings of a trial; the return is their mean.
    :param sampler: One of :data:`sb3_sparse.tuning.sampling.SAMPLERS`.
    """

    kind: str
    algo: str
    env: str
    objectives: tuple[str, ...]
    search: tuple[str, ...]
    section: dict[str, Any]
    n_inputs: int | None
    episodes: int
    seed: int
    seeds: int
    sampler: str

    @property
    def training_seeds(self) -> range:
        """Of the trainings of a trial."""
        return range(self.seed, self.seed + self.seeds)

    def run(self, section: dict[str, Any], seed: int, *, report: bool = False) -> RunSpec:
        """
        A training of this study.

        :param section: The configuration.
        :param seed: Of the training.
        :param report: Whether it is one that is reported, in other episodes than those that choose.
        :return: The training.
        """
        first = REPORT_EPISODES if report else TUNING_EPISODES
        return RunSpec(self.algo, self.env, section, seed, episodes=self.episodes, episode_seed=first)

    def reports(self, section: dict[str, Any], n_seeds: int) -> list[RunSpec]:
        """
        The trainings that are reported of a configuration.

        :param section: The configuration.
        :param n_seeds: How many, with the seeds from :data:`REPORT_SEED` on.
        :return: They.
        """
        return [self.run(section, REPORT_SEED + index, report=True) for index in range(n_seeds)]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return json.loads(json.dumps(asdict(self)))


def _present(value: Any) -> str:
    """A value as text in which policies have the addresses of today: those of earlier versions' presets mean the same."""
    return json.dumps(value, sort_keys=True).replace("sb3_sparse.policies.Sparse", "sb3_sparse.Sparse")


def check_same(study: optuna.Study, subject: Subject) -> None:
    """
    See that somebody goes on with what was begun.

    :param study: A study.
    :param subject: What shall be done.
    :raises ValueError: If the study is about something else; the message says where they differ.
    """
    found = study.user_attrs.get(_KEY)
    if not isinstance(found, dict):
        raise ValueError(
            f"the study {study.study_name!r} was not made by sb3-sparse tune: give another --study-name or --storage"
        )
    differences = [
        f"`{key}` {found.get(key)!r}, not {value!r}"
        for key, value in subject.to_json().items()
        if _present(found.get(key)) != _present(value)
    ]
    if differences:
        raise ValueError(
            f"the study {study.study_name!r} is about something else and cannot be resumed with this: it has "
            f"{'; '.join(differences)}. Give another --study-name, or the same arguments as before"
        )


def open_study(storage: BaseStorage, name: str, subject: Subject, *, resume: bool) -> optuna.Study:
    """
    Make a study, or go on with one.

    :param storage: The storage.
    :param name: Name of the study.
    :param subject: What it is about.
    :param resume: Whether it may be there already; it must then be about the same.
    :return: The study.
    :raises ValueError: If it is there and may not, or is about something else.
    """
    directions = [
        StudyDirection.MAXIMIZE if objective == RETURN else StudyDirection.MINIMIZE for objective in subject.objectives
    ]
    if not resume and name in optuna.get_all_study_names(storage):
        raise ValueError(f"there is a study {name!r} already: give --resume to go on with it, another --study-name or -o")
    # Another process may be faster
    study = optuna.create_study(study_name=name, storage=storage, directions=directions, load_if_exists=True)
    if _KEY not in study.user_attrs and not study.get_trials(deepcopy=False) and study.directions == directions:
        # New, or whoever made it came no further
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            # For optuna-dashboard
            study.set_metric_names([OBJECTIVES[objective] for objective in subject.objectives])
        study.set_user_attr(_KEY, subject.to_json())
    check_same(study, subject)
    return study
