"""What ``sb3-sparse tune`` does with its arguments."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import threading
from pathlib import Path
from typing import Any

#: Options that only one of both uses understands.
_SEARCH_ONLY = ("objectives", "search", "sampler", "seeds")
_KEEP_ONLY = ("confidence", "max_seeds", "most")


def _given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Options that were given; the others have their defaults where they are used."""
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def run(arguments: argparse.Namespace) -> None:
    """
    Search, or answer the question, and print what came out.

    :param arguments: Parsed by :func:`sb3_sparse.tuning.arguments.add_tune_arguments`.
    :raises ValueError: For mistakes, before anything is trained.
    :raises ImportError: Without rl-zoo3, saying how to install it.
    """
    misplaced = _given(arguments, *(_SEARCH_ONLY if arguments.keep is not None else _KEEP_ONLY))
    if misplaced:
        names = ", ".join(f"`--{name.replace('_', '-')}`" for name in misplaced)
        raise ValueError(
            f"{names} cannot be combined with `--keep`, which searches the sparsity of one method"
            if arguments.keep is not None
            else f"{names} belongs to `--keep`"
        )
    try:
        import optuna
        import rl_zoo3  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(f"tune needs rl-zoo3 ({error}): pip install 'sb3-sparse[tuning]'") from error
    from sb3_sparse.tuning.storage import DATABASE_ERRORS

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    in_main_thread = threading.current_thread() is threading.main_thread()
    # As Ctrl-C: workers are ended, and their trials wait for whoever resumes
    before = signal.signal(signal.SIGTERM, _interrupt) if in_main_thread else None
    try:
        _run(arguments)
    except KeyboardInterrupt:
        sys.exit("sb3-sparse: interrupted; the same command with --resume goes on")
    except ChildProcessError as error:
        sys.exit(f"sb3-sparse: {error}")
    except DATABASE_ERRORS as error:
        sys.exit(f"sb3-sparse: the storage failed, the same command with --resume goes on: {' '.join(str(error).split())}")
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)


def _run(arguments: argparse.Namespace) -> None:
    from sb3_sparse.tuning.question import keep
    from sb3_sparse.tuning.session import Place
    from sb3_sparse.tuning.tune import tune

    place = Place(
        folder=Path(arguments.output) if arguments.output else None,
        storage=arguments.storage,
        study_name=arguments.study_name,
        workers=arguments.workers,
        resume=arguments.resume,
        gym_packages=tuple(arguments.gym_packages),
    )
    for package in place.gym_packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(f"`--gym-packages` {package!r} cannot be imported: {error}") from error
    common: dict[str, Any] = dict(
        method=arguments.method,
        conf_file=arguments.conf_file,
        steps=arguments.steps,
        parameters=dict(arguments.params),
        episodes=arguments.episodes,
        seed=arguments.seed,
        place=place,
        export_best=arguments.export_best,
        **_given(arguments, "trials", "report_seeds"),
    )
    if arguments.keep is not None:
        answer = keep(arguments.algo, arguments.env, arguments.keep, **common, **_given(arguments, *_KEEP_ONLY))
        files = answer.files
        print(answer.line)
    else:
        found = tune(arguments.algo, arguments.env, **common, **_given(arguments, *_SEARCH_ONLY))
        files = found.files
        print(found.table)
    # The answer to --keep is one line, whatever reads it
    for file in files:
        print(f"written to {file}", file=sys.stderr if arguments.keep is not None else sys.stdout)
