"""The command line of ``sb3-sparse tune``; imports nothing that takes time."""

from __future__ import annotations

import argparse

from sb3_sparse.utils.command_line import hyperparameter


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def add_tune_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: Parser of the ``tune`` sub-command.
    """
    task = parser.add_argument_group("what is trained")
    task.add_argument("--algo", required=True, help="the algorithm (td3, sac, dqn, ...)")
    task.add_argument("--env", required=True, help="id of the environment")
    task.add_argument("--method", help="preset that everything begins with (default: static)")
    task.add_argument("-conf", "--conf-file", metavar="FILE.yml", help="rl-zoo3 configuration to begin with instead")
    task.add_argument(
        "--gym-packages", nargs="+", default=[], metavar="MODULE", help="modules to import that register the environment"
    )
    task.add_argument("-n", "--steps", type=int, help="environment steps of a training; the configuration's if left out")
    task.add_argument(
        "--params", nargs="+", type=hyperparameter, default=[], metavar="NAME:VALUE", help="other than the configuration's"
    )
    task.add_argument("--episodes", type=int, default=20, help="of each evaluation, the same for all (default: 20)")

    search = parser.add_argument_group("Pareto front")
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

    question = parser.add_argument_group("one-line question")
    question.add_argument(
        "--keep", type=float, metavar="FRACTION", help="instead of a front: the sparsest network that keeps so much of dense"
    )
    question.add_argument("--most", type=float, metavar="S", help="largest sparsity to try (default: 0.99)")
    question.add_argument("--confidence", type=float, help="of each decision and of the answer (default: 0.9)")
    question.add_argument("--max-seeds", type=int, metavar="N", help="trainings of one sparsity at most (default: 6)")

    both = parser.add_argument_group("budget, seeds, processes, files")
    both.add_argument("--trials", type=int, help="configurations in all (default: 30); with --keep trainings (default: 40)")
    both.add_argument("--seed", type=int, default=0, help="first seed of the trainings that choose (default: 0)")
    both.add_argument(
        "--report-seeds", type=int, metavar="N", help="trainings with other seeds for the report (default: 3; with --keep 5)"
    )
    both.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    both.add_argument("-o", "--output", metavar="FOLDER", help="for all files (default: tune/ALGO-ENV)")
    both.add_argument("--storage", help="NAME.log, or a database's URL (default: study.log in the output folder)")
    both.add_argument("--study-name", help="(default: ALGO-ENV)")
    both.add_argument("--resume", action="store_true", help="go on with a study that is there")
    both.add_argument("--export-best", metavar="DIR", help="write what was found as rl-zoo3 YAML")
