"""The command lines of ``sweep`` and ``compare``; imports nothing that takes time."""

from __future__ import annotations

import argparse

from sb3_sparse.utils.command_line import hyperparameter


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="FOLDER", help="for all files")
    parser.add_argument(
        "--runs", metavar="FOLDER", help="of the trainings; share it, and none is done twice (default: OUTPUT/runs)"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes of this machine (default: 1)")
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="train on a Ray cluster instead: its address, or auto for the one of this machine"
    )
    parser.add_argument("--retry", action="store_true", help="do trainings again that have failed")
    parser.add_argument(
        "--gym-packages", nargs="+", default=[], metavar="MODULE", help="modules to import that register environments"
    )


def add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments of ``sweep``.

    :param parser: Its parser.
    """
    parser.add_argument("grid", metavar="GRID.yml", help="methods, algorithms, environments, sparsities, seeds")
    parser.add_argument("--dry-run", action="store_true", help="check the grid, say what would be trained, and train nothing")
    _add_place(parser)


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments of ``compare``.

    :param parser: Its parser.
    """
    parser.add_argument("methods", nargs="+", metavar="METHOD", help="presets; dense is among them without being asked for")
    parser.add_argument("--env", nargs="+", required=True, help="ids of environments")
    parser.add_argument("--algo", nargs="+", help="algorithms (default: sac for continuous actions, dqn for discrete ones)")
    parser.add_argument("--sparsity", nargs="+", type=float, default=[], metavar="S", help="instead of the methods' own")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1 (default: 3)")
    parser.add_argument("-n", "--steps", type=int, help="environment steps of a training; the presets' if left out")
    parser.add_argument("--episodes", type=int, default=20, help="of each evaluation (default: 20)")
    parser.add_argument("--evaluations", type=int, default=20, help="along a training (default: 20)")
    parser.add_argument(
        "--params", nargs="+", type=hyperparameter, default=[], metavar="NAME:VALUE", help="other than the presets'"
    )
    _add_place(parser)
