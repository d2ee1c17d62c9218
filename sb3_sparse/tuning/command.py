"""What ``sb3-sparse tune`` does with its arguments."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from typing import Any

from sb3_sparse.utils.command_line import import_modules


def run(arguments: argparse.Namespace) -> None:
    """
    Search, or answer the question, and print what came out.

    :param arguments: Parsed by :func:`sb3_sparse.tuning.arguments.add_tune_arguments`.
    :raises ValueError: For mistakes, before anything is trained.
    :raises ImportError: Without rl-zoo3, saying how to install it.
    """
    try:
        import optuna
        import rl_zoo3  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(f"tune needs rl-zoo3 ({error}): pip install 'sb3-sparse[tuning]'") from error
    from sb3_sparse.runs.driver import interruptible
    from sb3_sparse.tuning.storage import DATABASE_ERRORS

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with interruptible():
            _run(arguments)
    except KeyboardInterrupt:
        sys.exit("sb3-sparse: interrupted; the same command with --resume goes on")
    except ChildProcessError as error:
        sys.exit(f"sb3-sparse: {error}")
    except DATABASE_ERRORS as error:
        sys.exit(f"sb3-sparse: the storage failed, the same command with --resume goes on: {' '.join(str(error).split())}")


def _given(arguments: argparse.Namespace, kind: type) -> dict[str, Any]:
    """Options of a dataclass that were given; the others have their defaults there."""
    names = [column.name for column in fields(kind)]
    return {name: value for name in names if (value := getattr(arguments, name, None)) is not None}


def _run(arguments: argparse.Namespace) -> None:
    from sb3_sparse.tuning.front import find_front
    from sb3_sparse.tuning.questions import FrontQuestion, KeepQuestion, Place
    from sb3_sparse.tuning.sparsest import find_sparsest

    place = Place(**_given(arguments, Place))
    import_modules("--gym-packages", place.gym_packages)
    arguments.parameters = dict(arguments.parameters)
    if arguments.question == "keep":
        if (arguments.fraction is None) == (arguments.keep is None):
            raise ValueError("`tune keep` needs one FRACTION to keep: sb3-sparse tune keep 0.97 --algo ... --env ...")
        arguments.fraction = arguments.keep if arguments.fraction is None else arguments.fraction
        answer = find_sparsest(KeepQuestion(**_given(arguments, KeepQuestion)), place)
        files = answer.files
        print(answer.line)
    else:
        found = find_front(FrontQuestion(**_given(arguments, FrontQuestion)), place)
        files = found.files
        print(found.table)
    # The answer to keep is one line, whatever reads it
    for file in files:
        print(f"written to {file}", file=sys.stderr if arguments.question == "keep" else sys.stdout)
