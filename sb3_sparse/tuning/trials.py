"""The configuration of a trial of rl-zoo3's ``--optimize``, found again in the storage of its study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import yaml

from sb3_sparse.tuning.draft import Draft
from sb3_sparse.tuning.storage import file_of, open_storage
from sb3_sparse.zoo.sections import as_yaml

#: User attributes of a trial: what it trained, as the text of a configuration file, and the algorithm.
CONFIGURATION, ALGO = "configuration", "algo"
#: User attribute of a study: algorithm and environment, as one, since several threads and processes begin a study at once.
TASK = "task"


def remember(trial: Any, algo: str, env: str, section: Mapping[str, Any]) -> None:
    """
    Store with a trial what it trains.

    :param trial: The trial.
    :param algo: rl-zoo3's name of the algorithm.
    :param env: Id of the environment.
    :param section: The environment's section of a configuration.
    """
    trial.set_user_attr(ALGO, algo)
    trial.set_user_attr(CONFIGURATION, as_yaml(env, section))


def check_study(study: Any, algo: str, env: str) -> None:
    """
    Refuse a study of something else.

    :param study: A study.
    :param algo: rl-zoo3's name of the algorithm.
    :param env: Id of the environment.
    :raises ValueError: If it is known to search for another algorithm or environment: their trials do not compare.
    """
    of = study.user_attrs.get(TASK, [algo, env])
    if of != [algo, env]:
        raise ValueError(
            f"`study-name` {study.study_name!r} is a study of {of[0]} on {of[1]}, not of {algo} on {env}: choose another name"
        )


def claim_study(study: Any, algo: str, env: str) -> None:
    """
    Write into a study whose it is.

    :param study: A study.
    :param algo: rl-zoo3's name of the algorithm.
    :param env: Id of the environment.
    :raises ValueError: As :func:`check_study`.
    """
    check_study(study, algo, env)
    study.set_user_attr(TASK, [algo, env])


def open_study(storage: str, study_name: str) -> Any:
    """
    Open a study that is there.

    :param storage: As rl-zoo3 takes it: a journal's file, whose name ends with ``.log``, or a database's URL.
    :param study_name: Name of a study in it.
    :return: The study.
    :raises FileNotFoundError: If there is no such file.
    :raises ValueError: If the storage cannot be opened.
    :raises LookupError: If there is no such study; the message says which there are.
    """
    import optuna

    file = file_of(storage)
    if file is not None and not file.is_file():  # Optuna would make it
        raise FileNotFoundError(f"`storage` {storage!r}: there is no such file")
    opened = open_storage(storage)
    names = optuna.get_all_study_names(opened)
    if study_name not in names:
        raise LookupError(f"`study-name` {study_name!r} is not in {storage}; there are: {', '.join(names) or 'none'}")
    return optuna.load_study(study_name=study_name, storage=opened)


def find_trial(storage: str, study_name: str, trial_id: int) -> Any:
    """
    Find a trial.

    :param storage: As in :func:`open_study`.
    :param study_name: Name of a study in it.
    :param trial_id: Number of a trial; negative ones count from the end.
    :return: The trial.
    :raises FileNotFoundError: If there is no such file.
    :raises ValueError: If the storage cannot be opened, or there is no such study or trial; the message says what there is.
    """
    try:
        trials = open_study(storage, study_name).trials
    except LookupError as error:
        raise ValueError(error.args[0]) from error
    if not -len(trials) <= trial_id < len(trials):
        there_are = f"0 to {len(trials) - 1}" if trials else "none"
        raise ValueError(f"`trial-id` {trial_id} is not in study {study_name!r}; there are: {there_are}")
    return trials[trial_id]


def trial_section(trial: Any, algo: str, env: str) -> dict[str, Any] | None:
    """
    Read what a trial trained.

    :param trial: A trial.
    :param algo: rl-zoo3's name of the algorithm.
    :param env: Id of the environment.
    :return: The section that the trial trained, all of it; None if it does not say, as rl-zoo3's own do not.
    :raises ValueError: If the trial is one of another algorithm or environment.
    """
    if CONFIGURATION not in trial.user_attrs:
        return None
    sections = yaml.safe_load(trial.user_attrs[CONFIGURATION])
    if trial.user_attrs.get(ALGO) != algo or env not in sections:
        raise ValueError(
            f"trial {trial.number} is one of {trial.user_attrs.get(ALGO)} on {', '.join(sections)}, not of {algo} on {env}"
        )
    return sections[env]


def convert_stock(converter: Callable[[dict[str, Any]], dict[str, Any]], params: Mapping[str, Any]) -> dict[str, Any]:
    """
    What rl-zoo3's own search has changed in a configuration. A ``noise_type`` of None, which rl-zoo3 would hand on to an
    algorithm that does not know it, changed nothing: the trial was trained with the noise of the configuration.

    :param converter: rl-zoo3's converter for the algorithm.
    :param params: Parameters of a trial.
    :return: Entries of a section.
    :raises ValueError: If the parameters are not those of rl-zoo3's search.
    """
    try:
        entries = converter(dict(params))
    except KeyError as error:
        raise ValueError(f"the trial's parameters are not those of rl-zoo3's own search: {error} is missing") from error
    if "noise_type" in entries and entries["noise_type"] is None:
        del entries["noise_type"], entries["noise_std"]
    return entries


def found_section(where: tuple[str, str, int], algo: str, env: str, base: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """
    Find what a trial trained.

    :param where: Storage, name of the study, and number of the trial.
    :param algo: rl-zoo3's name of the algorithm.
    :param env: Id of the environment.
    :param base: Gives the section that rl-zoo3's own search has changed; only asked if the trial does not hold a whole one.
    :return: The section that the trial trained, everything in it as YAML holds it.
    :raises FileNotFoundError: As :func:`find_trial`.
    :raises ValueError: As :func:`find_trial`, :func:`trial_section` and :func:`convert_stock`.
    """
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER

    trial = find_trial(*where)
    if (section := trial_section(trial, algo, env)) is not None:
        return section
    converter = HYPERPARAMS_CONVERTER.get(algo)
    converter = getattr(converter, "stock", converter)
    if converter is None:
        raise ValueError(f"trial {trial.number} does not say what it trained, and rl-zoo3 has no converter for {algo}")
    return Draft({**base(), **convert_stock(converter, trial.params)}, algo).written()
