"""What may be asked: each option once, with its default, for Python and the command line alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sb3_sparse.runs.spec import slug
from sb3_sparse.tuning.study import REPORT_SEED, TUNING_EPISODES
from sb3_sparse.utils.checks import require_integer


@dataclass(frozen=True)
class Place:
    """
    Where a study is and who works on it.

    :param folder: Of its files; None: ``tune/<algorithm>-<environment>``, with ``-keep`` for the one-line question. Made if
        need be.
    :param storage: Journal or URL, see :func:`sb3_sparse.tuning.storage.open_storage`; None: ``study.db`` in the folder, or
        ``study.log`` if an earlier version left one there.
    :param study_name: None: as the folder.
    :param runs: Folder of the trainings, which sweeps and studies may share: none is done twice. None: ``runs`` in the folder.
    :param workers: Processes of this machine.
    :param resume: Whether to go on with a study that is there.
    :param retry: Whether trainings that have failed are done again.
    :param gym_packages: Modules that register the environment, which workers import.
    """

    folder: Path | None = None
    storage: str | None = None
    study_name: str | None = None
    runs: Path | None = None
    workers: int = 1
    resume: bool = False
    retry: bool = False
    gym_packages: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Task:
    """
    What all questions have in common.

    :param algo: rl-zoo3's name of the algorithm.
    :param env: Id of the environment.
    :param method: Preset that everything begins with; ``"static"`` if neither it nor ``conf_file`` is given.
    :param conf_file: A YAML file of rl-zoo3's instead.
    :param steps: Environment steps of a training; None: the configuration's.
    :param parameters: Other hyperparameters than the configuration's.
    :param episodes: Of each evaluation; the same for all configurations.
    :param seed: First seed of the trainings that choose.
    :param report_seeds: Trainings of what was found and of the dense reference afterwards, with other seeds and episodes.
    :param export_best: Folder for what was found as rl-zoo3's YAML; None for nowhere.
    """

    algo: str
    env: str
    method: str | None = None
    conf_file: str | Path | None = None
    steps: int | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    episodes: int = 20
    seed: int = 0
    report_seeds: int = 3
    export_best: str | Path | None = None

    #: Which kind of study it is, trainings of a trial, and who samples.
    kind, seeds, sampler = "", 1, ""

    def check(self, seeds: int) -> None:
        """
        Check the numbers.

        :param seeds: Seeds of trainings that choose.
        :raises ValueError: If one of them cannot be, or a seed would choose and be reported.
        """
        require_integer("--episodes", self.episodes, low=1)
        require_integer("--seed", self.seed, low=0, high=TUNING_EPISODES - 1000)
        require_integer("--report-seeds", self.report_seeds, low=0, high=1000)
        if self.seed + seeds > REPORT_SEED and self.seed < REPORT_SEED + self.report_seeds:
            raise ValueError(
                f"`--seed` {self.seed} to {self.seed + seeds - 1} must not be among the reporting seeds, "
                f"{REPORT_SEED} to {REPORT_SEED + self.report_seeds - 1}: what chooses must not be what is reported"
            )

    @property
    def name(self) -> str:
        """Name of the study, and of its folder in ``tune``, unless the user names them."""
        return f"{self.algo}-{slug(self.env)}" + ("-keep" if self.kind == "keep" else "")


@dataclass(frozen=True, kw_only=True)
class FrontQuestion(Task):
    """
    Which configurations are there of which none is both better and cheaper?

    :param objectives: ``"return"`` and one or more of the other :data:`sb3_sparse.tuning.objectives.OBJECTIVES`.
    :param search: What is searched, see :data:`sb3_sparse.tuning.spaces.SEARCHES`.
    :param trials: Configurations to try in all, the reference not counted.
    :param seeds: Trainings of each trial; their mean return counts.
    :param sampler: One of :data:`sb3_sparse.tuning.sampling.SAMPLERS`.
    """

    objectives: Sequence[str] = ("return", "flops")
    search: str | Sequence[str] = ("sparsity",)
    trials: int = 30
    seeds: int = 1
    sampler: str = "gp"

    kind = "search"


@dataclass(frozen=True, kw_only=True)
class KeepQuestion(Task):
    """
    How sparse can it be?

    :param fraction: Of what the dense network has learnt, to keep, in (0, 1).
    :param confidence: Of each decision of the search, and of the answer as a whole, one-sided, in [0.5, 1).
    :param trials: Trainings of the search at most, the reference's included.
    :param max_seeds: Trainings of one sparsity at most.
    :param most: The largest sparsity to try, in (0, 1).
    """

    fraction: float
    confidence: float = 0.9
    trials: int = 40
    max_seeds: int = 6
    most: float = 0.99
    report_seeds: int = 5

    kind, seeds, sampler = "keep", 1, "random"
