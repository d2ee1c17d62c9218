"""The command line of ``sb3-sparse tune``; imports nothing that takes time."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sb3_sparse.utils.command_line import hyperparameter

QUESTIONS = ("front", "keep")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def with_question(arguments: Sequence[str]) -> list[str]:
    """
    Accept the form of earlier versions, in which ``--keep 0.97`` said which question it is.

    :param arguments: Command line after ``tune``.
    :return: The same, ``front`` or ``keep`` at its beginning.
    """
    first = arguments[0] if arguments else ""
    if first in (*QUESTIONS, "-h", "--help"):
        return list(arguments)
    is_keep = any(argument.partition("=")[0] == "--keep" for argument in arguments)
    return ["keep" if is_keep else "front", *arguments]


def _add_task(parser: argparse.ArgumentParser) -> None:
    task = parser.add_argument_group("what is trained")
    task.add_argument("--algo", required=True, help="the algorithm (td3, sac, dqn, ...)")
    task.add_argument("--env", required=True, help="id of the environment")
    task.add_argument(
        "--method", help="preset that everything begins with (default: static, for every algorithm that there is)"
    )
    task.add_argument("-conf", "--conf-file", metavar="FILE.yml", help="rl-zoo3 configuration to begin with instead")
    task.add_argument(
        "--gym-packages", nargs="+", default=[], metavar="MODULE", help="modules to import that register the environment"
    )
    task.add_argument("-n", "--steps", type=int, help="environment steps of a training; the configuration's if left out")
    task.add_argument(
        "--params",
        nargs="+",
        type=hyperparameter,
        default=[],
        dest="parameters",
        metavar="NAME:VALUE",
        help="other than the configuration's",
    )
    task.add_argument("--episodes", type=int, help="of each evaluation, the same for all (default: 20)")


def _add_place(parser: argparse.ArgumentParser, *, report_seeds: int) -> None:
    both = parser.add_argument_group("seeds, processes, files")
    both.add_argument("--seed", type=int, help="first seed of the trainings that choose (default: 0)")
    both.add_argument(
        "--report-seeds",
        type=int,
        metavar="N",
        help=f"trainings with other seeds for the report (default: {report_seeds})",
    )
    both.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    both.add_argument(
        "-o", "--output", dest="folder", type=Path, metavar="FOLDER", help="for all files (default: tune/ALGO-ENV)"
    )
    both.add_argument(
        "--runs", type=Path, metavar="FOLDER", help="of the trainings; share it, and none is done twice (default: OUTPUT/runs)"
    )
    both.add_argument("--storage", help="NAME.log, or a database's URL (default: study.db in the output folder)")
    both.add_argument("--study-name", help="(default: ALGO-ENV)")
    both.add_argument("--resume", action="store_true", help="go on with a study that is there")
    both.add_argument("--retry", action="store_true", help="do trainings again that have failed")
    both.add_argument("--export-best", metavar="DIR", help="write what was found as rl-zoo3 YAML")


def add_tune_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add ``front`` and ``keep``.

    :param parser: Parser of the ``tune`` sub-command.
    """
    questions = parser.add_subparsers(dest="question", required=True)
    front = questions.add_parser("front", help="return against size, as a Pareto front")
    _add_task(front)
    search = front.add_argument_group("search")
    search.add_argument(
        "--objectives",
        type=_names,
        metavar="return,NAME",
        help="return and one or more of flops, bytes, parameters, latency (default: return,flops)",
    )
    search.add_argument(
        "--search",
        metavar="NAME,NAME",
        help="what is searched: sparsity, distribution, pattern, updater, ... (default: sparsity; an unknown name lists all)",
    )
    search.add_argument("--sampler", choices=["gp", "tpe", "random"], help="Optuna's sampler (default: gp)")
    search.add_argument("--seeds", type=int, metavar="N", help="trainings of a trial, whose mean return counts (default: 1)")
    search.add_argument("--trials", type=int, help="configurations in all (default: 30)")
    _add_place(front, report_seeds=3)

    keep = questions.add_parser("keep", help="the sparsest network that keeps so much of dense, in one line")
    keep.add_argument("fraction", nargs="?", type=float, metavar="FRACTION", help="to keep of what dense has learnt: 0.97")
    keep.add_argument("--keep", type=float, metavar="FRACTION", help="the same, as in earlier versions")
    _add_task(keep)
    search = keep.add_argument_group("search")
    search.add_argument("--most", type=float, metavar="S", help="largest sparsity to try (default: 0.99)")
    search.add_argument("--confidence", type=float, help="of each decision and of the answer (default: 0.9)")
    search.add_argument("--max-seeds", type=int, metavar="N", help="trainings of one sparsity at most (default: 6)")
    search.add_argument("--trials", type=int, help="trainings in all (default: 40)")
    _add_place(keep, report_seeds=5)
