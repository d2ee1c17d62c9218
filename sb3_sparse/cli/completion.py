"""``sb3-sparse completion``: a script by which a shell completes this command. shtab writes it, from the parser."""

from __future__ import annotations

import argparse
import importlib
from contextlib import suppress
from types import ModuleType
from typing import Any, NoReturn

from sb3_sparse.cli.checkpoints import add_checkpoint_arguments
from sb3_sparse.cli.zoo import add_preset_arguments, parsing_with
from sb3_sparse.tuning.merge import supported_algorithms
from sb3_sparse.zoo.presets import presets_folder

#: Arguments that are files or folders, by destination.
_FILES = ("model", "grid", "files", "conf_file")
_FOLDERS = ("folder", "log_folder", "resume", "export_best")


def _shtab() -> ModuleType:
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise ImportError(f"completion needs shtab ({error}): pip install 'sb3-sparse[completion]'") from error
    return shtab


def methods() -> list[str]:
    """
    List the presets.

    :return: Names for ``--method``, sorted: ``rlx2``, ``rlx2/set``, ...
    """
    folder = presets_folder()
    return sorted({file.parent.relative_to(folder).as_posix() for file in folder.rglob("*.yml")} - {"."})


def _zoo_actions(command: str) -> list[argparse.Action]:
    """
    Options of rl-zoo3's script, from the parser that it makes in a function.

    :return: Nothing where rl-zoo3 is not installed.
    """
    made: list[argparse.ArgumentParser] = []

    class Unused(argparse.ArgumentParser):
        def parse_args(self, *arguments: Any) -> NoReturn:  # type: ignore[override]
            made.append(self)
            raise SystemExit

    with suppress(ImportError, SystemExit):
        module = importlib.import_module(f"rl_zoo3.{command}")
        with parsing_with(module, Unused):
            getattr(module, command)()
    return [action for parser in made for action in parser._actions]


def _mark_files(parser: argparse.ArgumentParser, shtab: ModuleType) -> None:
    """Say which arguments of a parser, and of its sub-commands, are files and folders."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                _mark_files(one, shtab)
        elif action.dest in (*_FILES, *_FOLDERS):
            action.complete = shtab.FILE if action.dest in _FILES else shtab.DIRECTORY  # type: ignore[attr-defined]


def completed_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """
    Add to a parser what a shell has to know beyond what the command parses itself.

    :param parser: That of the whole command; it is changed.
    :return: The same: ``train`` and ``enjoy`` have their options, and arguments that are files say so.
    """
    shtab = _shtab()
    subparsers: Any = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    train = subparsers.choices["train"]
    add_preset_arguments(train)
    add_checkpoint_arguments(train)
    next(action for action in train._actions if action.dest == "method").choices = methods()
    for command in ("train", "enjoy"):
        mine = subparsers.choices[command]
        known = {flag for action in mine._actions for flag in action.option_strings}
        for action in _zoo_actions(command):
            if action.dest == "algo":
                action.choices = list(supported_algorithms())
            if not known & set(action.option_strings):
                mine._add_action(action)
    _mark_files(parser, shtab)
    return parser


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """
    Write the script.

    :param parser: Parser of the whole command; it is changed.
    :param shell: ``"bash"`` or ``"zsh"``.
    :return: The script.
    :raises ImportError: If shtab is not installed, saying how to install it.
    """
    return str(_shtab().complete(completed_parser(parser), shell=shell))
