"""``python -m sb3_sparse.benchmark overhead``: see each sub-command's ``-h``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from sb3_sparse.benchmark import overhead


def main(arguments: Sequence[str] | None = None) -> None:
    """
    :param arguments: Command line without the program; None for the process's own.
    """
    parser = argparse.ArgumentParser(prog="python -m sb3_sparse.benchmark")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("overhead", help="what the mechanism costs against the stock policy")
    overhead.add_arguments(command)
    command.set_defaults(run=overhead.run)
    parsed = parser.parse_args(arguments)
    parsed.run(parsed)


if __name__ == "__main__":
    main()
