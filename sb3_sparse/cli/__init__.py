"""The command line: parsing, and one thin call for each sub-command."""

from sb3_sparse.cli.main import main

__all__ = ["main"]
