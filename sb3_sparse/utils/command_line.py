"""What command lines share: hyperparameters like ``learning_rate:1e-3``, and how a mistake is answered."""

from __future__ import annotations

import argparse
import importlib
import os
import select
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import yaml

#: Exit code of a program that SIGPIPE ends, as shells give it.
READER_GONE = 128 + 13


class Refusal(SystemExit):
    """
    The end of a command that cannot be done as it was asked: one line on standard error, and exit code 2, as argparse has it.

    :param program: Name of the program.
    :param reason: What is wrong and what is allowed.
    """

    def __init__(self, program: str, reason: object) -> None:
        super().__init__(2)
        self.message = f"{program}: {' '.join(str(reason).split())}"
        print(self.message, file=sys.stderr)

    def __str__(self) -> str:
        return self.message


def _reader_is_gone() -> bool:
    """Whether nobody reads standard output any more; a pipe to somebody else may be broken as well."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
    except (AttributeError, OSError, ValueError):
        return False  # Windows; or it is no file
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _flush() -> None:
    if sys.stdout is not None:  # closed by the shell
        sys.stdout.flush()


@contextmanager
def command(program: str) -> Iterator[None]:
    """
    Run a command: what the user can mend is answered in one line without a traceback, and a reader that has enough, such as
    ``head``, ends it in silence.

    :param program: Name of the program.
    :raises Refusal: For errors that the user can mend.
    """
    code: Any = None
    try:
        try:
            yield
        except SystemExit as end:
            code = end.code
            _flush()  # of -h, say
            raise
        _flush()
    except (ValueError, TypeError, OSError, ImportError, NotImplementedError) as error:
        if not isinstance(error, BrokenPipeError) or not _reader_is_gone():
            raise Refusal(program, error) from error
        # What is left to be written when Python ends would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(code or READER_GONE)


class Parser(argparse.ArgumentParser):
    """A parser that answers a mistake as commands do: in one line, with exit code 2. ``-h`` shows what there is."""

    def error(self, message: str) -> NoReturn:
        """
        Refuse a command line.

        :param message: What is wrong with it.
        :raises Refusal: Always.
        """
        raise Refusal(self.prog, f"{message} (-h says what there is)")


def hyperparameter(text: str) -> tuple[str, Any]:
    """
    A hyperparameter as it is written on a command line.

    :param text: ``NAME:VALUE``, the value as in a YAML file, but that ``1e-3`` is a number, too, and ``1e5`` an integer.
    :return: Name and value.
    :raises argparse.ArgumentTypeError: If it looks different.
    """
    name, separator, written = text.partition(":")
    try:
        if not separator or not name.isidentifier():
            raise ValueError
        value = yaml.safe_load(written)
    except (ValueError, yaml.YAMLError) as error:
        raise argparse.ArgumentTypeError(f"a hyperparameter looks like learning_starts:1000, not {text!r}") from error
    if isinstance(value, str):
        # YAML 1.1 wants a dot and a sign in 1.0e+5
        try:
            number = float(value)
        except ValueError:
            return name, value
        return name, int(number) if number.is_integer() and "." not in value else number
    return name, value


def import_modules(option: str, names: Sequence[str]) -> None:
    """
    Import modules that the user names, which register environments.

    :param option: How an error names the option.
    :param names: Names of the modules.
    :raises ImportError: If one cannot be imported.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(f"`{option}` {name!r} cannot be imported: {error}") from error
