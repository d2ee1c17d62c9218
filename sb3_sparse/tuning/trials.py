"""The configuration of a trial of rl-zoo3's ``--optimize``, found again in the storage of its study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from sb3_sparse.tuning.draft import Draft
from sb3_sparse.tuning.files import as_yaml

#: User attributes of a trial: what it trained, as the text of a configuration file, and the algorithm.
CONFIGURATION, ALGO = "configuration", "algo"


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


def _open_storage(storage: str) -> Any:
    from optuna.storages import JournalStorage, get_storage
    from optuna.storages.journal import JournalFileBackend
    from sqlalchemy.exc import SQLAlchemyError

    is_journal = storage.endswith(".log")
    file = storage if is_journal else storage.partition("///")[2] if storage.startswith("sqlite") else None
    if file is not None and not Path(file).is_file():
        # Optuna would make it
        raise FileNotFoundError(f"`storage` {storage!r}: there is no such file")
    try:
        return JournalStorage(JournalFileBackend(storage)) if is_journal else get_storage(storage)
    except (SQLAlchemyError, ModuleNotFoundError) as error:
        raise ValueError(f"`storage` {storage!r} cannot be opened: {error}") from error


def find_trial(storage: str, study_name: str, trial_id: int) -> Any:
    """
    :param storage: As rl-zoo3 takes it: a journal's file, whose name ends with ``.log``, or a database's URL.
    :param study_name: Name of a study in it.
    :param trial_id: Number of a trial; negative ones count from the end.
    :return: The trial.
    :raises FileNotFoundError: If there is no such file.
    :raises ValueError: If the storage cannot be opened, or there is no such study or trial; the message says what there is.
    """
    import optuna

    opened = _open_storage(storage)
    names = optuna.get_all_study_names(opened)
    if study_name not in names:
        raise ValueError(f"`study-name` {study_name!r} is not in {storage}; there are: {', '.join(names) or 'none'}")
    trials = optuna.load_study(study_name=study_name, storage=opened).trials
    if not -len(trials) <= trial_id < len(trials):
        there_are = f"0 to {len(trials) - 1}" if trials else "none"
        raise ValueError(f"`trial-id` {trial_id} is not in study {study_name!r}; there are: {there_are}")
    return trials[trial_id]


def trial_section(trial: Any, algo: str, env: str) -> dict[str, Any] | None:
    """
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
