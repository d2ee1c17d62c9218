"""
rl-zoo3 with this plugin imported: ``python -m sb3_sparse.zoo train --algo td3 --env Hopper-v4 --method static``.

Everything but ``--method`` is handed to rl-zoo3's own ``train`` and ``enjoy`` as it is.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import sb3_sparse  # noqa: F401  # registers the policies
from sb3_sparse.environments import require_packages
from sb3_sparse.policies import SPARSE_POLICIES
from sb3_sparse.presets import preset_file

COMMANDS = ("train", "enjoy")
#: Where rl-zoo3's train puts its results. Its enjoy looks elsewhere, and downloads what it does not find there.
LOG_FOLDER = "logs"


def zoo_arguments(command: str, arguments: Sequence[str]) -> list[str]:
    """
    Turn this plugin's arguments into rl-zoo3's.

    :param command: ``"train"`` or ``"enjoy"``.
    :param arguments: Command line without program and command.
    :return: Command line for rl-zoo3's script.
    :raises ValueError: For an algorithm or method there is not, or ``--method`` together with ``--conf-file``.
    :raises ImportError: If a package that the environment needs is not installed, saying how to install it.
    """
    from rl_zoo3.utils import ALGOS

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--algo", default="ppo")
    parser.add_argument("--env")
    parser.add_argument("-conf", "--conf-file")
    parser.add_argument("-f", "--folder", "--log-folder")
    if command == "train":
        parser.add_argument("--method")
    known, rest = parser.parse_known_args(list(arguments))
    supported = [name for name, algorithm in ALGOS.items() if algorithm in SPARSE_POLICIES]
    if known.algo not in supported:
        raise ValueError(f"`--algo` {known.algo!r} is not supported; supported are: {', '.join(supported)}")
    result = ["--algo", known.algo]
    if known.env:
        require_packages(known.env)
        result += ["--env", known.env]
    result += rest
    if command == "enjoy":
        return [*result, "-f", known.folder or LOG_FOLDER]
    if known.method and known.conf_file:
        raise ValueError("`--method` chooses a configuration file, and `--conf-file` names one: give one of them")
    configuration = str(preset_file(known.method, known.algo)) if known.method else known.conf_file
    if configuration:
        result += ["-conf", configuration]
    if known.folder:
        result += ["-f", known.folder]
    return result


def run(command: str, arguments: Sequence[str]) -> None:
    """
    Run rl-zoo3's script.

    :param command: ``"train"`` or ``"enjoy"``.
    :param arguments: Command line without program and command.
    :raises ImportError: If rl-zoo3 is not installed, saying how to install it.
    :raises ValueError: As in :func:`zoo_arguments`.
    """
    try:
        script = getattr(importlib.import_module(f"rl_zoo3.{command}"), command)
    except ModuleNotFoundError as error:
        raise ImportError(f"{command} needs rl-zoo3 ({error}): pip install 'sb3-sparse[zoo]'") from error
    own = sys.argv
    sys.argv = [f"sb3-sparse {command}", *zoo_arguments(command, arguments)]
    try:
        script()
    finally:
        sys.argv = own


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"usage: python -m sb3_sparse.zoo {{{','.join(COMMANDS)}}} ...")
    run(sys.argv[1], sys.argv[2:])
