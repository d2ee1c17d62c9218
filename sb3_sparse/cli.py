"""``sb3-sparse``: argument parsing only, each sub-command a thin call."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

DESCRIPTION = "Sparse training for Stable-Baselines3"
ZOO_HELP = {
    "train": "train through rl-zoo3; --method NAME chooses a preset, everything else is rl-zoo3's (-h lists it)",
    "enjoy": "evaluate an agent trained by train; everything is rl-zoo3's (-h lists it)",
}


def _report(arguments: argparse.Namespace) -> None:
    from sb3_sparse.loading import find_model_file, load_model
    from sb3_sparse.report import sparsity_report

    report = sparsity_report(load_model(find_model_file(arguments.model), arguments.algo))
    print({"table": report.__str__, "markdown": report.to_markdown, "json": report.to_json}[arguments.format]())


def make_parser() -> argparse.ArgumentParser:
    """The parser of everything but the arguments that are handed on to rl-zoo3."""
    parser = argparse.ArgumentParser(prog="sb3-sparse", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in ZOO_HELP.items():
        commands.add_parser(name, help=text, add_help=False)
    report = commands.add_parser("report", help="say exactly what of a saved model is sparse")
    report.add_argument("model", help="a model's zip, or a folder: the model saved in it last")
    report.add_argument("--algo", help="the algorithm (td3, sac, ...); found out from the file if left out")
    report.add_argument("--format", choices=["table", "markdown", "json"], default="table")
    report.set_defaults(run=_report)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Entry point of ``sb3-sparse``.

    :param arguments: Command line without the program; None for the process's own.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments and arguments[0] in ZOO_HELP:
            from sb3_sparse.zoo import run

            run(arguments[0], arguments[1:])
        else:
            parsed = make_parser().parse_args(arguments)
            parsed.run(parsed)
    except (ValueError, TypeError, FileNotFoundError, ImportError, NotImplementedError) as error:
        # What the user can mend, without a traceback
        sys.exit(f"sb3-sparse: {error}")


if __name__ == "__main__":
    main()
