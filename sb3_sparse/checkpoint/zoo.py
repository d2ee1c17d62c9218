"""
Checkpoints in trainings through rl-zoo3, and how such a training goes on: rl-zoo3's own ``train`` does it all, with the
``ExperimentManager`` of :mod:`sb3_sparse.checkpoint.zoo_manager`.
"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sb3_sparse.checkpoint.store import FOLDER_NAME, Store

#: Arguments of rl-zoo3's train that are no part of what goes on: hyperparameters are in the configuration that it saved, and
#: a pretrained agent in the checkpoint.
_NOT_HANDED_ON = ("conf_file", "hyperparams", "trained_agent", "uuid", "command", "saved_hyperparams")


class _PlainLoader(yaml.SafeLoader):
    """YAML as rl-zoo3 writes it, without calling anything."""


def _sequence(loader: Any, node: Any) -> list[Any]:
    return loader.construct_sequence(node, deep=True)


_PlainLoader.add_constructor(
    "tag:yaml.org,2002:python/object/apply:collections.OrderedDict",
    lambda loader, node: OrderedDict(_sequence(loader, node)[0]),
)
_PlainLoader.add_constructor("tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(_sequence(loader, node)))


@dataclass(frozen=True)
class ZooFolder:
    """
    A folder in which rl-zoo3 trained, with checkpoints or before the first of them.

    :param folder: The folder.
    :param arguments: Arguments of rl-zoo3's train.
    :param hyperparameters: What it trained with, as its configuration says it.
    :param allow_pickle: Whether the folder's checkpoint may hold pickles.
    :param store: Its checkpoints, kept from others.
    """

    folder: Path
    arguments: Mapping[str, Any]
    hyperparameters: Mapping[str, Any]
    allow_pickle: bool
    store: Store

    @classmethod
    def read(cls, folder: str | Path, *, allow_pickle: bool) -> ZooFolder:
        """
        Read the folder of a run.

        :param folder: The folder.
        :param allow_pickle: Whether it may hold pickles and Python objects; strings of a configuration are evaluated by
            rl-zoo3 in any case.
        :return: What it says.
        :raises FileNotFoundError: If it is none of rl-zoo3's.
        :raises ValueError: If a file cannot be read, or a training goes on in the folder.
        """
        folder = Path(folder)
        found = sorted(folder.glob("*/args.yml"))
        if len(found) != 1 or not (folder / FOLDER_NAME).is_dir():
            raise FileNotFoundError(
                f"`--resume` {folder} is no folder in which rl-zoo3 trained with checkpoints: give the folder that holds "
                f"`{FOLDER_NAME}` and the environment's own folder, e.g. logs/td3/Hopper-v4_1. A training in Python goes on "
                "with sb3_sparse.resume"
            )
        arguments, config = (_read(found[0].with_name(name), allow_pickle) for name in ("args.yml", "config.yml"))
        store = Store(folder / FOLDER_NAME)
        # Before an environment is made: it empties the files of its Monitor
        store.lock()
        return cls(folder, arguments, config, allow_pickle, store)

    def command_line(self) -> list[str]:
        """Arguments for rl-zoo3's train that say what those of the run said."""
        line: list[str] = []
        for name, value in self.arguments.items():
            if name in _NOT_HANDED_ON or value is None or value is False:
                continue
            option = f"--{name.replace('_', '-')}"
            if name == "truncate_last_trajectory":
                continue
            if value is True:
                line.append(option)
            elif isinstance(value, Mapping):
                line += [option, *(f"{key}:{item!r}" for key, item in value.items())] if value else []
            elif isinstance(value, (list, tuple)):
                line += [option, *map(str, value)] if value else []
            else:
                line.append(f"{option}={value}")
        return line


def _read(file: Path, allow_pickle: bool) -> dict[str, Any]:
    try:
        text = file.read_text()
        try:
            return dict(yaml.load(text, Loader=_PlainLoader))
        except yaml.constructor.ConstructorError as error:
            if not allow_pickle:
                raise ValueError(f"{file} holds Python objects, which was not allowed: {error}") from error
            # As rl-zoo3 reads it
            return dict(yaml.load(text, Loader=yaml.UnsafeLoader))
    except (OSError, yaml.YAMLError, TypeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


@dataclass(frozen=True)
class Plan:
    """
    What a training through rl-zoo3 does about checkpoints.

    :param options: Arguments of :class:`RunCheckpoint`; None: none but what the configuration names.
    :param run: The folder of a training that goes on, None for a new one.
    """

    options: dict[str, Any] | None = None
    run: ZooFolder | None = None


@contextmanager
def managing(plan: Plan) -> Iterator[None]:
    """
    Inside, rl-zoo3's train follows a plan.

    :param plan: The plan.
    """
    from sb3_sparse.checkpoint.zoo_manager import CheckpointingManager

    script: Any = importlib.import_module("rl_zoo3.train")
    before = script.ExperimentManager
    script.ExperimentManager = type(CheckpointingManager.__name__, (CheckpointingManager,), {"plan": plan})
    try:
        yield
    finally:
        script.ExperimentManager = before
