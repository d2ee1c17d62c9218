"""What ``sb3-sparse train`` is told about checkpoints."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from sb3_sparse.checkpoint.run_checkpoint import RunCheckpoint
from sb3_sparse.checkpoint.zoo import Plan, ZooFolder
from sb3_sparse.utils.command_line import Parser
from sb3_sparse.zoo.environments import require_packages


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add what ``train`` is told about checkpoints.

    :param parser: A parser of ``train``.
    """
    parser.add_argument("--checkpoint-every", type=int, metavar="STEPS", help="environment steps between checkpoints")
    parser.add_argument("--checkpoint-minutes", type=float, metavar="MINUTES", help="minutes between checkpoints")
    parser.add_argument("--checkpoint-keep", type=int, metavar="N", help="checkpoints that are kept, the latest")
    parser.add_argument("--no-pickle", action="store_true", help="write and read checkpoints without pickle")
    parser.add_argument("--resume", metavar="RUN_FOLDER", help="go on with an interrupted training; takes no other argument")


def checkpoint_plan(arguments: Sequence[str]) -> tuple[Plan, list[str]]:
    """
    Find out what a command line says about checkpoints.

    :param arguments: Command line of ``train``, without program and command.
    :return: What it says about checkpoints, and the rest.
    :raises ValueError: For values out of range, and anything that does not go with ``--resume``.
    :raises FileNotFoundError: If there is nothing to resume in a folder.
    """
    parser = Parser(prog="sb3-sparse train", add_help=False, allow_abbrev=False)
    add_checkpoint_arguments(parser)
    known, rest = parser.parse_known_args(list(arguments))
    given = {"every": known.checkpoint_every, "minutes": known.checkpoint_minutes, "keep": known.checkpoint_keep}
    options = {name: value for name, value in given.items() if value is not None}
    if known.resume is not None:
        others = [*rest, *(f"--checkpoint-{name}" for name in options)]
        if others:
            raise ValueError(f"`--resume` goes on with what the run's folder says, and takes no {' '.join(others)}")
        return Plan(run=ZooFolder.read(known.resume, allow_pickle=not known.no_pickle)), []
    if not options:
        if known.no_pickle:
            raise ValueError(
                "`--no-pickle` is about checkpoints: give `--checkpoint-every`, `--checkpoint-minutes` or `--resume`"
            )
        return Plan(), rest
    options |= {"allow_pickle": not known.no_pickle, "verbose": 1}
    RunCheckpoint(**options)  # says now what is wrong
    return Plan(options), rest


def resumed_command_line(plan: Plan) -> list[str]:
    """
    Make the command line of a run that goes on.

    :param plan: A plan with the folder of a run.
    :return: Arguments for rl-zoo3's train.
    :raises ImportError: If a package that the environment needs is not installed.
    """
    assert plan.run is not None
    require_packages(str(plan.run.arguments["env"]))
    return plan.run.command_line()
