"""``sb3-sparse completion``: a script by which a shell completes this command. shtab writes it, from the parser."""

from __future__ import annotations

import argparse
import io
import re
import sys
from contextlib import redirect_stdout
from types import ModuleType
from typing import Any

from sb3_sparse.cli.checkpoints import add_checkpoint_arguments
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


def _zoo_options(command: str) -> list[tuple[list[str], dict[str, Any]]]:
    """
    Options of rl-zoo3's script from its help, as ``add_argument`` takes them: its parser is local to a function.

    :return: Nothing where rl-zoo3 is not installed.
    """
    own, text = sys.argv, io.StringIO()
    try:
        script = getattr(__import__(f"rl_zoo3.{command}", fromlist=[command]), command)
        sys.argv = [f"sb3-sparse {command}", "-h"]
        with redirect_stdout(text):
            script()
    except (ImportError, SystemExit):
        pass
    finally:
        sys.argv = own
    found: list[tuple[list[str], dict[str, Any]]] = []
    for line in text.getvalue().splitlines():
        if re.match(r"  -", line):
            written = line.strip().partition("  ")[0]
            flags = re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", written)
            choices = re.search(r"\{(.+?)\}", written)
            if "--algo" in flags:
                found.append((flags, {"choices": supported_algorithms()}))
            elif choices:
                found.append((flags, {"choices": choices[1].split(",")}))
            else:  # a name in capitals stands for its value
                found.append((flags, {} if re.search(r" [A-Z]", written) else {"action": "store_true"}))
    return found


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
    add_checkpoint_arguments(subparsers.choices["train"])
    subparsers.choices["train"].add_argument("--method", choices=methods())
    subparsers.choices["train"].add_argument("--search")
    for command in ("train", "enjoy"):
        known = {flag for action in subparsers.choices[command]._actions for flag in action.option_strings}
        for flags, options in _zoo_options(command):
            if not known & set(flags):
                subparsers.choices[command].add_argument(*flags, **options)
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
