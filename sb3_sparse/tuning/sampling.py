"""
Which configuration a trial tries. Optuna's samplers learn from the trials that were sampled, and from those alone: the dense
reference has no parameters, and would make the common ground of all trials, on which some of them work, empty.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, PartialFixedSampler, RandomSampler, TPESampler
from optuna.trial import Trial, TrialState

from sb3_sparse.tuning.draft import Draft
from sb3_sparse.tuning.spaces import sample
from sb3_sparse.tuning.study import Subject
from sb3_sparse.utils.checks import require_choice


def _gp(seed: int) -> BaseSampler:
    # What only some trials have, the Gaussian process leaves to another
    others = TPESampler(seed=seed, multivariate=False)
    return GPSampler(seed=seed, independent_sampler=others, warn_independent_sampling=False)


#: Samplers by name, made from a seed; the first is the default. ``python -m sb3_sparse.benchmark samplers`` compares them.
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "gp": _gp,
    "tpe": lambda seed: TPESampler(seed=seed, multivariate=False),
    "random": lambda seed: RandomSampler(seed=seed),
}


def check_sampler(name: str) -> str:
    """
    Check the name of a sampler.

    :param name: What the user wants.
    :return: The same.
    :raises ValueError: If there is no such sampler.
    :raises ImportError: If it needs a package that is not installed.
    """
    require_choice("--sampler", name, list(SAMPLERS))
    if name == "gp" and importlib.util.find_spec("scipy") is None:
        raise ImportError("the sampler gp needs SciPy: pip install 'sb3-sparse[tuning]', or choose --sampler tpe")
    return name


def sample_section(trial: Trial, subject: Subject) -> dict[str, Any]:
    """
    Sample the configuration of a trial.

    :param trial: A trial.
    :param subject: What its study is about.
    :return: The configuration that it tries. Its policy is a sparse one in any case: what a stock one costs cannot be counted.
    """
    section = sample(trial, subject.search, subject.algo, subject.section, n_inputs=subject.n_inputs)
    draft = Draft(section, subject.algo, subject.n_inputs)
    if draft.is_sparse:
        return section
    draft.make_sparse()
    return draft.written()


def sample_next(study: optuna.Study, trial: Trial, subject: Subject, index: int) -> dict[str, Any]:
    """
    Let a sampler choose, and record what it chose.

    :param study: The study; its sampler is replaced.
    :param trial: A trial of it that belongs to this process. What was sampled for it already stays.
    :param subject: What the study is about.
    :param index: Which of the samples it is. This seeds the sampler: neither a study that is interrupted nor one that several
        processes share tries the same twice.
    :return: The configuration.
    """
    seed = (1_000_003 * subject.seed + index) % 2**32  # NumPy's seeds
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # A copy of the study in memory, with what the sampler shall know
        copy = optuna.create_study(directions=study.directions, sampler=SAMPLERS[subject.sampler](seed))
        known = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING))
        copy.add_trials([other for other in known if other.params and other.number != trial.number])
        # Earlier versions wrote down beside a trial what it repeats
        copy.enqueue_trial({**trial.user_attrs.get("given_parameters", {}), **trial.params})
        chosen = copy.ask()
        sample_section(chosen, subject)
        study.sampler = PartialFixedSampler(chosen.params, RandomSampler(seed=seed))
        return sample_section(trial, subject)
